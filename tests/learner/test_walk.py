"""A batch goes through `Learner.hypergradient` one way, and each file of learner/ is entered twice at most."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import metapeft as mp
from tests.learner.helpers import images
from tests.learner.walk import TASKS, entries

SGD = mp.inner.SGD
CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"
LISTED = re.compile(r"<!-- walk:begin -->\n(.*?)<!-- walk:end -->", re.S)


def learner(kind: str) -> mp.Learner:
    """Learners that take every way through the files: heads, engines, norms, generators, layers that are kept."""
    net = mp.backbones.conv4(ways=3, width=4, channels=1, size=16, seed=0).double()
    whole: dict[str, Any] = {
        "inner": SGD(3, 0.1, rates="step"),
        "outer": ("weights", "factors", "generator", "selection", "rates"),
        "generator": mp.generators.MappingNet(hidden=5),
        "selection": "softmax",
        "adapt": ["conv4.*"],
    }
    given: dict[str, tuple[str, dict[str, Any]]] = {
        "whole": ("support", {**whole, "head": "prototype-init"}),
        "whole, learned head": ("running", {**whole, "adapt": ["conv4.*", "classifier.*"]}),
        "closed head": ("running", {**whole, "head": "prototypes"}),
        "closed head, transductive": ("transductive", {**whole, "head": "ridge"}),
        "both": ("running", {"inner": SGD(2, 0.1), "inner_data": "both", "head": "prototype-init"}),
        "no inner loop": ("running", {"head": "prototypes"}),
        "per input": (
            "running", {"generator": mp.generators.MappingNet(hidden=5, per="input"), "outer": ("generator",)},
        ),
        "forward": ("running", {"inner": SGD(2, 0.1, rates="step"), "hypergradient": "forward", "outer": ("rates",)}),
        "implicit": ("running", {"inner": SGD(2, 0.1), "hypergradient": mp.hypergradients.CG(2), "adapt": "class*"}),
        "first order": ("running", {"inner": SGD(2, 0.1), "hypergradient": "first-order"}),
    }  # fmt: skip
    norm, options = given[kind]
    return mp.Learner(mp.attach(net, mp.CP(3), norm=norm), **options)


def batch() -> mp.EpisodeBatch:
    """Seven tasks of 16x16 images."""
    small = images(TASKS)

    def grown(x: torch.Tensor) -> torch.Tensor:
        return x.repeat(1, 1, 1, 4, 4)

    return mp.EpisodeBatch(
        grown(small.support_x), small.support_y, grown(small.query_x), small.query_y, classes=small.classes
    )


@pytest.mark.filterwarnings("ignore::metapeft.hypergradients.NotConverged")
@pytest.mark.filterwarnings("ignore::metapeft.hypergradients.IndefiniteHessian")
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        "whole", "whole, learned head", "closed head", "closed head, transductive", "both", "no inner loop",
        "per input", "forward", "implicit", "first order",
    ],
)  # fmt: skip
def test_no_file_is_entered_more_than_twice(kind: str, again: bool) -> None:
    """On the first batch, when the model is checked and fixed layers are looked for, and on later ones."""
    one, given = learner(kind), batch()
    if again:
        one.hypergradient(given)
    found = entries(lambda: one.hypergradient(given))
    often = Counter(file for file, _ in found if file.startswith("learner/"))
    assert often["learner/learner.py"] == often["learner/bilevel.py"] // 2 == 1
    assert {file: count for file, count in often.items() if count > 2} == {}, found


def way() -> list[str]:
    """The files that the whole method's gradient enters, a line each time; below the engines a line a folder."""
    lines: list[tuple[str, list[str]]] = []
    folders: dict[str, list[str]] = {"updates": [], "base": []}
    for file, function in entries(lambda: learner("whole").hypergradient(batch())):
        folder, _, name = file.partition("/")
        if folder in folders:
            if not folders[folder]:
                lines.append((f"{folder}/", folders[folder]))
            within, deeper, _ = name.partition("/")
            if f"`{within}{deeper}`" not in folders[folder]:
                folders[folder].append(f"`{within}{deeper}`")
        elif lines and lines[-1][0] == file:
            lines[-1][1].append(f"`{function}`")
        else:
            lines.append((file, [f"`{function}`"]))
    return [f"{number}. `{file}`: {', '.join(names)}" for number, (file, names) in enumerate(lines, 1)]


def test_contributing_shows_the_way() -> None:
    shown = LISTED.search(CONTRIBUTING.read_text(encoding="utf-8"))
    assert shown is not None
    assert " ".join(shown[1].split()) == " ".join(" ".join(way()).split())
