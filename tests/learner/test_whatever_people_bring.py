"""Backbones and batches of other kinds: without parameters, without classes, in half types, with hooks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp

X = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(3).repeat(2).expand(2, 6).contiguous()
LABELLED = mp.EpisodeBatch(X, Y, X, Y)


def test_features_are_a_data_set_too() -> None:
    """A backbone without parameters: centroids are those of the inputs."""
    adapted = mp.methods.centroids(nn.Identity()).adapt(X[0], Y[0])
    centres = torch.stack([X[0][Y[0] == label].mean(0) for label in range(3)])
    assert torch.equal(adapted(X[0]).argmax(-1), torch.cdist(X[0], centres).argmin(-1))
    for head in ("ridge", "logistic", "knn"):
        learner = mp.Learner(mp.attach(nn.Flatten(), {}), head=head, outer=())
        assert learner.adapt(X[0], Y[0])(X[0]).shape == (6, 3)
        assert learner.settings()["dtype"] == "float32"


def test_a_batch_without_classes() -> None:
    """Ways are then counted from the labels; numbers, and words, are no classes."""
    assert LABELLED.ways == LABELLED.episode(0).ways == 3
    assert mp.EpisodeBatch(X, X, X, X).ways == 1
    assert mp.EpisodeBatch(X, Y.unsqueeze(2), X, Y.unsqueeze(2)).ways == 1
    known = mp.EpisodeBatch(X, Y, X, Y, classes=torch.zeros(2, 3, dtype=torch.int64))
    learner = mp.methods.protonet(nn.Linear(4, 5))
    assert torch.equal(learner.hypergradient(LABELLED).value, learner.hypergradient(known).value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head", ["ridge", "logistic", "knn", "prototypes"])
def test_closed_forms_of_half_types(head: str, dtype: torch.dtype) -> None:
    """They are computed in float32: the same as those of the same features in float32, to the type's rounding."""
    torch.manual_seed(0)
    body = nn.Linear(4, 5).to(dtype)
    half = mp.Learner(mp.attach(body, {}, classifier=None), head=head, outer=()).adapt(X[0].to(dtype), Y[0])
    with torch.no_grad():
        features = body(X[0].to(dtype)).float()
    single = mp.Learner(mp.attach(nn.Identity(), {}), head=head, outer=()).adapt(features, Y[0])
    found, expected = half(X[0].to(dtype)), single(features)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


class Kept(nn.Module):
    """A hook that writes into the original."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.seen = nn.Linear(4, 5), nn.Linear(5, 3), {}
        self.one.register_forward_hook(lambda module, given, found: self.seen.update(one=found))

    def forward(self, x: Tensor) -> Tensor:
        self.one(x)
        return self.two(self.seen["one"])


def test_torch_errors_become_sentences() -> None:
    learner = mp.methods.maml(OnceOnly(), norm="running", steps=1)
    with pytest.raises(
        ValueError, match=r"no second derivative of _pdist; inside calls pdist: .*'first-order'"
    ):
        learner.hypergradient(LABELLED)
    assert mp.methods.fomaml(OnceOnly(), norm="running", steps=1).hypergradient(LABELLED).value.isfinite()
    hooked = mp.attach(Kept(), mp.LoRA(1))
    with pytest.raises(
        ValueError, match=r"a hook of one \(Linear\) may write into the module that was attached"
    ):
        hooked(X, hooked.factors())


class OnceOnly(nn.Module):
    """A layer whose inputs go through a function that has one derivative, each on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.inside = nn.Linear(4, 4), _Distance()

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(self.layer(x))


class _Distance(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        pairs = x.view(-1, 2, 2)
        return torch.stack([F.pdist(pair) for pair in pairs]) * x[:, :3]
