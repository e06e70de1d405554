"""What a learner is, to be read: a line, and a table of its groups of tensors."""

from __future__ import annotations

import html
import io
import re
from collections import Counter
from dataclasses import dataclass

from metapeft.learner.roles import Roles


@dataclass(frozen=True)
class Group:
    """Tensors of one role: how many, how many numbers, and who moves them.

    Args:
        name: of the group. tensors, numbers: in it. moved_by: `"outer loop"`, `"inner solver"`, `"nobody"`, ...
    """

    name: str
    tensors: int
    numbers: int
    moved_by: str


@dataclass(frozen=True)
class Summary:
    """A learner as a table; printed it is one for the terminal, in a notebook one of HTML.

    Args:
        title: the learner in a line. groups: the rows.

    Example:
        >>> print(Summary("maml", (Group("weights", 2, 1100, "outer loop"),)).groups[0].numbers)
        1100
    """

    title: str
    groups: tuple[Group, ...]

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=self.title, title_justify="left")
        for column in ("tensors of", "how many", "numbers", "moved by"):
            table.add_column(column, justify="right" if column in ("how many", "numbers") else "left")
        for group in self.groups:
            table.add_row(group.name, str(group.tensors), f"{group.numbers:,}", group.moved_by)
        text = io.StringIO()
        Console(file=text, width=110).print(table)
        return text.getvalue().rstrip()

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        head = "".join(f"<th>{name}</th>" for name in ("tensors of", "how many", "numbers", "moved by"))
        rows = "".join(
            f"<tr><td>{html.escape(g.name)}</td><td>{g.tensors}</td><td>{g.numbers:,}</td><td>{g.moved_by}</td></tr>"
            for g in self.groups
        )
        return f"<table><caption>{html.escape(self.title)}</caption><tr>{head}</tr>{rows}</table>"


def summarised(roles: Roles) -> Summary:
    """The groups of a learner's tensors: the outer ones, what inner solver and generator move, and what stays."""
    groups = []
    for name in dict.fromkeys(name.partition(".")[0] for name in roles.variables):
        own = {n: v for n, v in roles.variables.items() if n.partition(".")[0] == name}
        trained = [n for n in own if n in roles.trained]
        moved = "outer loop" if trained else "nobody"
        if name == "factors":
            movers = ["outer loop (their starts)"] * bool(trained)
            movers += ["inner solver"] * bool(roles.adapted)
            movers += ["generator"] * (roles.generator is not None)
            moved = ", ".join(movers) or "nobody"
        groups.append(Group(name, len(own), sum(value.numel() for value in own.values()), moved))
    still = [
        n for n in roles.model.parameters if f"weights.{n}" not in roles.variables and n not in roles.dropped
    ]
    if still:
        numbers = sum(roles.model.parameters[name].numel() for name in still)
        groups.append(Group("frozen weights", len(still), numbers, "nobody"))
    if roles.adapts_head:
        groups.append(Group(f"head ({roles.head_label})", 2, 0, "inner solver"))
    return Summary(described(roles), tuple(groups))


def described(roles: Roles) -> str:
    """A learner in a line: its method, backbone, updates, loops, and how many numbers are trained."""
    formats = Counter(str(site.format) for site in roles.model.sites.values())
    updates = ", ".join(f"{format} on {count}" for format, count in formats.items()) or "no update"
    backbone = getattr(roles.model.module, "made_by", None)
    name = type(roles.model.module).__name__ if backbone is None else str(backbone.get("name", "backbone"))
    parts = [
        f"{name} with {updates} parameter(s)" if formats else f"{name}, {updates}",
        f"inner {_short(roles.inner)}" if roles.inner is not None else "no inner loop",
        f"outer {', '.join(roles.outer)}" if roles.outer else "nothing trained",
        f"head {roles.head_label}",
    ]
    if roles.generator is not None:
        parts.append(f"seeds from {type(roles.generator).__name__}")
    if roles.selection is not None:
        parts.append("terms selected")
    trained = sum(value.numel() for value in roles.trained.values())
    there = sum(value.numel() for value in roles.variables.values())
    return f"{roles.name}: {'; '.join(parts)}; {trained:,} of {there:,} numbers trained"


def _short(inner: object) -> str:
    """The solver with its number of steps and rate, whatever else it has.

    Example:
        >>> from metapeft.inner import SGD
        >>> _short(SGD(5, 0.1, rates="step"))
        'SGD(steps=5, lr=0.1)'
    """
    said = re.findall(r"\b(?:steps|lr)=[\w.e+-]+", repr(inner))
    return f"{type(inner).__name__}({', '.join(said)})"
