"""An engine or a type of the forwards that is set after the learner was made is checked as at the start."""

from __future__ import annotations

import pytest
import torch

import metapeft as mp
from tests.trainer.helpers import learner


def test_a_view_with_another_engine_shares_its_tensors_and_is_checked() -> None:
    own = learner()
    view = own.with_engine("recompute")
    assert type(view.engine).__name__ == "Recompute"
    assert view.method == "recompute"
    assert (type(own.engine).__name__, own.method) == ("Unroll", "unroll")
    assert view.variables is own.variables
    with pytest.raises(ValueError, match=r'outer has "factors", which hypergradient=.envelope. cannot reach'):
        own.with_engine("envelope")
    with pytest.raises(ValueError, match="did you mean 'unroll'"):
        own.with_engine("unrol")


def test_an_engine_that_stands_in_is_checked_and_leaves_the_settings() -> None:
    own = learner()
    before = own.settings()
    own.set_engine("recompute")
    assert type(own.engine).__name__ == "Recompute"
    assert own.settings() == before
    with pytest.raises(ValueError, match=r"hypergradient=Envelope\(.*\) cannot reach"):
        own.set_engine(mp.hypergradients.Envelope())
    assert type(own.engine).__name__ == "Recompute"


def test_the_type_of_the_forwards_is_checked() -> None:
    own = learner()
    own.set_autocast(torch.bfloat16)
    assert own.settings()["autocast"] == "bfloat16"
    own.set_autocast(None)
    own.to(dtype=torch.float64)
    with pytest.raises(ValueError, match="is for parameters in float32, these are"):
        own.set_autocast(torch.bfloat16)
    assert own.autocast is None
