"""What the tests of fixed layers share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import metapeft as mp
from metapeft.learner import bilevel
from metapeft.learner.fixed_layers import FixedLayers
from tests.learner.helpers import assert_same, images
from tests.learner.plain import plain_gradients

SGD = mp.inner.SGD
ENGINES: dict[str, tuple[Any, Any]] = {
    "unroll": ("unroll", SGD(3, 0.1)),
    "recompute": ("recompute", SGD(3, 0.1)),
    "first-order": ("first-order", SGD(3, 0.1)),
    "envelope": ("envelope", SGD(3, 0.1)),
    "multi-step": (mp.hypergradients.MultiStep(), SGD(3, 0.1)),
    "multi-step, first order": (mp.hypergradients.MultiStep(second_order=False), SGD(3, 0.1)),
    "function": (lambda problem: mp.hypergradients.FirstOrder()(problem), SGD(3, 0.1)),
    "cg": (mp.hypergradients.CG(iterations=50), SGD(40, 0.2, proximal=4.0)),
    "forward": ("forward", SGD(2, 0.1)),
}
OFF = {False: FixedLayers(), True: FixedLayers()}


def counted(module: nn.Module) -> list[int]:
    """A list that grows by one with each forward of a module."""
    runs: list[int] = []
    plain = module.forward

    def forward(x: Tensor) -> Any:
        runs.append(1)
        return plain(x)

    module.forward = forward  # type: ignore[method-assign]
    return runs


def direct(learner: mp.Learner, batch: Any) -> Any:
    """Everything computed wherever it is read."""
    return bilevel.hypergradient(learner.objectives(batch, training=True), direct_form=True)


def names(learner: mp.Learner) -> list[str]:
    """The modules whose outputs are kept."""
    return [name for layers in learner.fixed_layers.values() for name, _ in layers.modules]


def check_gradient(learner: mp.Learner, net: Any, kept: list[str], **said: Any) -> None:
    """Value and gradient are a plain loop's with the same options, and it is these modules whose outputs are kept."""
    found = learner.hypergradient(images())
    assert names(learner) == kept
    # of both parts together the plain loop takes no statistics
    if said["norm"] == "transductive" and said.get("inner_data") == "both":
        expected = direct(learner, images())
        value, grads = expected.value, dict(expected.grads)
    else:
        value, grads = plain_gradients(learner.variables, net, images(), **said)
    torch.testing.assert_close(found.value, value, rtol=1e-9, atol=0)
    assert_same(dict(found.grads), grads)
