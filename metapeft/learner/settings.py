"""Settings that a program can read: what an object is called and what it was made of, and the way back.

A spec is `{"name": <public name>, "fields": {...}}` for what stands in a registry of the package; what is a
user's own becomes `{"custom": <its name>}`, and has to be given again by keyword. Nothing is evaluated or
unpickled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metapeft.base.registry import Registry
from metapeft.base.state import digest
from metapeft.base.stored_settings import as_json, custom, refuse_difference
from metapeft.datasets.images import Preprocess
from metapeft.generators.table import registry as generators
from metapeft.heads.table import registry as heads
from metapeft.hypergradients.table import registry as hypergradients
from metapeft.inner.solver import Solver
from metapeft.inner.table import registry as inner
from metapeft.learner.roles import Roles
from metapeft.updates.table import registry as updates

_TABLES = (updates, heads, generators, inner, hypergradients)


def of(value: Any) -> Any:
    """The spec of a setting.

    Example:
        >>> from metapeft.updates.formats.lora import LoRA
        >>> of(LoRA(rank=2)), of(len)
        ({'name': 'LoRA', 'fields': {'rank': 2, 'alpha': None}}, {'custom': 'len'})
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return {"tensor": value.detach().cpu().tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, list | tuple):
        return [of(item) for item in value]
    if isinstance(value, Preprocess):
        return {
            "name": "Preprocess",
            "fields": {
                "mean": value.mean.flatten().tolist(),
                "deviation": value.deviation.flatten().tolist(),
            },
        }
    if _is_setting(type(value)) and any(table.made(value) for table in _TABLES):
        return {
            "name": type(value).__name__,
            "fields": {name: of(item) for name, item in _fields(value).items()},
        }
    return custom(value)


def built(spec: Any, part: str) -> Any:
    """What a spec stands for; raises ValueError for what is a user's own, which `part=` has to give.

    Example:
        >>> built({"name": "LoRA", "fields": {"rank": 2, "alpha": None}}, "format")
        LoRA(rank=2, alpha=None)
    """
    if isinstance(spec, list):
        return tuple(built(item, part) for item in spec)
    if not isinstance(spec, Mapping):
        return spec
    if "tensor" in spec:
        return torch.tensor(spec["tensor"], dtype=getattr(torch, spec["dtype"]))
    if "custom" in spec:
        raise ValueError(
            f"{part}= is missing: the run was made with {spec['custom']!r}, which is of your own"
        )
    name = spec["name"]
    known = [table.attribute(name) for table in _TABLES if name in table]
    made_by = Preprocess if name == "Preprocess" else next(filter(_is_setting, known), None)
    if made_by is None:
        raise ValueError(f"{part} is a {name!r}, which this version of metapeft does not have")
    return made_by(**{name: built(item, part) for name, item in spec["fields"].items()})


def given_or_built(part: str, spec: Any, given: Any, describe: Callable[[Any], Any] = of) -> Any:
    """What the spec stands for, or what was given in its place.

    Raises:
        ValueError: something missing that is a user's own, or given and different from what is stored.
    """
    if given is None:
        return built(spec, part)
    refuse_difference(part, spec, as_json(describe(given)))
    return given


def string_name(value: Any, registry: Registry) -> str:
    """The string that users write for an object of a registry; the name of its class for one of their own."""
    for name, attribute in registry.names.items():
        if attribute == type(value).__name__ and type(value) is registry.attribute(attribute):
            return name
    return type(value).__name__


def of_loss(loss: Any) -> Any:
    """A loss of `torch.nn.functional` by its name, any other as the user's own.

    Example:
        >>> of_loss(F.mse_loss)
        {'functional': 'mse_loss'}
    """
    name = getattr(loss, "__name__", "")
    return {"functional": name} if name and getattr(F, name, None) is loss else custom(loss)


def of_backbone(module: nn.Module) -> dict[str, Any]:
    """How one of `mp.backbones` was made; any other module as the user's own."""
    return getattr(module, "made_by", None) or custom(module)


def of_learner(roles: Roles) -> dict[str, Any]:
    """Everything that a learner was made of; shapes of its variables, and a hash of what it never trains."""
    model = roles.model
    later = {"inner_loss": roles.inner_loss, "batch_loss": roles.batch_loss}  # runs of before have none
    return {
        "method": roles.name,
        "backbone": of_backbone(model.module),
        "frozen": frozen_hash(model.module, roles.trainable, roles.dropped),
        "formats": {name: of(site.format) for name, site in model.sites.items()},
        "norm": model.norm,
        "preprocess": of(model.preprocess),
        "output": None if model.output is None else custom(model.output),
        "classifier": model.classifier if model.classifier_is_certain else "auto",
        "dtype": str(roles.like.dtype).removeprefix("torch."),
        "inner": of(roles.inner),
        "adapt": roles.adapted,
        "hypergradient": of(roles.method),
        "outer": list(roles.outer),
        "head": of(roles.head),
        "generator": of(roles.generator),
        "features": features_hash(roles.generator),
        "selection": of(roles.selection),
        "inner_data": roles.inner_data,
        "autocast": None if roles.autocast is None else str(roles.autocast).removeprefix("torch."),
        "dropout": roles.dropout or None,  # None, as in runs from before there was any
        "loss": of_loss(roles.loss),
        **{name: of_loss(loss) for name, loss in later.items() if loss is not None},
        "test_steps": roles.test_steps,
        "seed": roles.seed,
        "shapes": {name: list(value.shape) for name, value in roles.variables.items()},
    }


def frozen_hash(module: nn.Module, trainable: Iterable[str], dropped: Iterable[str]) -> str | None:
    """16 digits of the SHA-256 of the parameters that no state holds; None where there are none."""
    held = {*trainable, *dropped}
    frozen = [(name, value) for name, value in module.named_parameters() if name not in held]
    return digest(dict(frozen)) if frozen else None


def features_hash(generator: Any) -> str | None:
    """The digest of a generator's own frozen feature module; None where it has none."""
    features = getattr(generator, "features", None)
    if not isinstance(features, nn.Module) or generator.train_features:
        return None
    return digest(features.state_dict())


def _is_setting(kind: Any) -> bool:
    """Whether objects of a class are settings, which their arguments build again."""
    return isinstance(kind, type) and (issubclass(kind, Solver) or dataclasses.is_dataclass(kind))


def _fields(value: Any) -> dict[str, Any]:
    """The arguments that build an object again."""
    if isinstance(value, Solver):
        return value.settings()
    fields = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {
        field.name: given
        for field, given in fields.items()
        if given != field.default or "later" not in field.metadata
    }
