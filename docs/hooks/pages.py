"""Pages of the site that are made when it is built: the API reference, the changelog, and figures from benchmarks/."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from public_pages import pages  # noqa: E402

_OUTSIDE = re.compile(r"\]\(\.\./(benchmarks/results/[\w./-]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add what lies outside `docs/`."""
    for name, text in pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    files.append(File.generated(config, "changelog.md", abs_src_path=str(ROOT / "CHANGELOG.md")))
    shown = {
        found for page in (ROOT / "docs").glob("*.md") for found in _OUTSIDE.findall(page.read_text("utf-8"))
    }
    for figure in sorted(shown):
        files.append(File.generated(config, figure, abs_src_path=str(ROOT / figure)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links that leave `docs/`, as they have to on GitHub, to where the figures are in the site."""
    return _OUTSIDE.sub(r"](\1)", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """A number and its interval stay on one line."""
    return html.replace(" ± ", "\u00a0±\u00a0")
