"""Which parameters carry which update."""

from __future__ import annotations

import fnmatch
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from metapeft.base.suggestions import did_you_mean
from metapeft.updates.formats.format import Format, Geometry
from metapeft.updates.formats.site import Site
from metapeft.updates.leaf import LeafModule, is_transposed, leaf_modules
from metapeft.updates.refusals import why_no_update, why_not_modulated

log = logging.getLogger("metapeft")

Pattern = str | type[nn.Module]
Formats = Format | None | Mapping[Pattern, Format | None]
Targets = Pattern | Sequence[Pattern]


@dataclass
class Rule:
    """One pattern and its format; `matched`, `frozen` and `used` count parameters it met, left out and updates.

    `refused`: why a parameter that it met carries no update, by name.

    `is_name` says that some parameter or module is called so: then it is no glob, whatever is in it (`[a]`, `x?`).
    """

    pattern: Pattern
    format: Format | None
    is_name: bool = False
    matched: int = field(default=0)
    frozen: int = field(default=0)
    used: int = field(default=0)
    refused: dict[str, str] = field(default_factory=dict)

    def names(self, name: str, leaf: LeafModule, classifier: str | None) -> bool | None:
        """None where the pattern doesn't match; else whether it names it without a wildcard."""
        pattern = self.pattern
        if isinstance(pattern, type):
            return False if isinstance(leaf.module, pattern) else None
        if pattern == "all":
            return False
        if pattern in ("head", "body"):
            return False if (leaf.name == classifier) == (pattern == "head") else None
        if pattern in (name, leaf.name):
            return True
        parts = name.split(".")
        texts = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
        if self.is_name:
            return False if pattern in texts else None
        return False if any(fnmatch.fnmatchcase(text, pattern) for text in texts) else None


def find_classifier(backbone: nn.Module, classifier: str | None) -> str | None:
    """Name of the backbone's classifier: the last `Linear`, the one named, or None."""
    linears = [leaf.name for leaf in leaf_modules(backbone) if isinstance(leaf.module, nn.Linear)]
    if classifier is None:
        return None
    if classifier == "auto":
        return linears[-1] if linears else None
    if classifier not in linears:
        found = ", ".join(linears) or "none"
        raise ValueError(f"classifier={classifier!r} is no Linear of the backbone: it has {found}")
    return classifier


def find_sites(
    backbone: nn.Module,
    formats: Formats,
    targets: Targets,
    classifier: str | None,
    left_out: dict[str, str] | None = None,
) -> dict[str, Site]:
    """Choose each parameter's format; a rank that is cut to what a layer can have is logged as a warning.

    Args:
        formats: one format for `targets`, or `{pattern: format}`, where the first pattern that matches wins
            and None means no update. `Full` leaves a parameter out that the user froze (`requires_grad=False`, where
            others do ask for gradients), unless a pattern is its name or that of a module around it.
        targets: `"all"`, `"head"` (the classifier), `"body"` (all but it), a glob over parameter or module
            names, a module type, or several of these.
        classifier: the classifier's name, or None.
        left_out: receives what cannot carry the update and is not named: parameter -> why.

    Returns: sites by parameter name; a tied parameter stands once, under its first name.

    Raises:
        ValueError: a pattern that matches nothing, or only what cannot carry the update; a parameter or layer that
            is named and cannot, a rank above a named layer's; each names it.
    """
    rules = _rules(formats, targets)
    called = {name for name, _ in backbone.named_parameters(remove_duplicate=False)}
    called.update(name for name, _ in backbone.named_modules(remove_duplicate=False))
    for rule in rules:
        rule.is_name = rule.pattern in called
    some_are_trained = any(parameter.requires_grad for parameter in backbone.parameters())
    found: dict[str, Site] = {}
    cuts: dict[str, int] = {}
    first_names = {parameter: name for name, parameter in backbone.named_parameters()}
    leaves = list(leaf_modules(backbone))
    in_layers = {p for leaf in leaves if leaf.is_layer for p in leaf.parameters.values()}
    decided: set[nn.Parameter] = set()
    owners = Counter(parameter for leaf in leaves for parameter in leaf.parameters.values())
    plain: list[str] = []
    for leaf in leaves:
        for local, parameter in leaf.parameters.items():
            if parameter in decided or (parameter in in_layers and not leaf.is_layer):
                continue  # a tied parameter belongs to the first layer that has it and that a pattern matches
            for rule in rules:
                named = rule.names(f"{leaf.name}.{local}" if leaf.name else local, leaf, classifier)
                if named is None:
                    continue
                decided.add(parameter)
                rule.matched += 1
                name = first_names[parameter]
                if some_are_trained and _stays_frozen(parameter, rule):
                    rule.frozen += 1
                    break
                site = None if rule.format is None else _site(name, leaf, parameter, rule, named, cuts)
                if site is not None and (site.format.shift or site.format.gate):
                    site = _modulated(site, leaf, local, named, owners[parameter] > 1, plain)
                if site is not None:
                    found[name] = site
                rule.used += rule.format is None or site is not None
                break
    for rule in rules:
        _refuse_unused(backbone, rule, classifier)
        if left_out is not None:
            left_out.update(rule.refused)
    if cuts:
        shown = ", ".join(f"{name} to {rank}" for name, rank in cuts.items())
        log.warning("ranks cut to the largest that the layer can have: %s", shown)
    if plain:
        log.warning("no shift and gate where a layer cannot have them: %s", ", ".join(plain))
    return found


def patterns(targets: Targets) -> list[Pattern]:
    """`targets=` as a list; raises ValueError for what is no pattern."""
    several: list[Any] = list(targets) if isinstance(targets, list | tuple | set) else [targets]
    if not several:
        raise ValueError(f"targets={targets!r} names nothing: for no update at all the format is {{}}")
    for target in several:
        if not isinstance(target, str | type):
            raise ValueError(
                f"targets={target!r}: allowed are names, globs, module types, 'all', 'head', 'body', lists"
            )
    return several


def note_left_out(left_out: Mapping[str, str], formats: Formats, targets: Targets) -> None:
    """Say once what carries no update, why, and which dictionary of formats says the same."""
    same: dict[Any, Any] = dict.fromkeys(left_out)
    same.update(formats if isinstance(formats, Mapping) else dict.fromkeys(patterns(targets), formats))
    log.warning(
        "without an update are: %s; attach(backbone, {%s}) says the same",
        "; ".join(dict.fromkeys(left_out.values())),
        ", ".join(f"{pattern!r}: {format}" for pattern, format in same.items()),
    )


def _rules(formats: Formats, targets: Targets) -> list[Rule]:
    if isinstance(formats, Mapping):
        if targets != "all":
            raise ValueError(f"targets={targets!r}: a dict of formats already says where each of them goes")
        rules = [Rule(pattern, formats[pattern]) for pattern in (patterns(list(formats)) if formats else ())]
    else:
        rules = [Rule(target, formats) for target in patterns(targets)]
    for rule in rules:
        if rule.format is not None and not isinstance(rule.format, Format):
            raise ValueError(
                f"format={rule.format!r}: allowed are Full(), LoRA(), CP(), TensorRing(), {{pattern: format}}"
            )
    return rules


def _stays_frozen(parameter: nn.Parameter, rule: Rule) -> bool:
    """Whether the user froze a parameter, and names it in no pattern: an update of its own size would train it."""
    return rule.format is not None and rule.format.dense and not parameter.requires_grad and not rule.is_name


def _site(
    name: str, leaf: LeafModule, parameter: nn.Parameter, rule: Rule, named: bool, cuts: dict[str, int]
) -> Site | None:
    """The site of one matched parameter; None where the format does not act on parameters of its kind, or cannot.

    Raises:
        ValueError: it cannot, and the user named it.
    """
    format = rule.format
    if format is None:
        return None
    stored_in_out = is_transposed(leaf.module) and parameter.dim() >= 2
    geometry = Geometry(tuple(parameter.shape), stored_in_out)
    normalisation = isinstance(leaf.module, nn.LayerNorm | nn.RMSNorm)  # whose weights may have several axes
    if not format.fits(geometry) or (normalisation and not format.dense):
        return None
    if not (leaf.is_layer or format.dense or named) and (geometry.limit < 2 or parameter.shape[0] == 1):
        return None  # a token or a scale, no matrix
    why = why_no_update(parameter, leaf.module, format)
    if why:
        said = f"{type(format).__name__} cannot act on {name!r} ({type(leaf.module).__name__}): {why}"
        if named:
            raise ValueError(said)
        rule.refused[name] = said
        return None
    if format.dense:
        return Site(name, format, geometry, named)
    cut = format.cut(geometry.limit)
    if cut != format:
        if named:
            raise ValueError(
                f"{format} on {name!r} of shape {geometry.shape}: its largest rank is {geometry.limit}"
            )
        cuts[name] = geometry.limit
    return Site(name, cut, geometry, named)


def _modulated(site: Site, leaf: LeafModule, local: str, named: bool, tied: bool, plain: list[str]) -> Site:
    """The site, without shift and gate where the layer cannot have them; refused where the user named it."""
    why = why_not_modulated(leaf, local, tied)
    if not why:
        return site
    if named:
        raise ValueError(f"{site.format} on {site.parameter!r} ({type(leaf.module).__name__}): {why}")
    plain.append(site.parameter)
    return replace(site, format=site.format.unmodulated())


def _refuse_unused(backbone: nn.Module, rule: Rule, classifier: str | None) -> None:
    """Raise ValueError for a pattern without effect, with the nearest name."""
    if rule.used or (rule.pattern == "all" and rule.format is None):
        return
    if rule.refused:
        raise ValueError(next(iter(rule.refused.values())))
    if rule.frozen:
        raise ValueError(
            f"target {rule.pattern!r} matches no parameter that Full may move: {rule.frozen} are frozen "
            "(requires_grad=False); name them, or let them ask for gradients"
        )
    if rule.matched:
        raise ValueError(
            f"target {rule.pattern!r} matches only parameters that {type(rule.format).__name__} cannot "
            "act on (LoRA, CP and TensorRing need two or more dimensions: use Full)"
        )
    if rule.pattern == "head" and classifier is None:
        raise ValueError("targets='head' but the backbone has no classifier: name it with classifier=")
    text = rule.pattern if isinstance(rule.pattern, str) else rule.pattern.__name__
    names = [name for name, _ in backbone.named_parameters()]
    modules = [name for name, _ in backbone.named_modules() if name]
    hint = did_you_mean(text, [*names, *modules])
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    raise ValueError(
        f"target {text!r} matches no parameter that is still free; the backbone has {shown}{hint}"
    )
