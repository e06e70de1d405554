"""Commands that README, CONTRIBUTING and docs/ show exist, with the options that they are shown with."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import setuptools

from metapeft.cli import run

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
KINDS = ("metapeft ", "python -m ", "pip install ", "torchrun ")


def commands(page: Path) -> set[str]:
    """Single commands in the page's blocks for a shell, and those in its sentences, with placeholders as they are."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash)?\n(.*?)```", text, flags=re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    lines += [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose)]
    single = (part.partition(" #")[0].strip() for line in lines for part in line.split("&&"))
    return {line for line in single if line.startswith(KINDS) and line.split()[1] != "import"}


SHOWN = sorted({(page.name, line) for page in PAGES for line in commands(page)})


def of_shell(line: str) -> list[list[str]]:
    """The words after `metapeft` in a command, wherever it is called."""
    words = shlex.split(line)
    if words[0] == "metapeft":
        return [words[1:]]
    if "metapeft" in words and words[0] == "torchrun":
        return [words[words.index("metapeft") + 1 :]]
    return [words[2:]] if words[:3] == ["python", "-m", "theory"] else []


def helped(words: list[str]) -> str:
    """The help of a command, with that of its own commands where it is one of these."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert run([*words, "--help"]) == 0, words
    return said.getvalue()


def test_the_commands_that_the_readme_begins_with_are_found() -> None:
    own = commands(ROOT / "README.md")
    assert {"metapeft train", "pip install -r requirements.txt -e .", "metapeft theory verify"} <= own
    assert "pip install -r requirements.txt -e '.[test]'" in own


@pytest.mark.parametrize(("page", "line"), [(page, line) for page, line in SHOWN if of_shell(line)])
def test_a_command_of_the_shell(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # no name is broken
    for words in of_shell(line):
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        plain = words[: next((i for i, word in enumerate(words) if word.startswith("-")), len(words))]
        nested = plain[0] in ("theory", "episodes") or plain[:2] == ["data", "import"]
        depth = 2 if nested and len(plain) > 1 else 1
        for at in range(depth):
            listed = re.findall(r"^\W+([\w-]+) ", helped(plain[:at]), flags=re.M)
            assert plain[at] in listed, f"{page} shows {line!r}"
        text = helped(plain[:depth])
        assert [name for name in options if not re.search(rf"(?<![\w-]){name}\b", text)] == [], (
            f"{page} shows {line!r}"
        )


@pytest.mark.parametrize(("page", "line"), [(p, line) for p, line in SHOWN if line.startswith("python -m")])
def test_a_module_that_is_run(page: str, line: str) -> None:
    module = line.split()[2]
    found = importlib.util.find_spec(module)
    assert found is not None, f"{page} shows {line!r}"
    if found.submodule_search_locations is not None:
        assert importlib.util.find_spec(f"{module}.__main__") is not None, f"{page} shows {line!r}"


@pytest.mark.parametrize(("page", "line"), [(p, line) for p, line in SHOWN if line.startswith("pip ")])
def test_an_installation(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **given: arguments.update(given))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    words = shlex.split(line)
    files = [words[i + 1] for i, word in enumerate(words) if word == "-r"]
    extras = [name for found in re.findall(r"\[(.*?)\]", line) for name in found.split(",")]
    assert [file for file in files if not (ROOT / file).exists()] == [], f"{page} shows {line!r}"
    assert set(extras) <= set(arguments["extras_require"]), f"{page} shows {line!r}"
