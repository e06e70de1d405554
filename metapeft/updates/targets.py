"""Which parameters carry which update."""

from __future__ import annotations

import difflib
import fnmatch
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

from metapeft.updates.format import Format, Geometry

log = logging.getLogger("metapeft")

Formats = Format | None | Mapping[str, Format | None]
Targets = str | type[nn.Module] | Sequence[str | type[nn.Module]]


@dataclass(frozen=True)
class Leaf:
    """A module that owns parameters: its name, and its parameters by their name inside it."""

    name: str
    module: nn.Module
    parameters: dict[str, nn.Parameter]

    @property
    def is_layer(self) -> bool:
        """False for a module that owns a loose parameter beside layers of its own (a ViT and its tokens).

        Such a parameter can carry only a full update, and only if its first axis is 1: it then gets one row an input.
        """
        if isinstance(self.module, nn.MultiheadAttention):
            return True
        return sum(1 for _ in self.module.parameters()) == len(self.parameters)


@dataclass(frozen=True)
class Site:
    """A parameter that carries an update."""

    parameter: str
    format: Format
    geometry: Geometry


def leaves(backbone: nn.Module) -> Iterator[Leaf]:
    """Every module that owns parameters; `MultiheadAttention` is one leaf together with its output projection."""
    inside_attention: set[str] = set()
    for name, module in backbone.named_modules():
        if name in inside_attention:
            continue
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.MultiheadAttention):
            own = dict(module.named_parameters())
            inside_attention.update(
                f"{name}.{child}".lstrip(".") for child, _ in module.named_modules() if child
            )
        if own:
            yield Leaf(name, module, own)


def joined(leaf: str, name: str) -> str:
    return f"{leaf}.{name}" if leaf else name


def is_transposed(module: nn.Module) -> bool:
    """Whether the layer stores its weight `(in, out)`: `Embedding`, and GPT-2's `Conv1D`."""
    if isinstance(module, nn.Embedding):
        return True
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def find_classifier(backbone: nn.Module, classifier: str | None) -> str | None:
    """Name of the backbone's classifier: the last `Linear`, the one named, or None."""
    linears = [leaf.name for leaf in leaves(backbone) if isinstance(leaf.module, nn.Linear)]
    if classifier is None:
        return None
    if classifier == "auto":
        return linears[-1] if linears else None
    if classifier not in linears:
        raise ValueError(
            f"classifier={classifier!r} is no Linear of the backbone: it has {', '.join(linears) or 'none'}"
        )
    return classifier


def find_sites(
    backbone: nn.Module, formats: Formats, targets: Targets, classifier: str | None
) -> tuple[dict[str, Site], dict[str, int]]:
    """Choose each parameter's format.

    Args:
        formats: one format for `targets`, or `{pattern: format}`, where the first pattern that matches wins and
            None means no update.
        targets: `"all"`, `"head"` (the classifier), `"body"` (all but it), a glob over parameter or module names,
            a module type, or several of these.

    Returns: sites by parameter name, and the ranks that were cut to what their layer can have.

    Raises:
        ValueError: a pattern that matches nothing, a rank above the layer's, a parameter that cannot carry the
            update; each names it.
    """
    rules = _rules(formats, targets)
    found: dict[str, Site] = {}
    cuts: dict[str, int] = {}
    used = dict.fromkeys(range(len(rules)), False)
    matched = dict.fromkeys(range(len(rules)), False)
    seen: set[int] = set()
    for leaf in leaves(backbone):
        for name, parameter in leaf.parameters.items():
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            full = joined(leaf.name, name)
            for i, (pattern, format) in enumerate(rules):
                named = _matches(pattern, full, leaf, classifier)
                if named is None:
                    continue
                matched[i] = True
                site = None if format is None else _site(full, leaf, parameter, format, named, cuts)
                used[i] = used[i] or format is None or site is not None
                if site is not None:
                    found[full] = site
                break
    _refuse_unused(backbone, rules, matched, used, classifier)
    if cuts:
        log.warning(
            "rank cut to the largest that the layer can have: %s",
            ", ".join(f"{p}: {r}" for p, r in cuts.items()),
        )
    return found, cuts


def _rules(formats: Formats, targets: Targets) -> list[tuple[str | type[nn.Module], Format | None]]:
    if isinstance(formats, Mapping):
        if targets != "all":
            raise ValueError(f"targets={targets!r}: a dict of formats already says where each of them goes")
        rules: list[tuple[str | type[nn.Module], Format | None]] = list(formats.items())
    else:
        several = [targets] if isinstance(targets, str | type) else list(targets)
        rules = [(target, formats) for target in several]
    for pattern, format in rules:
        if not isinstance(pattern, str | type):
            raise ValueError(
                f"targets={pattern!r}: allowed are names, globs, module types, 'all', 'head', 'body'"
            )
        if format is not None and not isinstance(format, Format):
            raise ValueError(
                f"format={format!r}: allowed are Full(), LoRA(), CP(), TensorRing() or {{pattern: format}}"
            )
    return rules


def _matches(pattern: str | type[nn.Module], name: str, leaf: Leaf, classifier: str | None) -> bool | None:
    """None where the pattern does not match; else whether it names the parameter itself, no wildcard."""
    if isinstance(pattern, type):
        return False if isinstance(leaf.module, pattern) else None
    if pattern == "all":
        return False
    if pattern in ("head", "body"):
        return False if (leaf.name == classifier) == (pattern == "head") else None
    parts = name.split(".")
    owners = [".".join(parts[:i]) for i in range(1, len(parts))]
    if pattern == name or pattern == leaf.name:
        return True
    return False if any(fnmatch.fnmatchcase(text, pattern) for text in (name, *owners)) else None


def _site(
    name: str, leaf: Leaf, parameter: nn.Parameter, format: Format, named: bool, cuts: dict[str, int]
) -> Site | None:
    """The site of one matched parameter; None where the format does not act on parameters of its kind."""
    geometry = Geometry(tuple(parameter.shape), is_transposed(leaf.module) and parameter.dim() == 2)
    if not format.fits(geometry):
        return None
    if leaf.is_layer:
        refuse_leaf(name, leaf, format)
    elif geometry.shape[0] != 1 or (named and not format.dense):
        raise ValueError(
            f"{name!r} of shape {geometry.shape} is owned by {type(leaf.module).__name__}, which is no layer: "
            f"{type(format).__name__} cannot act on it; name the targets without it, or move it to a module of its own"
        )
    elif not format.dense:
        return None
    cut = format.cut(geometry.limit) if len(geometry.shape) >= 2 else format
    if cut != format:
        if named:
            raise ValueError(
                f"{format} on {name!r} of shape {geometry.shape}: the largest rank it can have is {geometry.limit}"
            )
        cuts[name] = geometry.limit
    return Site(name, cut, geometry)


def refuse_leaf(name: str, leaf: Leaf, format: Format) -> None:
    """Raise ValueError for a parameter whose module cannot carry this update."""
    module = leaf.module
    why = ""
    if parametrize.is_parametrized(module) or isinstance(module, parametrize.ParametrizationList):
        why = "its module is parametrised; remove the parametrisation first (torch.nn.utils.parametrize)"
    elif any(isinstance(parameter, nn.UninitializedParameter) for parameter in leaf.parameters.values()):
        why = "its lazy module has no shape yet; run the backbone once first"
    elif isinstance(module, nn.Embedding) and (
        module.max_norm is not None or module.sparse or module.scale_grad_by_freq
    ):
        why = "an Embedding with max_norm, sparse or scale_grad_by_freq changes its weight or gradient on its own"
    elif (
        isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) and not format.dense
    ):
        why = "a transposed convolution is stored (in, out, *kernel); only Full acts on it"
    elif isinstance(module, nn.RNNBase):
        why = "recurrent layers have no batched form with a weight per task"
    if why:
        raise ValueError(
            f"{type(format).__name__} cannot be attached to {name!r} ({type(module).__name__}): {why}"
        )


def _refuse_unused(
    backbone: nn.Module,
    rules: list[tuple[str | type[nn.Module], Format | None]],
    matched: dict[int, bool],
    used: dict[int, bool],
    classifier: str | None,
) -> None:
    for i, (pattern, format) in enumerate(rules):
        if used[i] or (pattern == "all" and format is None):
            continue
        names = [name for name, _ in backbone.named_parameters()]
        if matched[i]:
            raise ValueError(
                f"{pattern!r} matches only parameters that {type(format).__name__} cannot act on "
                "(LoRA, CP and TensorRing need two or more dimensions; use Full)"
            )
        if pattern == "head" and classifier is None:
            raise ValueError("targets='head' but the backbone has no classifier: name it with classifier=")
        text = pattern if isinstance(pattern, str) else pattern.__name__
        modules = [name for name, _ in backbone.named_modules() if name]
        near = difflib.get_close_matches(text, [*names, *modules], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        raise ValueError(
            f"target {text!r} matches no parameter that is still free; the backbone has {shown}{hint}"
        )
