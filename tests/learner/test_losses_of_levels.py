"""A loss of the inner level beside that of the queries, and a loss of all tasks of a batch together."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import metapeft as mp
from metapeft.learner.bilevel import hypergradient
from tests.learner.helpers import FORMATS, assert_same, images, learner_of
from tests.learner.plain import Net, plain_gradients

SGD, ENGINES = mp.inner.SGD, mp.hypergradients
smoothed = functools.partial(F.cross_entropy, label_smoothing=0.4)
TO_REST = SGD(25, 0.2, proximal=4.0)


def worst(outputs: Tensor, y: Tensor | None, mask: Tensor | None) -> Tensor:
    """A smooth maximum over the tasks of their mean losses."""
    rows = F.cross_entropy(outputs.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)
    weight = torch.ones_like(rows) if mask is None else mask.to(rows)
    return torch.logsumexp(3 * (rows * weight).sum(1) / weight.sum(1), 0)


def mean(outputs: Tensor, y: Tensor | None, mask: Tensor | None) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), y.flatten())


@pytest.mark.parametrize("method", ["unroll", "first-order", "envelope"])
@pytest.mark.parametrize(
    ("kind", "norm", "options"),
    [
        ("full", "running", {}),
        ("lora", "support", {"head": "prototype-init"}),
        ("lora", "running", {"head": "ridge"}),
        ("lora", "running", {"head": "prototype-init", "inner_data": "both"}),
    ],
)
def test_an_inner_loss_in_a_plain_loop(kind: str, norm: str, options: dict[str, Any], method: str) -> None:
    given = {"inner": SGD(2, 0.1), "hypergradient": method, "inner_loss": smoothed, **options}
    own, net = learner_of(kind, norm, **given)
    value, expected = plain_gradients(own.variables, net, images(), format=FORMATS[kind], norm=norm, **given)
    found = own.hypergradient(images())
    torch.testing.assert_close(found.value, value, rtol=1e-9, atol=0)
    assert_same(dict(found.grads), expected)


def test_reptile_moves_by_the_inner_loss() -> None:
    given: dict[str, Any] = {"inner": SGD(2, 0.1), "hypergradient": "reptile", "inner_loss": smoothed}
    own, net = learner_of("full", net=Net(norm=False), **given)
    _, expected = plain_gradients(own.variables, net, images(), format=mp.Full(), **given)
    assert_same(dict(own.hypergradient(images()).grads), expected)


EXACT = [
    ("unroll", SGD(2, 0.1)),
    ("recompute", SGD(2, 0.1)),
    (ENGINES.Truncated(window=2), SGD(2, 0.1)),
    pytest.param("forward", SGD(2, 0.1), marks=pytest.mark.slow),
    (ENGINES.FiniteDifference(epsilon=1e-3), SGD(1, 0.1)),
    (ENGINES.MultiStep(), SGD(2, 0.1)),
    (ENGINES.CG(iterations=60), TO_REST),
    pytest.param("exact", TO_REST, marks=pytest.mark.slow),
    (ENGINES.Neumann(terms=60, lr=0.2), TO_REST),
    ("fixed-point", TO_REST),
]


@pytest.mark.parametrize("losses", [{"inner_loss": smoothed}, {"batch_loss": worst}], ids=["inner", "batch"])
@pytest.mark.parametrize(("method", "inner"), EXACT, ids=lambda value: str(value)[:12])
def test_every_engine_against_differences(method: Any, inner: Any, losses: dict[str, Any]) -> None:
    """Along a random direction in W0: what engines at a point of rest leave is the rest of the way, 1e-6 here."""
    own, _ = learner_of("lora", inner=inner, hypergradient=method, head="prototype-init", **losses)
    batch = images(seed=3)
    grads = own.hypergradient(batch).grads
    random = torch.Generator().manual_seed(0)
    step = {n: torch.randn(g.shape, generator=random, dtype=g.dtype) for n, g in grads.items()}
    values = []
    for sign in (1.0, -2.0, 1.0):
        for name, value in own.trained.items():
            value += sign * 1e-5 * step[name]
        values.append(own.hypergradient(batch).value)
    slope = (values[0] - values[1]) / 2e-5
    expected = sum((grads[name] * step[name]).sum() for name in grads)
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("method", "inner"), [*EXACT, ("first-order", SGD(2, 0.1)), ("envelope", SGD(2, 0.1))]
)
def test_the_mean_as_a_loss_of_the_batch_changes_nothing(method: Any, inner: Any) -> None:
    first, second = (
        learner_of("lora", inner=inner, hypergradient=method, head="prototype-init", batch_loss=loss)[0]
        for loss in (None, mean)
    )
    expected, found = (own.hypergradient(images()) for own in (first, second))
    torch.testing.assert_close(found.value, expected.value, rtol=1e-10, atol=0)
    rough = isinstance(method, ENGINES.FiniteDifference)  # rounding over its small step
    assert_same(dict(found.grads), dict(expected.grads), 1e-6 if rough else 1e-9)
    assert torch.equal(found.log["accuracy"], expected.log["accuracy"])


def test_a_loss_of_the_batch_under_masks_and_in_the_direct_form() -> None:
    own, _ = learner_of("lora", inner=SGD(2, 0.1), head="prototype-init", batch_loss=worst)
    batch = images(masked=True)
    plain, _ = learner_of("lora", inner=SGD(2, 0.1), head="prototype-init")
    values = plain.hypergradient(batch).log["values"]
    found = own.hypergradient(batch)
    torch.testing.assert_close(found.value, torch.logsumexp(3 * values, 0), rtol=1e-10, atol=0)
    direct = hypergradient(own.objectives(batch, training=True), direct_form=True)
    assert_same(dict(direct.grads), dict(found.grads), 1e-9)
    closed, _ = learner_of("lora", head="prototypes", batch_loss=worst)
    assert closed.hypergradient(batch).value.ndim == 0


def test_adapting_is_by_the_inner_loss_and_scores_by_the_other() -> None:
    batch = images()
    both, inner = (
        learner_of("lora", inner=SGD(3, 0.1), head="zero", **losses)[0]
        for losses in ({"inner_loss": smoothed}, {"loss": smoothed})
    )
    first, second = (own.adapt_many(batch.support_x, batch.support_y)(batch.query_x) for own in (both, inner))
    torch.testing.assert_close(first, second, rtol=1e-12, atol=0)

    class Once:
        def batch(self, start: int, count: int) -> mp.EpisodeBatch:
            return batch.tasks(slice(start, start + count))

    for own, loss in ((both, F.cross_entropy), (inner, smoothed)):
        expected = loss(first.flatten(0, 1), batch.query_y.flatten())
        assert mp.evaluate(own, Once(), 2).loss == pytest.approx(float(expected), rel=1e-9)


def test_a_run_knows_its_losses(tmp_path: Path) -> None:
    body = mp.backbones.mlp(4, 3, hidden=(8,))
    given: dict[str, Any] = {"inner_loss": F.multi_margin_loss, "batch_loss": worst}
    own = mp.methods.lora_ml(body, rank=1, **given)
    mp.save(own, tmp_path / "run")
    with pytest.raises(ValueError, match="batch_loss= is missing: the run was made with 'worst'"):
        mp.load(tmp_path / "run")
    with pytest.raises(ValueError, match=r"batch_loss.*is 'mean' here, but the run was started with 'worst'"):
        mp.load(tmp_path / "run", batch_loss=mean)
    again = mp.load(tmp_path / "run", batch_loss=worst)
    assert (again.inner_loss, again.batch_loss) == (F.multi_margin_loss, worst)
    mp.save(mp.methods.lora_ml(body, rank=1), tmp_path / "plain")
    assert not {"inner_loss", "batch_loss"} & set(mp.load(tmp_path / "plain").settings())
    with pytest.raises(
        ValueError, match=r"inner_loss is .*'mse_loss'.* here, but the run was started with None"
    ):
        mp.load(tmp_path / "plain", inner_loss=F.mse_loss)


def test_refusals() -> None:
    for options, message in (
        ({"inner_loss": F.mse_loss, "head": "prototypes"}, "inner_loss=.* has no effect: this learner has no inner"),
        ({"inner_loss": 3, "inner": SGD(1, 0.1)}, r"inner_loss=3 has to be a function \(outputs, targets, reduction"),
        ({"inner_loss": torch.nn.CrossEntropyLoss(), "inner": SGD(1, 0.1)}, "inner_loss=.*reduces by itself"),
        ({"batch_loss": 3, "inner": SGD(1, 0.1)}, r"batch_loss=3 has to be a function \(outputs, targets, mask\)"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            learner_of("lora", **options)  # type: ignore[arg-type]
    own, _ = learner_of("lora", inner=SGD(1, 0.1), batch_loss=lambda outputs, y, mask: outputs.mean((1, 2)))
    with pytest.raises(ValueError, match=r"batch_loss returned shape \(2,\): it has to return one number"):
        own.hypergradient(images())
    own, _ = learner_of("lora", inner=SGD(1, 0.1), batch_loss=worst)
    with pytest.raises(
        ValueError, match="chunk=2: batch_loss= is of all tasks of a step together, so chunk has no"
    ):
        mp.BilevelTrainer(own, chunk=2)
    with pytest.raises(ValueError, match=r"memory=.* has no effect: batch_loss= is of all tasks"):
        mp.BilevelTrainer(own, memory="8GiB")
