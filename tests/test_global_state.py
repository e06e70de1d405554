"""Torch's global state is the user's: the same bits under another default type, inside no_grad, deterministic.

`.ci/full` runs the whole quick tier in these states; this is a small part of it, with models and data made before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metapeft as mp
from metapeft.datasets.images import ImageData
from metapeft.updates.peft_import import read_adapter


@contextmanager
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES: dict[str, Any] = {
    "float64 by default": double,
    "no gradients": torch.no_grad,
    "deterministic": deterministic,
}


def data() -> ImageData:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (36, 1, 16, 16), dtype=torch.uint8, generator=random)
    return ImageData(images, torch.arange(36) % 6, [f"c{n}" for n in range(6)], mean=[0.5], deviation=[0.3])


def body(dropout: bool = False) -> nn.Module:
    if not dropout:
        return mp.backbones.conv4(ways=3, channels=1, width=4, size=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rest = [
            nn.Conv2d(1, 3, 3, stride=4),
            nn.BatchNorm2d(3),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(48, 3),
        ]
        return nn.Sequential(*rest)


class Augmented:
    """Episodes whose images are changed, and shifted."""

    def __init__(self, source: ImageData) -> None:
        augment = mp.Augment(flip=True, crop=2, brightness=0.3, contrast=0.3)
        self.sampler = mp.EpisodeSampler(source, 3, 2, 2, seed=0, augment=augment, shift=True)

    def batch(self, start: int, count: int) -> mp.EpisodeBatch:
        return self.sampler.batch(start, count)


def learners() -> dict[str, Callable[[], mp.Learner]]:
    sgd, net, dropping = mp.inner.SGD(2, 0.05), body(), body(True)
    return {
        "maml": lambda: mp.methods.maml(net, inner=sgd),
        "dropout": lambda: mp.methods.maml(dropping, inner=sgd, dropout=True, norm="running"),
        "imaml": lambda: mp.methods.imaml(
            net, inner=mp.inner.SGD(5, 0.02, proximal=40.0), hypergradient="cg"
        ),
        "metapeft": lambda: mp.methods.metapeft(net, format=mp.CP(2), inner=sgd, hidden=4),
        "tensor ring": lambda: mp.methods.metapeft(
            net, format=mp.TensorRing(2), inner=mp.inner.Adam(2), hidden=4
        ),
        "lora-ml": lambda: mp.methods.lora_ml(
            net, rank=2, inner=mp.inner.Momentum(2, 0.05), head="prototype-init"
        ),
        "protonet": lambda: mp.methods.protonet(net),
        "r2d2": lambda: mp.methods.r2d2(net),
        "reptile": lambda: mp.methods.reptile(net, inner=sgd),
    }


def scenario(made: mp.Learner, source: ImageData) -> dict[str, Tensor]:
    """Gradients, logits and a trained state of one method."""
    episodes = Augmented(source)
    batch = episodes.batch(0, 2)
    found = {"support": batch.support_x}
    found |= {f"grad {key}": grad for key, grad in made.hypergradient(batch).grads.items()}
    many = made.adapt_many(batch.support_x, batch.support_y)
    found["logits"] = many(batch.query_x)
    found["one"] = made.adapt(batch.support_x[0], batch.support_y[0])(batch.query_x[0])
    mp.BilevelTrainer(made, tasks_per_step=2, progress=False).fit(episodes, 1)
    found |= {f"state {key}": value for key, value in made.state().items()}
    found["accuracy"] = mp.evaluate(made, episodes, 2).values
    return found


def compared(run: Callable[[], dict[str, Tensor]]) -> None:
    """Run it in the usual state and in the others."""
    expected = run()
    for state, entered in STATES.items():
        with entered():
            found = run()
        assert torch.is_grad_enabled()
        assert list(found) == list(expected), state
        for name, value in expected.items():
            assert found[name].dtype == value.dtype, (state, name)
            assert torch.equal(found[name], value), (state, name)


QUICK = ("metapeft", "imaml", "dropout")


@pytest.mark.filterwarnings("ignore::metapeft.hypergradients.implicit.NotConverged")
@pytest.mark.filterwarnings("ignore::metapeft.hypergradients.implicit.IndefiniteHessian")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in learners()]
)
def test_methods_give_the_same_bits(name: str) -> None:
    source, make = data(), learners()[name]
    start = make().state()

    def run() -> dict[str, Tensor]:
        own = make()
        own.load_state(start)
        return scenario(own, source)

    compared(run)


def heads(net: nn.Module, source: ImageData, folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for head in ("prototypes", "ridge", "weighted-ridge", "logistic", "knn"):
        made = mp.Learner(mp.attach(net, {}, norm="running"), head=head, outer=())
        found[head] = mp.evaluate(made, mp.EpisodeSampler(source, 3, 2, 2, seed=0), 2).losses
    return found


def pretrained(net: nn.Module, source: ImageData, folder: Path) -> dict[str, Tensor]:
    made, _ = mp.pretrain(net, source, steps=2, group=12, groups=2, progress=False)
    return dict(made.state_dict())


def problem(net: nn.Module, source: ImageData, folder: Path) -> dict[str, Tensor]:
    inner = lambda u, w: (w["x"] - u["c"]).square().sum() / 2  # noqa: E731
    outer = lambda u, w: (w["x"] - u["c"] - 1).square().sum()  # noqa: E731
    u, w0 = {"c": torch.ones(2, dtype=torch.float32)}, {"x": torch.zeros(2, dtype=torch.float32)}
    methods = (
        "unroll",
        "recompute",
        "truncated",
        "forward",
        "first-order",
        "envelope",
        "neumann",
        "cg",
        "exact",
    )
    return {
        method: mp.hypergradient(outer, inner, u, w0, mp.inner.SGD(60, 0.5), method).grads["c"]
        for method in methods
    }


def glyphs(net: nn.Module, source: ImageData, folder: Path) -> dict[str, Tensor]:
    found = mp.load_dataset("glyphs", split="val")
    batch = mp.EpisodeSampler(found, 3, 1, 1, seed=0, shift=True).batch(0, 2)
    return {"images": batch.support_x, "query": batch.query_x}


def peft(net: nn.Module, source: ImageData, folder: Path) -> dict[str, Tensor]:
    target = folder / str(len(list(folder.iterdir())))
    model = mp.attach(net, mp.LoRA(2), targets="head")
    one = {name: torch.ones_like(value[0]) for name, value in model.factors().items()}
    mp.export_peft(model, one, target)
    _, factors = read_adapter(target, net)
    merged = model.merged(one)(torch.ones(2, 1, 16, 16, dtype=torch.float32))
    return {**factors, "merged": merged.detach()}


@pytest.mark.parametrize("part", [heads, pretrained, problem, glyphs, peft])
def test_parts_give_the_same_bits(part: Any, tmp_path: Path) -> None:
    net, source = body(), data()
    compared(lambda: part(net, source, tmp_path))


def test_inference_mode_is_refused_in_a_sentence() -> None:
    made, batch = learners()["maml"](), mp.EpisodeSampler(data(), 3, 2, 2, seed=0).batch(0, 2)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"torch\.inference_mode"):
        made.adapt_many(batch.support_x, batch.support_y)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"torch\.inference_mode"):
        made.hypergradient(batch)
