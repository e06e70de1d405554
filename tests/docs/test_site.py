"""The pages of the site: every block of Python runs, every public name has a place, and the site is built whole."""

from __future__ import annotations

import importlib.util
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import metapeft
from tests.public_names import package_of, sources, tables

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [DOCS / "index.md", *sorted(DOCS.glob("concepts/*.md")), *sorted(DOCS.glob("howto/*.md"))]
LONG = {"index", "coming", "gpu", "resume", "backbone", "generator", "normalisation"}
sys.path.append(str(DOCS / "hooks"))
public_pages: Any = importlib.import_module("public_pages")


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page.stem in LONG else ()) for page in PAGES],
    ids=[page.stem for page in PAGES],
)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a page one after the other, as one script; blocks marked `py` are other libraries'."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    assert blocks
    monkeypatch.chdir(tmp_path)
    Path("page.py").write_text("\n".join(blocks), encoding="utf-8")
    runpy.run_path("page.py")


def test_every_public_name_has_a_place_in_the_reference() -> None:
    placed = {source for page in public_pages.PAGES for source in public_pages.names(page).values()}
    wanted = {
        source.replace(":", ".") for table in tables() for source in sources(package_of(table)).values()
    }
    spaces = {f"metapeft.{name}" for name in metapeft._NAMESPACES}
    wanted |= {source.replace(":", ".") for source in sources("metapeft").values()} - spaces
    wanted -= {"metapeft.experiments.report"}  # a namespace too
    assert wanted - placed == set()
    assert set(metapeft._NAMESPACES) == set(public_pages.PAGES) - {"training"}
    for name, text in public_pages.pages().items():
        if name != "index":
            assert re.findall(r"^::: (\S+)$", text, flags=re.M) == list(public_pages.names(name).values())


def test_a_name_without_docstring_is_refused() -> None:
    with pytest.raises(ValueError, match="has no docstring"):
        public_pages.summary("metapeft.inner.solver.nothing")


@pytest.mark.skipif(importlib.util.find_spec("griffe") is None, reason="needs the extra docs")
def test_docstrings_of_several_arguments_a_line() -> None:
    docstrings: Any = importlib.import_module("docstrings")
    text = "Cut.\n\nArgs:\n    a, b: sizes (low: 0. high: 9). c: whether\n        to cut.\n\nReturns: all. rest: none."
    said = docstrings.rewritten(text)
    assert said.splitlines()[3:6] == [
        "    a: sizes (low: 0. high: 9).",
        "    b: sizes (low: 0. high: 9).",
        "    c: whether to cut.",
    ]
    assert "**Returns:** all. rest: none." in said


class Found(HTMLParser):
    """Ids, and what a page fetches by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.ids.add(own.get("id") or "")
        source = own.get("href") if tag == "link" else own.get("src")
        if own.get("rel") != "canonical" and source:
            self.fetched.append(source)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ids: set[str] = set()
    for path in sorted(tmp_path.rglob("*.html")):
        found = Found()
        found.feed(path.read_text(encoding="utf-8"))
        ids |= found.ids if "reference" in path.parts else set()
        outside = [source for source in found.fetched if re.match(r"(https?:)?//", source)]
        assert outside == [], f"{path.name} asks another server"
    placed = {source for page in public_pages.PAGES for source in public_pages.names(page).values()}
    assert placed - ids == set()
