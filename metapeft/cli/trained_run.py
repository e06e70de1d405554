"""The learner that a command of the shell runs: from a run folder, where and as exactly as asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from metapeft.cli.right_folder import run_wanted
from metapeft.experiments.config import AutocastOrOff, DtypeName, Small

if TYPE_CHECKING:
    from metapeft.learner.learner import Learner


def loaded(
    run: Path,
    checkpoint: str | None,
    device: str | None = None,
    dtype: DtypeName | None = None,
    autocast: AutocastOrOff | None = None,
) -> Learner:
    """The learner of a run.

    Args:
        run, checkpoint: as `mp.load` takes them.
        device: None for the CPU. dtype: None for the run's. autocast: None for the run's, `"off"` for none.

    Raises:
        ValueError: a device that is not here, an autocast that does not go with the dtype.
        RunError: no such run.
    """
    from metapeft.base.machine.devices import ask, options
    from metapeft.training.runs.learner_in_run import load

    given = options(device, dtype, None if autocast == "off" else autocast)
    with run_wanted(run, "learner"):
        learner = load(run, checkpoint=checkpoint, device=given["device"])
    if given["dtype"] is not None:
        learner.to(dtype=given["dtype"])
    # that of the run too, for the dtype may be another
    learner = learner.with_autocast(learner.autocast if autocast is None else given["autocast"])
    ask(device, None if learner.autocast is None else "bfloat16")
    return learner


def data_and_sizes(
    run: Path,
    data: str | None,
    root: Path | None,
    split: str,
    ways: int | None,
    shots: int | None,
    small: Small | None = None,
) -> tuple[Any, dict[str, Any]]:
    """The data set of a command, and ways, shots and small: what it was given or, where it was not, that of the run.

    Raises:
        ValueError: a run on data of the user's own, where the command names none.
    """
    from metapeft.base.errors import stored_in
    from metapeft.datasets.by_name import load_dataset
    from metapeft.datasets.table import registry
    from metapeft.training.runs.run import Run

    with Run.open(run, writable=False) as folder, stored_in(folder.folder / "config.json"):
        spec = (folder.config.get("episodes") or {}).get("sampler") or {}
        loaded = (spec.get("data") or {}).get("loaded") or {}
    options = {name: value for name, value in loaded.items() if name not in ("name", "split")}
    if data is None:
        if loaded.get("name") not in registry.names:
            raise ValueError(f"{run} was trained on data of your own: name a data set by --data")
        data = loaded["name"]
    elif data != loaded.get("name"):
        options = {}
    if root is not None:
        options["root"] = root
    found = load_dataset(data, split=split, **options)

    def chosen(given: Any, name: str, usual: Any) -> Any:
        stored = spec.get(name, usual)
        own = tuple(stored) if isinstance(stored, list) else stored
        return own if given is None else given

    wanted = (("ways", ways, 5), ("shots", shots, 1), ("small", small, "refuse"))
    return found, {name: chosen(given, name, usual) for name, given, usual in wanted}


def image_size(run: Path) -> dict[str, int]:
    """`size` and `channels` of the images that a run was trained on; `{}` where it does not say them."""
    from metapeft.base.errors import stored_in
    from metapeft.training.runs.run import Run

    with Run.open(run, writable=False) as folder, stored_in(folder.folder / "config.json"):
        spec = (folder.config.get("episodes") or {}).get("sampler") or {}
        shape = (spec.get("data") or {}).get("images")
    return {} if not shape else {"channels": int(shape[1]), "size": int(shape[2])}


def chosen_steps(run: Path, shift: bool) -> int | None:
    """The inner steps that the main job chose on validation episodes for a method's folder in its own; else None."""
    from metapeft.base.errors import RunError
    from metapeft.experiments.results import read

    run = run.resolve()
    try:
        row = read(run.parent / "results.json").rows.get(run.name)
    except (OSError, RunError):
        return None
    return None if row is None else row.steps("shifted" if shift else "plain")
