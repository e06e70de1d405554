"""Docstrings as they are written here, brought into the form that the site's generator reads.

Here several arguments may share a line (`ways: N. mask: (T, S).`) or a sentence (`steps, epochs: how long.`), sections
may begin on the line of their heading, and `Source:` opens a sentence. A public name in backticks becomes a link.
"""

from __future__ import annotations

import re
from typing import Any

import griffe
from public_pages import PAGES, names

_LISTS = ("Args", "Attributes", "Raises", "Warns")
_SECTION = re.compile(rf"^({'|'.join((*_LISTS, 'Returns', 'Example'))}):[ ]?(.*)$")
_NAMES = r"\**[A-Za-z_][\w.]*(?:, \**[A-Za-z_][\w.]*)*"
_ENTRY = re.compile(rf"(?:^|(?<=\. )(?=[a-z*_]|\w+(?:Error|Warning|Input):)){_NAMES}(?=: )")
_PUBLIC = {written: source for page in PAGES for written, source in names(page).items()}
_PUBLIC |= {f"mp.{page}.{written[3:]}": source for page in PAGES for written, source in names(page).items()}


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(text: str) -> str:
    """A docstring in Google's style.

    Example:
        >>> print(rewritten("Cut.\\n\\nArgs:\\n    a, b: sizes. c: whether\\n        to cut."))
        Cut.
        <BLANKLINE>
        Args:
            a: sizes.
            b: sizes.
            c: whether to cut.
    """
    out: list[str] = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        found = _SECTION.match(lines[at])
        if not found:
            out.append(re.sub(r"^(Source|Time|Letters): ", r"\n**\1:** ", linked(lines[at])))
            at += 1
            continue
        heading, first = found.groups()
        body = [first] if first else []
        at += 1
        while at < len(lines) and (not lines[at].strip() or lines[at].startswith("    ")):
            body.append(lines[at][4:])
            at += 1
        if heading == "Returns":
            said = " ".join(line.strip() for line in body if line.strip())
            out += ["", f"**Returns:** {linked(said)}", ""]
        else:
            out += [f"{heading}s:" if heading == "Example" else f"{heading}:", *section(heading, body), ""]
    return "\n".join(out).rstrip()


def section(heading: str, body: list[str]) -> list[str]:
    """The lines of one section."""
    if heading == "Example":
        return [f"    {line}".rstrip() for line in body]
    found = [one for entry in joined(body) for one in entries(entry)]
    return [f"    {name}: {linked(said)}" for name, said in found]


def joined(body: list[str]) -> list[str]:
    """Entries with the lines that go on them in one line each."""
    found: list[str] = []
    for line in body:
        if line.startswith(" ") and found:
            found[-1] += f" {line.strip()}"
        elif line.strip():
            found.append(line.strip())
    return found


def entries(line: str) -> list[tuple[str, str]]:
    """`(name, what is said of it)` of each name on a line; what stands in brackets or backticks opens none."""
    hidden = re.sub(r"`[^`]*`|\([^()]*\)", lambda match: "~" * len(match[0]), line)
    starts = list(_ENTRY.finditer(hidden))
    if not starts or starts[0].start() > 0:
        return [("", line)]
    found = []
    for one, after in zip(starts, [*starts[1:], None]):
        said = line[one.end() + 2 : after.start() if after else len(line)].strip()
        found += [(name.strip(), said) for name in one[0].split(",")]
    return found


def linked(text: str) -> str:
    """The text with links from public names in backticks to their place in the reference."""
    return re.sub(
        r"`(mp(?:\.\w+)+)(\([^`]*\))?`",
        lambda match: f"[{match[0]}][{_PUBLIC[match[1]]}]" if match[1] in _PUBLIC else match[0],
        text,
    )
