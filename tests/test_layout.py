"""The plan of the house: folders import downwards only, and no files import each other in a circle.

Every import counts, also those inside functions and those for type checkers; what an `__init__` re-exports does not.
"""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import metapeft

ROOT = Path(metapeft.__file__).parent.parent
# from top to bottom: each may import what stands below it
FOLDERS = [
    "cli", "experiments", "training", "methods", "learner", "heads", "generators", "hypergradients", "inner", "updates",
    "episodes", "datasets", "backbones", "base",
]  # fmt: skip


def file_of(module: str) -> Path | None:
    """The file of a module of this repository; None for others."""
    path = ROOT.joinpath(*module.split("."))
    found = path.with_suffix(".py"), path / "__init__.py"
    return next((file for file in found if file.exists()), None)


def imports(file: Path) -> set[Path]:
    """The files that one file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {file_of(name.name) for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            parent = str(node.module)
            found |= {file_of(f"{parent}.{name.name}") or file_of(parent) for name in node.names}
    return {path for path in found if path is not None and path != file}


def graph(package: str) -> dict[Path, set[Path]]:
    """File -> files that it imports, without the `__init__` files."""
    files = [file for file in sorted((ROOT / package).rglob("*.py")) if file.name != "__init__.py"]
    return {file: imports(file) for file in files}


def circle(edges: dict) -> list[str]:
    """The names along a circle; empty where there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return [str(Path(name).relative_to(ROOT)) for name in error.args[1]]
    return []


@pytest.mark.parametrize("package", ["metapeft", "theory"])
def test_nothing_inside_imports_an_init(package):
    used = {
        (str(file.relative_to(ROOT)), str(path.relative_to(ROOT)))
        for file, found in graph(package).items()
        for path in found
        if path.name == "__init__.py" and package == path.relative_to(ROOT).parts[0]
    }
    assert sorted(used) == []


@pytest.mark.parametrize("package", ["metapeft", "theory"])
def test_no_circle_of_files(package):
    assert circle(graph(package)) == []


@pytest.mark.parametrize("package", ["metapeft", "theory"])
def test_no_circle_of_folders(package):
    edges: dict[Path, set[Path]] = {}
    for file, found in graph(package).items():
        own = {path.parent for path in found if path.relative_to(ROOT).parts[0] == package}
        edges.setdefault(file.parent, set()).update(own - {file.parent})
    assert circle(edges) == []


def test_folders_import_downwards():
    assert sorted(
        path.name for path in (ROOT / "metapeft").iterdir() if path.is_dir() and path.name[0] != "_"
    ) == sorted(FOLDERS)
    up = []
    for file, found in graph("metapeft").items():
        folder = file.relative_to(ROOT).parts[1]
        below = FOLDERS[FOLDERS.index(folder) :] if folder in FOLDERS else FOLDERS
        for path in found:
            package, target = path.relative_to(ROOT).parts[:2]
            if package != "metapeft" or target not in below:
                up.append(f"{file.relative_to(ROOT)} imports {path.relative_to(ROOT)}")
    assert up == []


def test_root_is_small():
    assert len([path for path in (ROOT / "metapeft").iterdir() if path.name != "__pycache__"]) <= 19


def test_contributing_shows_the_folders_from_top_to_bottom():
    house = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## The house")[2]
    assert re.findall(r"^(\w+)/  ", house.partition("\n## ")[0], flags=re.M) == FOLDERS
