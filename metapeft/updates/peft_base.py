"""The backbone that an adapter was trained on: its name, its hash, and the weights in `base/`."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from metapeft.base.errors import RunError
from metapeft.base.reading import check_file, read_json, reading


def load_base(backbone: nn.Module, folder: str | Path) -> nn.Module:
    """Put the weights of an adapter's `base/` into a backbone, in place; returns it.

    The classifier's own shape is changed where the exported head has another number of outputs.

    Args:
        backbone: of the architecture that was exported. folder: the adapter's.

    Raises:
        ValueError: the folder has no base, its hash is wrong, or it belongs to another backbone.

    Warns:
        FutureWarning: the order of 0.2, folder first, which is still understood.

    Example:
        >>> import tempfile
        >>> import metapeft as mp
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> model = mp.attach(net, mp.LoRA(rank=1), targets="0")
        >>> factors = {name: value[0] for name, value in model.factors().items()}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mp.export_peft(model, factors, folder, weights={"0.bias": torch.ones(4)})
        ...     _ = load_base(net, folder)
        >>> net[0].bias.tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    backbone, folder = _in_order(backbone, folder)
    extra = adapter_json(folder / "metapeft.json")
    if "base_sha256" not in extra:
        raise ValueError(f"{folder} has no base/: its adapter belongs to the backbone's own weights")
    base = base_tensors(folder, extra)
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


def _in_order(backbone: Any, folder: Any) -> tuple[nn.Module, Path]:
    """Backbone and folder, in whichever order they were given."""
    if isinstance(folder, nn.Module) and not isinstance(backbone, nn.Module):
        warnings.warn(
            "load_base(folder, backbone) is the order of 0.2: write load_base(backbone, folder), as PEFT has it; "
            "the old order goes with the next version",
            FutureWarning,
            stacklevel=3,
        )
        backbone, folder = folder, backbone
    check_pair(backbone, folder)
    return backbone, Path(folder)


def check_pair(backbone: object, folder: object) -> None:
    """Raise ValueError for what is no backbone and no folder.

    Example:
        >>> check_pair("adapter", torch.nn.Linear(2, 2))
        Traceback (most recent call last):
        ValueError: backbone is of type str: a torch.nn.Module is needed, and the adapter's folder after it
    """
    if not isinstance(backbone, nn.Module):
        kind = type(backbone).__name__
        raise ValueError(
            f"backbone is of type {kind}: a torch.nn.Module is needed, and the adapter's folder after it"
        )
    if not isinstance(folder, str | Path):
        raise ValueError(f"folder is of type {type(folder).__name__}: the path of an adapter is needed")


def source_of(backbone: nn.Module) -> tuple[str | None, str | None]:
    """Name and revision of a pretrained model, as transformers and timm note them on it; None where nobody says.

    Example:
        >>> source_of(nn.Linear(2, 2))
        (None, None)
    """
    config = getattr(backbone, "config", None)
    name, revision = getattr(config, "_name_or_path", None), getattr(config, "_commit_hash", None)
    if not name:
        own = getattr(backbone, "pretrained_cfg", None)
        own = own if isinstance(own, Mapping) else {}
        architecture, tag = own.get("architecture"), own.get("tag")
        name = f"timm/{architecture}.{tag}" if architecture and tag else None
    return (str(name) if name else None), (str(revision) if revision else None)


def weights_digest(backbone: nn.Module, without: Collection[str] = ()) -> str:
    """The SHA-256 of a backbone's floating-point weights and stored buffers, in float32, by their names.

    Args:
        without: names that are left out, such as those of a classifier that is saved whole.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> weights_digest(net) == weights_digest(net.double()), weights_digest(net) == weights_digest(nn.Linear(2, 2))
        (True, False)
    """
    found = hashlib.sha256()
    state = backbone.state_dict()
    for name in sorted(state.keys() - set(without)):
        value = state[name]
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            continue
        value = torch.view_as_real(value) if value.is_complex() else value
        plain = value.detach().to("cpu", torch.float32).contiguous()
        found.update(f"{name} {tuple(plain.shape)}\n".encode())
        found.update(plain.numpy().data)
    return found.hexdigest()


def check_trained_on(
    folder: Path,
    extra: Mapping[str, Any],
    config: Mapping[str, Any],
    backbone: nn.Module,
    whole: Collection[str],
) -> None:
    """Raise ValueError where a backbone's weights are not those that the adapter was trained on.

    Args:
        extra, config: of the folder, `metapeft.json` and `adapter_config.json`. whole: names that it brings itself.
    """
    if "base_sha256" in extra:
        state = backbone.state_dict(keep_vars=True)
        for name, value in base_tensors(folder, extra).items():
            own = state.get(name)
            if own is None or own.shape != value.shape or not torch.equal(own.detach().to(value), value):
                raise ValueError(
                    f"the adapter was trained on other weights ({name!r} differs): load_base() first"
                )
        return
    said = extra.get("backbone_sha256")
    if said is None or said == weights_digest(backbone, whole):
        return
    source, revision = config.get("base_model_name_or_path"), config.get("revision")
    known = f", {source}" + (f" of revision {revision}" if revision else "") if source else ""
    raise ValueError(
        f"the adapter in {folder} was trained on other weights{known}: their SHA-256 differs from this backbone's. "
        "Load those, in the type they had then; check_base=False takes this backbone as it is"
    )


def base_tensors(folder: Path, extra: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights in `base/`; raises ValueError where they are not what was exported."""
    path = folder / "base" / "model.safetensors"
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != extra["base_sha256"]:
        raise ValueError(f"{path} is missing or not the file that was exported: its SHA-256 differs")
    return adapter_tensors(path)


def adapter_json(path: Path) -> dict[str, Any]:
    """An object of JSON in an adapter's folder; raises ValueError for anything else."""
    if not path.exists():
        raise ValueError(f"{path} is missing: is {path.parent} an adapter folder?")
    found = read_json(path, again="it is no JSON of an adapter, but a damaged or foreign file")
    if not isinstance(found, dict):
        raise RunError(f"{path} is a {type(found).__name__} of JSON, an adapter has an object there")
    return found


def adapter_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file in an adapter's folder, all finite; raises ValueError otherwise."""
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
