"""Heads against scikit-like definitions written out, and their behaviour under masks and missing classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import metapeft as mp
from metapeft import heads
from metapeft.heads.head import ABSENT
from metapeft.heads.table import registry
from tests.heads.test_regression_heads import SLOPES
from tests.learner.formulas import LEARNED
from tests.learner.networks import Net

ALL = {
    "zero": heads.Zero(),
    "prototype-init": heads.PrototypeInit(),
    "prototypes": heads.Prototypes(),
    "ridge": heads.Ridge(),
}


def support(seed: int = 0, ways: int = 3, shots: int = 2, width: int = 4) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(2, ways * shots, width, generator=random, dtype=torch.float64)
    return features, torch.arange(ways).repeat_interleave(shots).expand(2, -1)


def of_first_step(x: Tensor, y: Tensor, ways: int, queries: Tensor) -> Tensor:
    """One step of rate 1 from zeros on the mean cross-entropy: `W = mean (onehot(y) - 1/N) x`, b likewise."""
    rows = torch.eye(ways, dtype=x.dtype)[y]
    there = (rows.sum(0) > 0).to(x)
    error = rows - there / there.sum()
    return (queries @ x.T + 1) @ error / len(y)


def of_centroids(x: Tensor, y: Tensor, ways: int, queries: Tensor) -> Tensor:
    """Minus the squared distances to the means."""
    means = torch.stack(
        [x[y == n].mean(0) if (y == n).any() else torch.zeros(x.shape[1]) for n in range(ways)]
    )
    return -torch.cdist(queries, means).square()


def of_cosines(x: Tensor, y: Tensor, ways: int, queries: Tensor) -> Tensor:
    """Ten times the cosines of the angles to the means of unit features."""
    unit = x / x.norm(dim=-1, keepdim=True)
    means = torch.stack(
        [unit[y == n].mean(0) if (y == n).any() else torch.zeros(x.shape[1]) for n in range(ways)]
    )
    return 10 * torch.nn.functional.cosine_similarity(queries[:, None], means[None], dim=-1)


def of_ridge(x: Tensor, y: Tensor, ways: int, queries: Tensor, weighted: bool = False) -> Tensor:
    """`(X'SX + I)^-1 X'SY`, where all classes weigh the same if weighted."""
    rows = torch.eye(ways, dtype=x.dtype)[y]
    count = rows.sum(0)
    s = (len(y) / ((count > 0).sum() * count))[y] if weighted else torch.ones(len(y), dtype=x.dtype)
    system = x.T @ (s[:, None] * x) + torch.eye(x.shape[1], dtype=x.dtype)
    return queries @ torch.linalg.solve(system, x.T @ (s[:, None] * rows))


def of_logistic(x: Tensor, y: Tensor, ways: int, queries: Tensor) -> Tensor:
    """Newton's method on all of W and b, of the classes that occur; the others have no probability."""
    there, own = y.unique(return_inverse=True)
    ones = torch.ones(len(x), 1, dtype=x.dtype)

    def loss(w: Tensor) -> Tensor:
        logits = torch.cat([x, ones], 1) @ w.view(-1, len(there))
        return torch.nn.functional.cross_entropy(logits, own, reduction="sum") + w.square().sum() / 2

    w = torch.zeros((x.shape[1] + 1) * len(there), dtype=x.dtype)
    for _ in range(30):
        w = w - torch.linalg.solve(torch.func.jacrev(torch.func.grad(loss))(w), torch.func.grad(loss)(w))
    found = torch.full((len(queries), ways), ABSENT, dtype=x.dtype)
    found[:, there] = torch.cat([queries, ones[:1].expand(len(queries), 1)], 1) @ w.view(-1, len(there))
    return found


def of_neighbours(x: Tensor, y: Tensor, ways: int, queries: Tensor) -> Tensor:
    """Votes of the five nearest."""
    nearest = torch.cdist(queries, x).argsort(-1)[:, :5]
    return torch.stack([torch.bincount(y[row], minlength=ways) for row in nearest]).to(x)


#: every head of the table -> logits of a task's queries from its support features, labels and number of classes
GRID: dict[str, Any] = {
    "learned": None,  # the backbone's own
    "zero": of_first_step,
    "prototype-init": of_centroids,
    "prototypes": of_centroids,
    "cosine": of_cosines,
    "ridge": of_ridge,
    "weighted-ridge": lambda *given: of_ridge(*given, weighted=True),
    "logistic": of_logistic,
    "knn": of_neighbours,
}


def test_every_head_is_in_the_grid() -> None:
    assert set(GRID) == set(registry.names)
    assert set(registry) == {*registry.names.values(), "Head"}
    # where gradients go through it, a learner's are compared: with a plain loop, or with slopes of its value
    reached = {name for name in registry.names if registry.resolve(name).differentiable}
    assert set(LEARNED) | set(SLOPES) == reached


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", GRID)
def test_the_formula_in_a_learner(name: str, masked: bool) -> None:
    """Classes of unequal size; with masks a class is missing, and items in the middle do not count."""
    net, random = Net(), torch.Generator().manual_seed(0)
    x, queries = (torch.randn(2, n, 1, 4, 4, generator=random, dtype=torch.float64) for n in (9, 5))
    y = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2], [2, 1, 0, 1, 1, 0, 1, 1, 2]])
    mask = torch.ones(2, 9, dtype=torch.bool)
    if masked:
        mask[0, [1, 7, 8]] = mask[1, [3, 8]] = False
    inner = mp.inner.SGD(1, 1.0) if name == "zero" else None  # it has no other use
    learner = mp.Learner(mp.attach(net, {}), inner, head=name, outer=())
    found = learner.adapt_many(x, y, mask=mask if masked else None, ways=3)(queries)
    net.eval()
    for t in range(2):
        if name == "learned":
            torch.testing.assert_close(found[t], net(queries[t]), rtol=1e-12, atol=1e-12)
            continue
        with torch.no_grad():
            features, own = net.features(x[t][mask[t]]), net.features(queries[t])
        expected = GRID[name](features, y[t][mask[t]], 3, own)
        if name == "knn":  # a later vote counts a little less
            assert torch.equal(found[t].ceil(), expected)
            continue
        there = y[t][mask[t]].unique()
        assert (found[t].softmax(-1).sum(-1) - found[t].softmax(-1)[:, there].sum(-1)).abs().max() < 1e-300
        # equal but for what all classes share
        torch.testing.assert_close(
            found[t][:, there].log_softmax(-1), expected[:, there].log_softmax(-1), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("name", ALL)
def test_shapes(name: str) -> None:
    features, y = support()
    start = ALL[name].start(features, y, 5)  # two classes do not occur
    assert start["head.weight"].shape == (2, 5, 4)
    assert start["head.bias"].shape == (2, 5)
    logits = ALL[name].logits(torch.randn(2, 7, 4, dtype=torch.float64), start)
    assert logits.shape == (2, 7, 5)
    assert (logits[..., 3:] <= ABSENT / 2).all()
    assert (logits.softmax(-1)[..., 3:] == 0).all()
    for dtype in (torch.float32, torch.bfloat16):
        low = ALL["zero"].start(features.to(dtype), y, 5)
        assert low["head.bias"].isfinite().all()


def test_prototypes_are_nearest_centroids() -> None:
    features, y = support()
    queries = torch.randn(2, 9, 4, dtype=torch.float64)
    head = heads.Prototypes()
    logits = head.logits(queries, head.start(features, y, 3))
    centres = torch.stack([torch.stack([features[t][y[t] == n].mean(0) for n in range(3)]) for t in range(2)])
    distance = torch.cdist(queries, centres).square()
    # equal but for what all classes share
    torch.testing.assert_close(logits.log_softmax(-1), (-distance).log_softmax(-1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("width", "shots"), [(4, 1), (4, 5), (30, 1)])
def test_ridge_solves_its_normal_equations(width: int, shots: int) -> None:
    features, y = support(shots=shots, width=width)
    weight = heads.Ridge(penalty=0.3).start(features, y, 3)["head.weight"]
    rows = torch.nn.functional.one_hot(y, 3).double()
    gradient = features.mT @ (features @ weight.mT - rows) + 0.3 * weight.mT
    assert float(gradient.abs().max()) < 1e-10


@pytest.mark.parametrize("width", [4, 30])
def test_a_ridge_without_a_solution_is_a_sentence(width: int) -> None:
    features, y = support(width=width)
    features[1, 2, 0] = torch.nan
    for head in (heads.Ridge(), heads.WeightedRidge()):
        with pytest.raises(mp.NumericalError, match="not positive definite, or not finite"):
            head.start(features, y, 3)


def test_what_ridge_learns_enters_as_logarithms() -> None:
    features, y = support()
    learned = heads.Ridge().learned()
    learned["log_penalty"], learned["log_scale"] = torch.tensor(0.3).log(), torch.tensor(2.0).log()
    found = heads.Ridge().start(features, y, 3, None, learned)
    expected = heads.Ridge(penalty=0.3).start(features, y, 3)
    torch.testing.assert_close(found["head.weight"], 2 * expected["head.weight"], rtol=1e-6, atol=1e-8)
    for name in ("penalty", "scale"):
        with pytest.raises(ValueError, match=name):
            heads.Ridge(**{name: 0.0})


@pytest.mark.parametrize("name", [*ALL, "knn"])
def test_masked_items_do_not_count(name: str) -> None:
    head = ALL.get(name, heads.KNN(k=3))
    features, y = support(shots=3)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[:, [2, 5, 8]] = False
    queries = torch.randn(2, 6, 4, dtype=torch.float64)
    kept = head.start(features[:, mask[0]], y[:, mask[0]], 3)
    masked = head.start(features, y, 3, mask)
    torch.testing.assert_close(
        head.logits(queries, masked), head.logits(queries, kept), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("k", [1, 5, 10, 100])
def test_neighbours_vote(k: int) -> None:
    features, y = support(shots=5)
    queries = torch.randn(2, 9, 4, dtype=torch.float64)
    logits = heads.KNN(k=k).logits(queries, heads.KNN(k=k).start(features, y, 3))
    nearest = torch.cdist(queries, features).argsort(-1)[..., :k]
    for t in range(2):
        for b in range(9):
            votes = torch.bincount(y[t][nearest[t, b]], minlength=3)
            best = votes == votes.max()
            assert best[logits[t, b].argmax()]
            if best.sum() > 1 and k < 15:  # a tie: whose votes come from nearer neighbours
                ranks = {int(n): int((y[t][nearest[t, b]] == n).nonzero().sum()) for n in best.nonzero()}
                assert ranks[int(logits[t, b].argmax())] == min(ranks.values())
    with pytest.raises(ValueError, match="k=0"):
        heads.KNN(k=0)


def test_gradients_flow_through_starts() -> None:
    features, y = support()
    for name in ("prototype-init", "prototypes", "ridge"):
        assert torch.autograd.gradcheck(
            lambda f, name=name: ALL[name].start(f, y, 3)["head.weight"], features.requires_grad_()
        )


@pytest.mark.parametrize("make", [heads.Prototypes, heads.PrototypeInit])
def test_the_scale_of_prototypes_multiplies_logits_and_is_learned(make: type[heads.PrototypeInit]) -> None:
    features, y = support()
    queries = torch.randn(2, 9, 4, dtype=torch.float64)
    plain, scaled = (head.logits(queries, head.start(features, y, 3)) for head in (make(), make(scale=0.25)))
    torch.testing.assert_close(scaled, 0.25 * plain, rtol=1e-10, atol=1e-12)
    learned = {"log_scale": make(scale=0.25).learned()["log_scale"].requires_grad_()}
    logits = make().logits(queries, make().start(features, y, 3, learned=learned))
    torch.testing.assert_close(logits, scaled, rtol=1e-10, atol=1e-12)
    (slope,) = torch.autograd.grad(logits.sum(), learned["log_scale"])
    torch.testing.assert_close(slope, logits.sum(), rtol=1e-10, atol=1e-12)  # d exp(l) / dl = exp(l)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_not_above_0_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="scale="):
        heads.Prototypes(scale=scale)


class NearestSum(heads.Head):
    """A user's head, with the arguments that the contract names and no other."""

    def start(self, features: Tensor, y: Tensor, ways: int, mask: Tensor | None = None) -> dict[str, Tensor]:
        rows = torch.nn.functional.one_hot(y, ways).to(features)
        return {"head.weight": rows.mT @ features, "head.bias": features.new_zeros(len(y), ways)}


def test_a_head_of_the_user_s_own_needs_no_more_than_start() -> None:
    learner = mp.methods.protonet(mp.backbones.mlp(4, 3, hidden=(8,)), head=NearestSum())
    x, y = torch.randn(2, 6, 4), torch.arange(3).repeat(2).expand(2, -1)
    features = learner.model.features(x, {})
    expected = features @ (torch.nn.functional.one_hot(y, 3).float().mT @ features).mT
    torch.testing.assert_close(learner.adapt_many(x, y)(x), expected)
    with pytest.raises(ValueError, match=r"mp\.heads\.Head"):
        mp.methods.protonet(mp.backbones.mlp(4, 3, hidden=(8,)), head=object())
