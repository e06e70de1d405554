"""A picture as part of a page, whose colours it takes. Loads no torch."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Mapping


def inline(document: str, description: str, colours: Mapping[str, str]) -> str:
    """Turn an SVG document into an element of a page: no prolog, names of its own, colours of the page.

    Args:
        document: as matplotlib writes it. description: is read aloud.
        colours: as the document has them, in lower case -> what CSS shall read.

    Example:
        >>> inline('<?xml version="1.0"?><svg width="5" id="a"><use href="#a"/></svg>', "x > y", {})
        '<svg role="img" aria-label="x &gt; y" width="5" id="f-ddd940-a"><use href="#f-ddd940-a"/></svg>'
    """
    element = re.sub(r"<metadata>.*?</metadata>", "", document[document.index("<svg") :].strip(), flags=re.S)
    prefix = f"f-{hashlib.sha256(element.encode()).hexdigest()[:6]}-"
    element = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}", element)
    if colours:
        every = re.compile("|".join(map(re.escape, colours)))
        element = every.sub(lambda found: colours[found.group()], element)
    return element.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)
