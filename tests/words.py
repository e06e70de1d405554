"""Names that a user may give to a module: every word of the library, characters of patterns, digits, and mixtures."""

from __future__ import annotations

import ast
import importlib
import random
import re
from functools import cache
from pathlib import Path

from torch import nn

import metapeft

ROOT = Path(metapeft.__file__).parent
FOLDERS = ("updates", "learner", "heads", "generators", "hypergradients", "inner", "methods", "training")
TABLES = ("updates", "heads", "generators", "hypergradients", "inner", "methods", "backbones")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,24}")
_SIGNS = "*+?^$|()[]{}\\!-/ ,:;=#%&'\"<>~@`"


def in_the_sources() -> set[str]:
    """The words in the strings of the code that handles names, without those of sentences."""
    found = set()
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
                    found |= {part for part in node.value.split(".") if _WORD.fullmatch(part)}
    return found


def in_the_tables() -> set[str]:
    """The names that users write, and those of classes and functions."""
    found: set[str] = set()
    for folder in TABLES:
        registry = importlib.import_module(f"metapeft.{folder}.table").registry
        found |= {*registry.names, *registry.attributes}
    return found


def mixtures(count: int, seed: int = 0) -> list[str]:
    """Random names of signs, digits and parts of words."""
    source, words = random.Random(seed), sorted(in_the_tables())
    made = []
    for _ in range(count):
        parts = [
            source.choice(
                [
                    source.choice(_SIGNS),
                    str(source.randrange(100)),
                    source.choice(words)[: source.randrange(9)],
                ]
            )
            for _ in range(source.randrange(1, 5))
        ]
        made.append("".join(parts) or "0")
    return made


@cache
def names() -> list[str]:
    """All of them that torch lets a module have as a name, in an order that mixes their kinds."""
    numbers = [*map(str, range(12)), "00", "01", "1e3", "0x1"]
    every = sorted({*in_the_sources(), *in_the_tables(), *_SIGNS, *numbers, *mixtures(60)})
    random.Random(1).shuffle(every)
    return [name for name in every if "." not in name and not hasattr(nn.Module(), name)]
