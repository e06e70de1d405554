"""Adapter folders of PEFT, read back as update formats and factors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from metapeft.base.errors import RunError, stored_in
from metapeft.base.reading import check_file, read_json, reading
from metapeft.updates.formats.format import Format
from metapeft.updates.formats.full import Full
from metapeft.updates.formats.lora import LoRA
from metapeft.updates.layers.slots import slots
from metapeft.updates.leaf import is_transposed
from metapeft.updates.peft_layers import PREFIX, block_diagonal, refuse_shared
from metapeft.updates.peft_settings import alphas, check_settings, settings_digest
from metapeft.updates.targets import find_sites

_SUFFIXES = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
}


def import_peft(folder: str | Path, backbone: nn.Module) -> tuple[dict[str, Format], dict[str, Tensor]]:
    """Read an adapter folder of PEFT, ours or another's.

    Args:
        folder: as `export_peft` or PEFT's `save_pretrained` writes it.
        backbone: the module that the adapter belongs to; where the folder has `base/`, `load_base` comes first.

    Returns: formats by parameter name, for `attach(backbone, formats)`, and one task's factors, without the task
        axis, for `merged`. Layers of rank 0 come back as `LoRA(0)`, modules that were saved whole as Full updates.

    Raises:
        ValueError: files that are missing or damaged, an adapter that is no plain LoRA, that belongs to
            another backbone, or whose base was not loaded.

    Example:
        >>> import tempfile
        >>> import metapeft as mp
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> model = mp.attach(net, mp.LoRA(rank=1), targets="0")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mp.export_peft(model, {name: value[0] for name, value in model.factors().items()}, folder)
        ...     formats, factors = import_peft(folder, net)
        >>> sorted(factors)
        ['0.weight.A', '0.weight.B']
    """
    folder = Path(folder)
    config, extra = _json(folder / "adapter_config.json"), {}
    if (folder / "metapeft.json").exists():
        extra = _json(folder / "metapeft.json")
    check_settings(config, folder)
    with stored_in(folder / "adapter_config.json"):
        found = _imported(folder, config, extra, backbone)
    _check_digests(folder, config, extra)
    return found


def _imported(
    folder: Path, config: Mapping[str, Any], extra: Mapping[str, Any], backbone: nn.Module
) -> tuple[dict[str, Format], dict[str, Tensor]]:
    """Formats and factors, of files that were checked."""
    state = dict(backbone.state_dict(keep_vars=True))
    if "base_sha256" in extra:
        _check_base(_base(folder, extra), state)

    pairs: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for key, value in _tensors(folder / "adapter_model.safetensors").items():
        name = key.removeprefix(PREFIX)
        suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), None)
        if suffix is None or name in state:  # a layer of the backbone may be called lora_A
            whole[name] = value
        else:
            pairs.setdefault(name.removesuffix(suffix), {})[_SUFFIXES[suffix]] = value

    first_name = {id(value): name for name, value in backbone.named_parameters()}
    tied = slots(backbone)
    formats: dict[str, Format] = {}
    factors: dict[str, Tensor] = {}
    alpha = alphas(config, pairs, folder)
    for layer, pair in pairs.items():
        parameter = state.get(f"{layer}.weight")
        if parameter is None or set(pair) != {"A", "B"}:
            raise ValueError(
                f"{folder} adapts {layer!r}, which this backbone does not have, or only half of it is there"
            )
        module = backbone.get_submodule(layer)
        refuse_shared(backbone, layer)
        _refuse_half_of_tied(tied[id(parameter)], {f"{layer}.weight" for layer in pairs}, folder)
        alpha[layer] *= math.sqrt(pair["A"].shape[0]) if config.get("use_rslora") else 1.0
        format, local = _layer(module, layer, pair, alpha[layer])
        name = first_name[id(parameter)]
        owner = backbone.get_submodule(name.rpartition(".")[0])
        if is_transposed(owner) != is_transposed(module):  # the other layer of a tied pair
            local = {"A": local["B"].T.contiguous(), "B": local["A"].T.contiguous()}
        if formats.setdefault(name, format) != format or any(
            not torch.equal(factors.setdefault(f"{name}.{key}", value), value) for key, value in local.items()
        ):
            raise ValueError(
                f"{layer!r} shares its weight with another layer, but {folder} adapts them differently"
            )
    for name, value in whole.items():
        if name not in state or state[name].shape != value.shape:
            raise ValueError(
                f"{folder} has {name!r} of shape {tuple(value.shape)}, the backbone "
                + (f"{tuple(state[name].shape)}: load_base() first" if name in state else "does not have it")
            )
        _refuse_half_of_tied(tied.get(id(state[name]), [name]), {name}, folder)
        formats[name], factors[f"{name}.delta"] = Full(), value - state[name].detach()
    for name in extra.get("rank_zero", []):
        if name not in state:
            raise ValueError(f"{folder} lists {name!r}, which this backbone does not have")
        formats[name] = LoRA(0)
        site = find_sites(backbone, {name: LoRA(0)}, "all", None)[name]
        for key, shape in site.format.shapes(site.geometry).items():
            factors[f"{name}.{key}"] = state[name].detach().new_zeros(shape)
    return formats, factors


def load_base(folder: str | Path, backbone: nn.Module) -> nn.Module:
    """Put the weights of `base/` into a backbone, in place; returns it.

    The classifier's own shape is changed where the exported head has another number of outputs.

    Raises:
        ValueError: the folder has no base, its hash is wrong, or it belongs to another backbone.

    Example:
        >>> import tempfile
        >>> import metapeft as mp
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> model = mp.attach(net, mp.LoRA(rank=1), targets="0")
        >>> factors = {name: value[0] for name, value in model.factors().items()}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mp.export_peft(model, factors, folder, weights={"0.bias": torch.ones(4)})
        ...     _ = load_base(folder, net)
        >>> net[0].bias.tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    folder = Path(folder)
    extra = _json(folder / "metapeft.json")
    if "base_sha256" not in extra:
        raise ValueError(f"{folder} has no base/: its adapter belongs to the backbone's own weights")
    base = _base(folder, extra)
    own = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    if set(base) != set(own):
        odd = sorted(set(base) ^ set(own))
        raise ValueError(
            f"base/ of {folder} belongs to another backbone: they disagree on {', '.join(odd[:5])}"
        )
    with torch.no_grad():
        for name, value in base.items():
            if own[name].shape == value.shape:
                own[name].copy_(value)
                continue
            module = backbone.get_submodule(name.rpartition(".")[0])
            local = name.rpartition(".")[2]
            if not isinstance(module, nn.Linear) or own[name].shape[1:] != value.shape[1:]:
                raise ValueError(
                    f"base/ of {folder} has {name!r} of shape {tuple(value.shape)}, not {own[name].shape}"
                )
            setattr(module, local, nn.Parameter(value.to(own[name])))
            module.out_features = value.shape[0]
    return backbone


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError(f"{path} is missing: is {path.parent} an adapter folder?")
    found = read_json(path, again="it is no JSON of an adapter, but a damaged or foreign file")
    if not isinstance(found, dict):
        raise RunError(f"{path} is a {type(found).__name__} of JSON, an adapter has an object there")
    return found


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise ValueError(f"{path} is missing: adapters in pickle files (adapter_model.bin) are not read")
    with reading(path, again="a damaged or truncated file"):
        check_file(path)
        found = load(path.read_bytes())
        for name, value in found.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise ValueError(
                    f"{name!r} has NaN or infinity in it: its training diverged, or the file is damaged"
                )
    return found


def _check_digests(folder: Path, config: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Raise RunError where a file is not what was exported; PEFT's own folders, and those of 0.2, do not tell."""
    path = folder / "adapter_model.safetensors"
    said = extra.get("adapter_sha256")
    if said is not None and path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() != said:
        raise RunError(
            f"{path} is damaged, or another adapter's: its SHA-256 is not that of what was exported"
        )
    said = extra.get("settings_sha256")
    if said is not None and settings_digest(config) != said:
        raise RunError(
            f"{folder / 'adapter_config.json'} is damaged, or was changed: its settings are not those that were "
            "exported. Export the adapter again, or remove metapeft.json if the change is meant and no layer has rank 0"
        )


def _base(folder: Path, extra: Mapping[str, Any]) -> dict[str, Tensor]:
    path = folder / "base" / "model.safetensors"
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != extra["base_sha256"]:
        raise ValueError(f"{path} is missing or not the file that was exported: its SHA-256 differs")
    return _tensors(path)


def _check_base(base: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    for name, value in base.items():
        own = state.get(name)
        if own is None or own.shape != value.shape or not torch.equal(own.detach().to(value), value):
            raise ValueError(
                f"the adapter was trained on other weights ({name!r} differs): load_base() first"
            )


def _refuse_half_of_tied(names: list[str], adapted: Collection[str], folder: Path) -> None:
    """Raise ValueError where not all names of a tied weight are adapted: here its update acts at each use."""
    left = [name for name in names if name not in adapted]
    if left:
        raise ValueError(
            f"{folder} adapts only one of the layers that share a weight, {', '.join(names)}, and leaves {left[0]!r} "
            "as it is; here an update acts wherever its weight is used"
        )


def _layer(
    module: nn.Module, layer: str, pair: Mapping[str, Tensor], alpha: float
) -> tuple[LoRA, dict[str, Tensor]]:
    """One layer's format and factors in its own orientation."""
    down, up = pair["A"], pair["B"].flatten(1)
    groups = int(getattr(module, "groups", 1))
    rank = down.shape[0]
    if groups > 1:
        rank, alpha = rank // groups, alpha / groups
        block = down[:rank, : down.shape[1] // groups].clone()
        if not torch.equal(block_diagonal(block, groups), down):
            raise ValueError(
                f"the groups of {layer!r} read one another's channels or have different A: here the groups "
                "of a convolution share one A, each on its own channels"
            )
        down = block
    return LoRA(rank, alpha=None if alpha == rank else alpha), {"A": down, "B": up}
