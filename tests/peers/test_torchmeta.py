"""torchmeta's own cases: gradients that its tests derive by hand, ridge regression (R2-D2), prototypes.

Source: tristandeleu/pytorch-meta, torchmeta/tests/utils: test_gradient_based.py, test_r2d2.py, test_prototype.py.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metapeft as mp
from benchmarks.peer_imports import import_torchmeta
from metapeft.inner import ridge
from tests.conftest import require_peer

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]  # its imports
FIRST, SECOND = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[4.0, 5.0, 6.0]])


@pytest.fixture(scope="module")
def torchmeta() -> ModuleType:
    require_peer("torchmeta")
    return import_torchmeta()


def linear() -> nn.Linear:
    net = nn.Linear(3, 1, bias=False)
    net.weight.data = torch.tensor([[2.0, 3.0, 5.0]])
    return net


def half_square(output: Tensor, target: Tensor, reduction: str) -> Tensor:
    return output[:, 0].square() / 2


def output(values: Tensor, target: Tensor, reduction: str) -> Tensor:
    return values[:, 0]


def episode(support: Tensor, query: Tensor) -> mp.EpisodeBatch:
    y = torch.zeros(1, 1, 1)
    return mp.EpisodeBatch(support[None], y, query[None], y)


# first order?, support and query, rate, the weights after a step, query value, its gradient in the weights
CASES = {
    "second order": (False, FIRST, SECOND, [-9.5, -20.0, -29.5], 49612.5, [3780.0, 8505.0, 13230.0]),
    "first order": (True, SECOND, FIRST, [-104.0, -129.5, -154.0], 340312.5, [-825.0, -1650.0, -2475.0]),
}


@pytest.mark.parametrize("case", CASES)
def test_one_step_of_one_half_the_square(torchmeta: ModuleType, case: str) -> None:
    """`f = (x w)^2 / 2` at `w = (2, 3, 5)`, a step of 0.5, then the same of another x."""
    first_order, x, query, after, value, grads = CASES[case]
    recipe = mp.methods.fomaml if first_order else mp.methods.maml
    learner = recipe(linear(), steps=1, lr=0.5, norm="running", head="learned", loss=half_square)
    found = learner.hypergradient(episode(x, query))
    assert (linear().weight + found.w["weight.delta"][0]).tolist() == [after]
    assert found.value.item() == value
    assert found.grads["weights.weight"].tolist() == [grads]

    model = torchmeta.modules.MetaLinear(3, 1, bias=False)
    model.weight.data = torch.tensor([[2.0, 3.0, 5.0]])
    params = torchmeta.utils.gradient_based.gradient_update_parameters(
        model, (model(x) ** 2).sum() / 2, step_size=0.5, first_order=first_order
    )
    (theirs,) = torch.autograd.grad((model(query, params=params) ** 2).sum() / 2, model.parameters())
    assert torch.equal(found.grads["weights.weight"], theirs)


@pytest.mark.parametrize("method", ["unroll", "recompute", "forward"])
def test_three_steps_on_a_weight_that_runs_away(method: str) -> None:
    """Steps of 1 to (278, 555, 833) and (-3609, -7219, -10828), then the output itself of another x."""

    def inner(u: Any, w: Any) -> Tensor:
        return (w["w"] @ FIRST[0]).square() / 2

    start = {"t": torch.tensor([2.0, 3.0, 5.0])}
    found = mp.hypergradient(
        lambda u, w: w["w"] @ SECOND[0], inner, start, lambda u: {"w": u["t"]}, mp.inner.SGD(3, 1.0), method
    )
    path = mp.inner.solve(inner, start, {"w": start["t"]}, mp.inner.SGD(3, 1.0), trace=True)
    assert [w["w"].tolist() for w in path[1:]] == [
        [-21.0, -43.0, -64.0],
        [278.0, 555.0, 833.0],
        [-3609.0, -7219.0, -10828.0],
    ]
    assert found.log["inner_values"].tolist() == [264.5, 44700.5, 7554384.5]
    assert found.value.item() == -115499.0
    assert found.grads["t"].tolist() == [-5020.0, -10043.0, -15066.0]


@pytest.mark.parametrize("penalty", [0.1, 1.0])
@pytest.mark.parametrize("woodbury", [None, True, False])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_ridge_regression(
    torchmeta: ModuleType, penalty: float, woodbury: bool | None, scale: bool, bias: bool
) -> None:
    """Five features of seven entries, three classes; and the gradient of a query loss in the features.

    `scale` divides features and targets by the root of their number, which is a penalty as many times larger; `bias`
    is a column of ones, whose weight is penalised like the others.
    """
    numbers = torch.Generator().manual_seed(0)
    x = torch.randn(5, 7, generator=numbers, dtype=torch.float64).requires_grad_()
    y, query = torch.tensor([0, 2, 1, 2, 0]), torch.randn(11, 7, generator=numbers, dtype=torch.float64)
    theirs = torchmeta.utils.r2d2.ridge_regression(
        x, y, penalty, 3, use_woodbury=woodbury, scale=scale, bias=bias
    )
    expected = query @ theirs.weight.T + (theirs.bias if bias else 0.0)
    ones = [torch.ones(5, 1, dtype=torch.float64)] if bias else []
    with_ones = torch.cat([x, *ones], dim=1)
    total = penalty * (5 if scale else 1)
    weight = ridge(with_ones, torch.eye(3, dtype=torch.float64)[y], total)
    ours = query @ weight[:7] + (weight[7] if bias else 0.0)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    # the head of R2-D2, which has its own bias and scale
    start = mp.heads.Ridge(penalty=total).start(with_ones[None], y[None], ways=3)
    torch.testing.assert_close(start["head.weight"][0].T, weight, rtol=1e-10, atol=1e-12)
    slopes = [torch.autograd.grad(o.logsumexp(1).sum(), x, retain_graph=True)[0] for o in (ours, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_ridge_regression_onto_numbers(torchmeta: ModuleType, bias: bool) -> None:
    numbers = torch.Generator().manual_seed(1)
    x, y = (torch.randn(5, size, generator=numbers, dtype=torch.float64) for size in (7, 3))
    theirs = torchmeta.utils.r2d2.ridge_regression(x, y, 1.0, scale=False, bias=bias)
    found = ridge(torch.cat([x, *[torch.ones(5, 1, dtype=torch.float64)] * bias], dim=1), y, 1.0)
    torch.testing.assert_close(found[:7], theirs.weight.T, rtol=1e-10, atol=1e-12)
    if bias:
        torch.testing.assert_close(found[7], theirs.bias, rtol=1e-10, atol=1e-12)


def test_prototypes(torchmeta: ModuleType) -> None:
    """Means of classes, one of which is absent: `W = 2c` and `b = -|c|^2`, so that logits are theirs plus `|x|^2`."""
    prototype = torchmeta.utils.prototype
    numbers = torch.Generator().manual_seed(2)
    x = torch.rand(2, 5, 7, generator=numbers, dtype=torch.float64)
    y, query = torch.tensor([[0, 1, 1, 2, 0], [2, 2, 1, 1, 0]]), torch.rand(2, 4, 7, dtype=torch.float64)
    theirs = prototype.get_prototypes(x, y, 3)
    start = mp.heads.Prototypes().start(x, y, ways=3)
    torch.testing.assert_close(start["head.weight"], 2 * theirs, rtol=1e-12, atol=0)
    targets = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1]])
    logits = query @ start["head.weight"].mT + start["head.bias"].unsqueeze(1)
    ours = nn.functional.cross_entropy(logits.transpose(1, 2), targets)
    torch.testing.assert_close(ours, prototype.prototypical_loss(theirs, query, targets), rtol=1e-12, atol=0)
