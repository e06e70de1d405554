"""A learner in a run folder, and back from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from metapeft.backbones.table import registry as backbones
from metapeft.base.errors import RunError, stored_in
from metapeft.base.stored_settings import as_json, refuse_difference
from metapeft.episodes.settings import of_episodes
from metapeft.learner import settings
from metapeft.learner.learner import Learner
from metapeft.training.runs import kept_inner
from metapeft.training.runs.run import Run
from metapeft.updates.attach_model import attach
from metapeft.updates.copying import viewed


def load(
    run: str | os.PathLike[str],
    checkpoint: str | None = None,
    *,
    backbone: nn.Module | None = None,
    loss: Callable[..., Any] | None = None,
    inner_loss: Callable[..., Any] | None = None,
    batch_loss: Callable[..., Any] | None = None,
    preprocess: Callable[..., Any] | None = None,
    output: Callable[..., Any] | None = None,
    generator: Any = None,
    inner: Any = None,
    hypergradient: Any = None,
    head: Any = None,
    selection: Any = None,
    formats: Any = None,
    device: torch.device | str | None = None,
) -> Learner:
    """The learner of a run folder, with the tensors of a checkpoint.

    Everything is built from the stored settings. What is of the user's own (a backbone that is not one of
    `mp.backbones`, a loss, a solver with functions in it) has to be given by its keyword; an argument that
    differs from what is stored is refused.

    Args:
        run: the folder that `BilevelTrainer.fit` or `mp.save` was given.
        checkpoint: `"best"` (on validation episodes) or `"latest"`; None: the best where there is one.
        formats: a format of your own, or `{pattern: format}`, as `mp.attach` takes them.
        device: where the learner shall be; None: the backbone's.

    Raises:
        RunError: no such run, one without a learner, or without that checkpoint.
        ValueError: a part that is missing, or differs from what is stored.

    Example:
        >>> import tempfile
        >>> import metapeft as mp
        >>> learner = mp.methods.maml(mp.backbones.mlp(1, 1, hidden=(4,)), loss=F.mse_loss, norm="running")
        >>> episodes = mp.EpisodeSampler(mp.load_dataset("sinusoid"), 1, 5, 5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer = mp.BilevelTrainer(learner, progress=False)
        ...     log = trainer.fit(episodes, steps=1, run_dir=f"{folder}/run")
        ...     again = load(f"{folder}/run")
        >>> all(torch.equal(value, again.state()[name]) for name, value in learner.state().items())
        True
    """
    with Run.open(run, writable=False) as folder:
        stored = folder.config.get("learner")
        if not isinstance(stored, dict) or "formats" not in stored:
            wanted = "mp.load wants a folder of BilevelTrainer.fit or mp.save"
            raise RunError(f"{run} is no run of a learner: {wanted}{_within(folder)}")
        state = _state(folder, checkpoint)
    parts = {
        "inner": inner, "hypergradient": hypergradient, "head": head, "generator": generator, "selection": selection,
        "preprocess": preprocess, "output": output,
    }  # fmt: skip
    with stored_in(Path(run) / "config.json"):
        body = _backbone(stored["backbone"], backbone)
        said = {"output": None, **stored}  # runs of before there was any do not say it
        parts = {part: settings.given_or_built(part, said[part], given) for part, given in parts.items()}
        chosen = formats
        if formats is None:
            chosen = {name: settings.built(spec, "formats") for name, spec in stored["formats"].items()}
        types = {name: getattr(torch, stored.get(name) or "float32") for name in ("dtype", "autocast")}
    model = attach(
        body,
        chosen,
        norm=stored["norm"],
        preprocess=parts.pop("preprocess"),
        classifier=stored["classifier"],
        output=parts.pop("output"),
    )
    unnamed = {name: replace(site, named=False) for name, site in model.sites.items()}
    model = viewed(model, unnamed)  # whoever made the run need not have named them
    given = {name: settings.of(model.sites[name].format) for name in stored["formats"] if name in model.sites}
    refuse_difference("formats", stored["formats"], as_json(given))
    learner = Learner(
        model,
        **parts,
        adapt=stored["adapt"] or "all",
        outer=stored["outer"],
        inner_data=stored["inner_data"],
        loss=_loss("loss", stored["loss"], loss),
        inner_loss=_loss("inner_loss", stored.get("inner_loss"), inner_loss),
        batch_loss=_loss("batch_loss", stored.get("batch_loss"), batch_loss),
        test_steps=stored["test_steps"],
        device=device,
        dtype=types["dtype"],
        autocast=None if stored.get("autocast") is None else types["autocast"],
        dropout=bool(stored.get("dropout")),
        seed=stored["seed"],
        name=stored["method"],
    )
    built = learner.settings()
    refuse_difference("formats", stored["formats"], as_json(built["formats"]))  # no further ones
    refuse_difference("backbone= (its frozen parameters)", stored["frozen"], built["frozen"])
    refuse_difference("generator= (its features)", stored.get("features"), built["features"])
    for name, shape in stored["shapes"].items():
        found = learner.variables.get(name)
        if found is None or list(found.shape) != shape:
            what = "no such tensor" if found is None else f"shape {tuple(found.shape)}"
            raise ValueError(
                f"the run has {name} of shape {tuple(shape)}, what was built has {what}: backbone= is "
                "another network than that of the run, or was changed after it was made"
            )
    center = {"center"} & set(state) if learner.reads_center else set()
    _check_names({*learner.state(), *center}, state)
    learner.load_state(state)
    return learner


def save(learner: Learner, run: str | os.PathLike[str], episodes: Any = None) -> None:
    """Keep a learner in a folder of its own, from which `load` gives it back.

    Args:
        learner: as it is now.
        run: a new or empty folder, or one in which the same was begun and not ended.
        episodes: those that it is meant for; the shell takes data and sizes from them.

    Raises:
        RunError: a folder that holds something, or cannot be written.

    Example:
        >>> import tempfile
        >>> import metapeft as mp
        >>> learner = mp.methods.sr_lora(mp.backbones.mlp(4, 3, hidden=(8,)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(learner, f"{folder}/start")
        ...     load(f"{folder}/start").name
        'sr+lora'
    """
    if not isinstance(learner, Learner):
        raise ValueError(f"learner is of type {type(learner).__name__}: an mp.Learner is needed")
    config = as_json({"learner": learner.settings(), "episodes": of_episodes(episodes)})
    begun = (Path(run) / "config.json").exists() and not is_saved(run)  # and killed before its end
    with Run.open(run) if begun else Run.create(run, config) as folder:
        if folder.config != config:
            raise RunError(
                f"{run} holds the beginning of another learner, or of other episodes: remove it first"
            )
        folder.save("latest", {"learner": dict(learner.state())}, {"step": 0})


def is_saved(run: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a learner, whole."""
    return (Path(run) / "checkpoints" / "latest.safetensors").exists()


def _within(folder: Run) -> str:
    """The runs of learners that lie in a folder, said at the end of a sentence."""
    within = sorted(str(path.parent) for path in folder.folder.glob("*/checkpoints"))
    return f"; in it are {', '.join(within)}" if within else ""


def _state(folder: Run, checkpoint: str | None) -> Any:
    if checkpoint not in (None, "best", "latest"):
        raise ValueError(f"checkpoint={checkpoint!r}: allowed are 'best', 'latest' and None")
    name = checkpoint or ("best" if folder.checkpoint("best").exists() else "latest")
    tree = folder.load(name)[0]
    with stored_in(folder.checkpoint(name)):
        return tree["learner"] if name == "latest" else kept_inner.state_of_best(tree)


def _check_names(own: Set[str], state: Mapping[str, Any]) -> None:
    """Raise ValueError for a checkpoint that has not exactly the learner's tensors."""
    missing, further = sorted(own - set(state)), sorted(set(state) - own)
    if missing or further:
        what = f"lacks {missing[0]!r}" if missing else f"has {further[0]!r}, which the run's learner has not"
        raise ValueError(
            f"the checkpoint {what}: it was written by another method or another version, or copied in from another run"
        )


def _backbone(spec: Mapping[str, Any], given: nn.Module | None) -> nn.Module:
    """The backbone of the run: one of `mp.backbones` by its arguments, or what the user gives."""
    if given is not None:
        refuse_difference("backbone", dict(spec), settings.of_backbone(given))
        return given
    if "custom" in spec:
        raise ValueError(f"backbone= is missing: the run had a {spec['custom']}, a module of your own")
    module: nn.Module = backbones.resolve(spec["name"])(**spec["arguments"])
    return module


def _loss(part: str, spec: Mapping[str, Any] | None, given: Callable[..., Any] | None) -> Any:
    """The loss of a run: one of torch's by its name, what the user gives, or None where there was none."""
    if given is not None:
        refuse_difference(part, spec, settings.of_loss(given))
        return given
    if spec is None:
        return None
    if "functional" not in spec:
        raise ValueError(
            f"{part}= is missing: the run was made with {spec['custom']!r}, which is of your own"
        )
    return getattr(F, spec["functional"])
