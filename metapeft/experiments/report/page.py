"""The page: text, tables and figures in one HTML file, without scripts, links or fonts from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from metapeft.base.files import write_atomically


@dataclass(frozen=True)
class Figure:
    """A picture with its caption.

    Attributes:
        svg: an `<svg>` element, as the functions of this folder return it.
        caption: a sentence under it: what is drawn, and what to see.
        large: whether it takes more room than others.

    Example:
        >>> Figure("<svg></svg>", "Nothing.").caption
        'Nothing.'
    """

    svg: str
    caption: str = ""
    large: bool = False

    @property
    def markup(self) -> Markup:
        """The picture for the template, which takes any other text literally; it is ours, not a user's."""
        return Markup(self.svg)


@dataclass(frozen=True)
class Table:
    """A table, with the protocol of its numbers under it.

    Attributes:
        columns: headings; the first column is read as names, the others as numbers.
        rows: texts, as many a row as there are columns.
        protocol: what the numbers were measured under: ways, shots, episodes, seed, split, interval.
        best: row and column of each cell to be seen first.

    Raises:
        ValueError: if a row has another length than the headings.

    Example:
        >>> Table(["method", "accuracy"], [["SR + LoRA", "91.2 ± 0.6"]], "5-way 1-shot, 600 episodes").columns
        ['method', 'accuracy']
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    protocol: str = ""
    best: Collection[tuple[int, int]] = field(default=())

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"row {list(row)}: must have {len(self.columns)} entries, as the headings have"
                )


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it, in this order: text, terms explained, tables, figures.

    On a wide screen the figures stand to the right of the rest.

    Example:
        >>> Section("Ranks", text="Rounded by threshold.").heading
        'Ranks'
    """

    heading: str
    text: str = ""
    tables: Sequence[Table] = field(default=())
    figures: Sequence[Figure] = field(default=())
    terms: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> bool:
        """Whether there is something on either side."""
        return bool(self.figures) and bool(self.text or self.terms or self.tables)

    @property
    def large(self) -> bool:
        """Whether its figures need more room than others."""
        return any(figure.large for figure in self.figures)


def write_report(
    folder: str | os.PathLike[str],
    title: str,
    sections: Sequence[Section],
    facts: Mapping[str, str] | None = None,
    verdict: str = "",
    command: str = "",
) -> Path:
    """Write `report.html`, which any browser shows offline, in light and dark, on a desk and on a phone.

    Args:
        folder: where; it must exist.
        title: of the page.
        sections: from top to bottom.
        facts: short lines under the title: seed, commit, machine, time.
        verdict: the sentence that the page opens with. command: what made it, to be typed again.

    Returns:
        The file.

    Raises:
        RunError: if it cannot be written; an older report is untouched.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_report(folder, "A < B", [Section("Accuracy", text="Both.")])
        ...     "<h1>A &lt; B</h1>" in path.read_text()
        True
    """
    loader = PackageLoader("metapeft.experiments.report", "")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = pages.get_template("page.html").render(
        title=title, sections=sections, facts=dict(facts or {}), verdict=verdict, command=command
    )
    path = Path(folder) / "report.html"
    write_atomically(path, page.encode())
    return path
