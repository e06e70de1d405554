"""Adapter folders of PEFT, read back as update formats and factors."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metapeft.base.errors import RunError, stored_in
from metapeft.updates.attach_model import attach
from metapeft.updates.attached import AttachedModel
from metapeft.updates.formats.format import Format
from metapeft.updates.formats.full import Full
from metapeft.updates.formats.lora import LoRA
from metapeft.updates.inputs import Output, Preprocess
from metapeft.updates.layers.slots import slots
from metapeft.updates.leaf import is_transposed
from metapeft.updates.peft_base import adapter_json, adapter_tensors, check_pair, check_trained_on
from metapeft.updates.peft_full import SUFFIXES, check_layer, full_delta
from metapeft.updates.peft_layers import PREFIX, block_diagonal, refuse_shared
from metapeft.updates.peft_settings import alphas, check_settings, settings_digest
from metapeft.updates.targets import find_sites


def from_peft(
    backbone: nn.Module,
    folder: str | Path,
    *,
    check_base: bool = True,
    preprocess: Preprocess | None = None,
    classifier: str | None = "auto",
    output: Output | None = None,
) -> tuple[AttachedModel, dict[str, Tensor]]:
    """Read an adapter folder of PEFT, ours or another's, and attach its update to a backbone.

    The update is where every task of the model starts: `Learner(model, ...)`, `mp.finetune(model, ...)` and
    `mp.search_ranks(model, ...)` go on from it, whole (a selection's first weights do not divide it).

    Args:
        backbone: the module that the adapter belongs to; where the folder has `base/`, `mp.load_base` comes first.
        folder: as `export_peft` or PEFT's `save_pretrained` writes it.
        check_base: whether weights other than those that the adapter says it was trained on are refused.
        preprocess, classifier, output: as `mp.attach` takes them.

    Returns: the attached backbone, and the update `name -> (1, ...)`, as `model(x, factors)` takes it. Layers of rank 0
        have `LoRA(0)`; modules that were saved whole, layers under DoRA, and embeddings whose weight the adapter brings
        have Full updates.

    Raises:
        ValueError: files that are missing or damaged, an adapter that is neither LoRA nor DoRA, that belongs to
            another backbone or to other weights, or whose base was not loaded.

    Example:
        >>> import tempfile
        >>> import metapeft as mp
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> model = mp.attach(net, mp.LoRA(rank=1), targets="0")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mp.export_peft(model, {name: value[0] for name, value in model.factors().items()}, folder)
        ...     model, factors = from_peft(net, folder)
        >>> sorted(factors), tuple(model(torch.zeros(1, 5, 3), factors).shape)
        (['0.weight.A', '0.weight.B'], (1, 5, 2))
    """
    check_pair(backbone, folder)
    found, own = read_adapter(folder, backbone, check_base)
    formats: Mapping[Any, Format] = found
    model = attach(backbone, formats, preprocess=preprocess, classifier=classifier, output=output)
    model.given_start = {name: value.unsqueeze(0) for name, value in own.items()}
    return model, model.factors()


def import_peft(folder: str | Path, backbone: nn.Module) -> tuple[dict[str, Format], dict[str, Tensor]]:
    """Formats by parameter name and one task's factors, without the task axis: `from_peft` as it was until 0.2.

    Warns:
        FutureWarning: it goes with the next version.

    Example:
        >>> import tempfile
        >>> import metapeft as mp
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2))
        >>> model = mp.attach(net, mp.LoRA(rank=1))
        >>> with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     mp.export_peft(model, {name: value[0] for name, value in model.factors().items()}, folder)
        ...     formats, factors = import_peft(folder, net)
        >>> formats
        {'0.weight': LoRA(rank=1, alpha=None)}
    """
    warnings.warn(
        "import_peft(folder, backbone) goes with the next version: model, factors = from_peft(backbone, folder)",
        FutureWarning,
        stacklevel=2,
    )
    check_pair(backbone, folder)
    return read_adapter(folder, backbone)


def read_adapter(
    folder: str | Path, backbone: nn.Module, check_base: bool = True
) -> tuple[dict[str, Format], dict[str, Tensor]]:
    """Formats by parameter name, and one task's factors without the task axis; see `from_peft`."""
    folder = Path(folder)
    config, extra = adapter_json(folder / "adapter_config.json"), {}
    if (folder / "metapeft.json").exists():
        extra = adapter_json(folder / "metapeft.json")
    check_settings(config, folder)
    with stored_in(folder / "adapter_config.json"):
        found = _imported(folder, config, extra, backbone, check_base)
    _check_digests(folder, config, extra)
    return found


def _imported(
    folder: Path,
    config: Mapping[str, Any],
    extra: Mapping[str, Any],
    backbone: nn.Module,
    check_base: bool,
) -> tuple[dict[str, Format], dict[str, Tensor]]:
    """Formats and factors, of files that were checked."""
    state = dict(backbone.state_dict(keep_vars=True))
    pairs, whole = _sorted(adapter_tensors(folder / "adapter_model.safetensors"), state)
    if check_base:
        check_trained_on(folder, extra, config, backbone, whole)

    first_name = {id(value): name for name, value in backbone.named_parameters()}
    tied = slots(backbone)
    formats: dict[str, Format] = {}
    factors: dict[str, Tensor] = {}
    alpha = alphas(config, pairs, folder)
    for layer, pair in pairs.items():
        parameter = state.get(f"{layer}.weight")
        if parameter is None or not {"A", "B"} <= set(pair):
            raise ValueError(
                f"{folder} adapts {layer!r}, which this backbone does not have, or only half of it is there"
            )
        module = backbone.get_submodule(layer)
        refuse_shared(backbone, layer)
        _refuse_half_of_tied(tied[id(parameter)], {f"{layer}.weight" for layer in pairs}, folder)
        check_layer(folder, layer, module, parameter, pair, bool(config.get("use_dora")))
        alpha[layer] *= math.sqrt(pair["A"].shape[0]) if config.get("use_rslora") else 1.0
        lora, local = _layer(module, layer, pair, alpha[layer])
        format: Format = lora
        name = first_name[id(parameter)]
        owner = backbone.get_submodule(name.rpartition(".")[0])
        base = pair.get("base")
        if base is not None and torch.equal(base.to(parameter), parameter.detach()):
            base = None
        if base is not None or "magnitude" in pair:
            delta = full_delta(module, parameter.detach(), base, (lora, local), pair.get("magnitude"))
            format, local = Full(), {"delta": delta}
        elif is_transposed(owner) != is_transposed(module):  # the other layer of a tied pair
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


def _sorted(
    given: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The tensors of an adapter: by layer and part, and those that were saved whole, by parameter."""
    pairs: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for key, value in given.items():
        name = key.removeprefix(PREFIX)
        suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
        if suffix is None or name in state:  # a layer of the backbone may be called lora_A
            whole[name] = value
        else:
            pairs.setdefault(name.removesuffix(suffix), {})[SUFFIXES[suffix]] = value
    for layer in [layer for layer, parts in pairs.items() if set(parts) == {"base"}]:
        whole[f"{layer}.weight"] = pairs.pop(layer)["base"]
    return pairs, whole


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
