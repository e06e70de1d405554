"""An engine or a type of the forwards that is set after the learner was made is checked as at the start."""

from __future__ import annotations

import pytest
import torch

import metapeft as mp
from tests.training.helpers import learner


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


def test_annealing_checks_its_engines_and_leaves_the_settings() -> None:
    own = mp.methods.mamlpp(mp.backbones.mlp(4, 3, hidden=(8,)), steps=2)
    before = own.settings()
    schedule = mp.methods.annealing(own, multi_step=4, first_order=1)
    schedule(torch.optim.Adam(own.trained.values()), 8)
    assert own.engine == mp.hypergradients.MultiStep((0.5, 0.5), second_order=False)
    assert own.settings() == before


def test_a_view_with_another_type_of_the_forwards_is_checked() -> None:
    own = learner()
    view = own.with_autocast(torch.bfloat16)
    assert (view.settings()["autocast"], own.settings()["autocast"]) == ("bfloat16", None)
    assert view.variables is own.variables
    own.to(dtype=torch.float64)
    with pytest.raises(ValueError, match="is for parameters in float32, these are"):
        own.with_autocast(torch.bfloat16)
