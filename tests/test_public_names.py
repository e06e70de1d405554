"""Public names: what type checkers see is what the tables hold, and none of it is untyped."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import metapeft as mp
from tests.public_names import COMMAND, ROOT, lazy, package_of, written


@pytest.mark.parametrize("init", lazy(), ids=package_of)
def test_init_is_written_from_its_table(init):
    assert init.read_text(encoding="utf-8") == written(init), f"run `{COMMAND}`"


def test_every_lazy_init_has_a_table():
    inits = (ROOT / "metapeft").rglob("__init__.py")
    assert sorted(path for path in inits if "__getattr__" in path.read_text(encoding="utf-8")) == lazy()


@pytest.mark.parametrize("package", [package_of(init) for init in lazy()])
def test_listed_names_resolve(package):
    """What `__all__` lists can be imported, and `dir` shows no more and no less."""
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None, name
    assert dir(module) == sorted(set(module.__all__) - {"registry"})


def mypy(*files: Path) -> str:
    """What mypy says of files; it finds the package as a user's program does, and says nothing of its own files."""
    pytest.importorskip("mypy", reason="needs mypy: pip install -e '.[lint]'")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", *map(str, files)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout


@pytest.mark.slow
def test_user_program_is_typed():
    assert "Success: no issues found in 1 source file" in mypy(ROOT / "tests/typed_user.py")


@pytest.mark.slow
def test_no_public_name_is_untyped(tmp_path):
    """`reveal_type` of every name, through `mp` and through its own package: an untyped one is `Any`."""
    names = [f"mp.{name}" for name in mp.__all__]
    for init in lazy():
        path = package_of(init).removeprefix("metapeft.experiments.").removeprefix("metapeft.")
        if path != "metapeft":
            names += [f"mp.{path}.{name}" for name in importlib.import_module(package_of(init)).__all__]
    program = tmp_path / "revealed.py"
    program.write_text("import metapeft as mp\n" + "".join(f"reveal_type({name})\n" for name in names))
    found = re.findall(r'^.*:(\d+): note: Revealed type is "(.*)"$', mypy(program), flags=re.M)
    kinds = {names[int(number) - 2]: kind for number, kind in found}
    assert sorted(kinds) == sorted(set(names))
    assert {name for name, kind in kinds.items() if kind == "Any"} == set()
