"""One task's update as an adapter folder that PEFT loads.

    adapter_config.json         PEFT's settings: a rank, a scale and a name for each layer
    adapter_model.safetensors   LoRA factors, and the head under `modules_to_save`
    metapeft.json               what PEFT cannot say: layers of rank 0, classes, the SHA-256 of backbone and files
    README.md                   what it is, what it belongs to, and the lines that load it
    base/model.safetensors      the backbone's weights, where they were trained or the head has another shape

Everything is written as LoRA: `W0 + (alpha / r) B A`. Where the groups of a convolution share `A` here, PEFT gives
each group hidden channels of its own that read all channels: `A` goes into `g` diagonal blocks, at rank `g r`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from metapeft.base.errors import RunError
from metapeft.base.files import clear_partials, partial_of, sync_folder
from metapeft.base.reading import sealed
from metapeft.updates import factors as _factors
from metapeft.updates.attached import AttachedModel
from metapeft.updates.formats.site import Site
from metapeft.updates.leaf import is_gpt2_linear
from metapeft.updates.peft_base import source_of, weights_digest
from metapeft.updates.peft_card import Card, checked_classes
from metapeft.updates.peft_layers import OWN_MODULES, PREFIX, Adapter, adapters
from metapeft.updates.peft_settings import settings_digest


def export_peft(
    model: AttachedModel,
    factors: Mapping[str, Tensor],
    folder: str | Path,
    *,
    weights: Mapping[str, Tensor] | None = None,
    head: Mapping[str, Tensor] | None = None,
    classes: Sequence[str] | None = None,
    image: tuple[int, int, int] | None = None,
) -> None:
    """Write one task's update as an adapter folder for PEFT; see the top of this file.

    Args:
        model: the attached backbone.
        factors: one task's, without the task axis; those of the classifier are not needed beside `head`.
        folder: is made; what is there already must be empty.
        weights: trained weights of the backbone by name; `base/` is written where they differ from its own.
        head: `{"head.weight": (N, F), "head.bias": (N,)}`, in place of the classifier.
        classes: names of the outputs. image: channels, height and width of its images. Both stand in the README.

    Raises:
        ValueError: what PEFT cannot say, by name: Full updates (but on the classifier, which is saved whole),
            seeds per input, `norm="support"` and `"transductive"`, MultiheadAttention, and layers of unknown
            types.

    Example:
        >>> import tempfile
        >>> import metapeft as mp
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> model = mp.attach(net, mp.LoRA(rank=1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_peft(model, {name: value[0] for name, value in model.factors().items()}, folder)
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['README.md', 'adapter_config.json', 'adapter_model.safetensors', 'metapeft.json']
    """
    folder = Path(folder)
    new_folder(folder)
    if model.norm != "running":
        raise ValueError(
            f'norm="{model.norm}" cannot be exported: PEFT has no statistics per task; use norm="running"'
        )
    if head is not None and model.classifier is None:
        raise ValueError("head= given, but the backbone has no classifier in whose place it could go")

    own = f"{model.classifier}." if model.classifier is not None else None
    sites = {
        name: site for name, site in model.sites.items() if head is None or not name.startswith(str(own))
    }
    one_task = _factors.one_task(
        sites,
        {name: value for name, value in factors.items() if name.rpartition(".")[0] in sites or head is None},
    )
    state = {**model.parameters, **dict(model.module.named_buffers()), **(weights or {})}
    whole = _whole_classifier(model, sites, one_task, state, head)
    saved_whole = model.classifier if whole else None
    found, rank_zero = adapters(model, sites, one_task, saved_whole)
    trained = any(
        not torch.equal(value, model.module.state_dict()[name]) for name, value in (weights or {}).items()
    )
    reshaped = any(state[name].shape != value.shape for name, value in whole.items())

    tensors = {f"{PREFIX}{name}": value for name, value in whole.items()}
    for layer, adapter in found.items():
        tensors.update({f"{PREFIX}{layer}.{key}": value for key, value in adapter.tensors.items()})
    extra: dict[str, Any] = {"rank_zero": rank_zero}
    files: dict[str, bytes] = {}
    if trained or reshaped:
        first_names = [*dict(model.module.named_parameters()), *dict(model.module.named_buffers())]
        base = _bytes({name: (whole if reshaped else {}).get(name, state[name]) for name in first_names})
        files["base/model.safetensors"] = base
        extra["base_sha256"] = hashlib.sha256(base).hexdigest()
    else:
        extra["backbone_sha256"] = weights_digest(model.module, whole)
    if classes is not None:
        extra["classes"] = checked_classes(classes)
    files["adapter_model.safetensors"] = _bytes(tensors)
    config = _config(model.module, found, saved_whole)
    extra["adapter_sha256"] = hashlib.sha256(files["adapter_model.safetensors"]).hexdigest()
    extra["settings_sha256"] = settings_digest(config)
    card = Card(model.module, config, extra, "base_sha256" in extra, classes, image)
    files["README.md"] = card.markdown().encode()
    files["metapeft.json"] = f"{json.dumps(sealed(extra), indent=2)}\n".encode()
    files["adapter_config.json"] = f"{json.dumps(config, indent=2)}\n".encode()
    _write(folder, files)


def new_folder(folder: Path) -> None:
    """Raise ValueError for a folder that holds something already, or that is a file."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder={str(folder)!r} is there and not empty: name a new folder for the adapter")


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a new folder, which appears when all of them are there."""
    made = partial_of(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        clear_partials(folder.parent, folder.name)  # of an export that was killed
        for name, content in files.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            with open(made / name, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.is_dir():
            folder.rmdir()
        os.rename(made, folder)
        sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        raise RunError(
            f"{folder} cannot be written: {error.strerror or error}; nothing is left there"
        ) from error
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _bytes(tensors: Mapping[str, Tensor]) -> bytes:
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return save(plain, metadata={"format": "pt"})


def _whole_classifier(
    model: AttachedModel,
    sites: Mapping[str, Site],
    factors: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    head: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """The classifier's tensors where it is saved as a whole: a head of its own, or a Full update."""
    name = model.classifier
    if name is None:
        return {}
    if head is not None:
        if set(head) != {"head.weight", "head.bias"}:
            raise ValueError(f"head has {sorted(head)}: allowed are head.weight and head.bias")
        module = model.module.get_submodule(name)
        bias = getattr(module, "bias", None)
        if bias is None and head["head.bias"].any():
            raise ValueError(f"head.bias is not 0, but the classifier {name!r} has no bias to put it into")
        whole = {f"{name}.weight": head["head.weight"]}
        return whole if bias is None else {**whole, f"{name}.bias": head["head.bias"]}
    own = {site.parameter: site for site in sites.values() if site.parameter.rpartition(".")[0] == name}
    if not any(site.format.dense for site in own.values()):
        return {}
    updates = _factors.updates_of(sites, factors, state, 1, 1)
    return {
        f"{name}.{local}": state[f"{name}.{local}"]
        + (updates[f"{name}.{local}"].delta(1)[0] if f"{name}.{local}" in own else 0.0)
        for local, _ in model.module.get_submodule(name).named_parameters()
    }


def _config(backbone: nn.Module, adapters: Mapping[str, Adapter], whole: str | None) -> dict[str, Any]:
    """PEFT's `adapter_config.json`. Its names match as suffixes; where that is ambiguous they are regexes."""
    modules = [name for name, _ in backbone.named_modules()]
    if whole is not None:
        _refuse_whole(whole, [name for name in modules if name != whole], adapters)
    exact = any(_is_ambiguous(layer, modules) for layer in adapters)
    keys = {layer: f"^{re.escape(layer)}$" if exact else layer for layer in adapters}
    targets: str | list[str] = list(adapters)
    if exact:
        targets = "|".join(re.escape(layer) for layer in adapters)
    first = next(iter(adapters.values()), Adapter({}, 1, 1.0))
    name, revision = source_of(backbone)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": name,
        "revision": revision,
        "inference_mode": True,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": any(is_gpt2_linear(backbone.get_submodule(layer)) for layer in adapters),
        "r": first.rank,
        "lora_alpha": _number(first.alpha),
        "target_modules": targets,
        "rank_pattern": {keys[layer]: adapter.rank for layer, adapter in adapters.items()},
        "alpha_pattern": {keys[layer]: _number(adapter.alpha) for layer, adapter in adapters.items()},
        "modules_to_save": None if whole is None else [whole],
    }


def _is_ambiguous(layer: str, modules: list[str]) -> bool:
    """Whether the name, as the pattern that PEFT takes it for, matches other modules or not itself."""
    if not re.fullmatch(r"[\w.]+", layer):
        return True
    length = len(layer)  # a dot of the pattern matches one letter, any
    return any(
        name != layer
        and name[:-length][-1:] in ("", ".")
        and all(own in (".", letter) for own, letter in zip(layer, name[-length:], strict=False))
        for name in modules
        if len(name) >= length
    )


def _refuse_whole(whole: str, others: list[str], adapted: Collection[str]) -> None:
    """Raise ValueError for a module saved whole whose name PEFT would take for others' too, as text or as pattern."""
    alike = [name for name in (*others, *OWN_MODULES) if name.endswith(whole)]
    if not re.fullmatch(r"[\w.]+", whole):
        alike += [whole]
    else:
        alike += [name for name in adapted if re.match(rf"(^|.*\.){whole}($|\..*)", name)]
    if alike:
        raise ValueError(
            f"the classifier {whole!r} is saved whole, and PEFT takes its name for a pattern that "
            + ("is not it" if alike[0] == whole else f"matches {alike[0]!r} too")
            + ": rename one of them"
        )


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value
