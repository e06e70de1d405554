"""A fuzz of module names over attach, Learner, export and import: no name changes a number, or is taken for another."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.learner.test_names import METHODS, PLAIN
from tests.learner.test_names import numbers as learned
from tests.updates.test_peft_names import test_any_names as goes_out_and_in
from tests.words import names

NAMES = names()
QUICK = 40  # every so many names are in the quick tier


@pytest.fixture(scope="module")
def peft() -> ModuleType:
    return pytest.importorskip("peft", reason="pip install 'metapeft[peft]'")


def test_the_words_are_those_of_the_library() -> None:
    known = {
        "head", "weights", "factors", "generator", "selection", "rates", "seed", "support", "query", "kept", "derived",
        "center", "delta", "A", "B", "shift", "gate", "all", "body", "lora_A", "classifier", "LoRA", "TensorRing",
        "prototype-init", "unroll", "net", "*", "0", "(", "\\",
    }  # fmt: skip
    assert sorted(known - set(NAMES)) == []
    assert len(NAMES) > 400


def check_learner(chosen: list[str]) -> None:
    """Value, gradients and predictions are those of plain names; the method and the place of the name go round."""
    methods = list(METHODS)
    expected = {method: learned(method, PLAIN) for method in methods}
    for number, name in enumerate([one for one in chosen if one not in PLAIN]):
        method = methods[number % len(methods)]
        place = (name, "second") if (number // len(methods)) % 2 else ("first", name)
        found = learned(method, place)
        assert set(found) == set(expected[method]), (name, method)
        for key, value in expected[method].items():
            torch.testing.assert_close(
                found[key], value, rtol=1e-12, atol=1e-14, msg=f"{name!r}, {method}: {key}"
            )


def check_export(peft: ModuleType, folder: Path, chosen: list[str]) -> None:
    """Five names at a time, in a network and in a container of it, one of which has an update of its own for each."""
    for number in range(0, len(chosen) - 4, 5):
        first, second, third, fourth, container = chosen[number : number + 5]
        own = folder / str(number)
        own.mkdir()
        goes_out_and_in(peft, own, [first, second], [third, first, fourth], container)


def test_a_layer_that_is_called_as_what_a_compiled_module_wraps() -> None:
    """It was taken for a compiled module, and refused."""
    check_learner(["_orig_mod"] * 8)


@pytest.mark.parametrize("start", range(2))
def test_learners(start: int) -> None:
    check_learner(NAMES[start::QUICK])


@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
def test_adapters(peft: ModuleType, tmp_path: Path) -> None:
    check_export(peft, tmp_path, NAMES[::QUICK])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_all_learners(part: int) -> None:
    check_learner(NAMES[part::8])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
@pytest.mark.parametrize("part", range(4))
def test_all_adapters(part: int, peft: ModuleType, tmp_path: Path) -> None:
    check_export(peft, tmp_path, NAMES[part::4])
