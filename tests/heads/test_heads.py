"""Heads against scikit-like definitions written out, and their behaviour under masks and missing classes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import metapeft as mp
from metapeft import heads
from metapeft.heads.head import ABSENT

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
