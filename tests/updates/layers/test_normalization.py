"""Where batch norm takes its statistics from, and what may not change them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp
from tests.updates.helpers import (
    FORMATS,
    assert_close,
    assert_equals_merged,
    call,
    randn,
    random_factors,
    randomised,
    task,
)

TASKS, SUPPORT, QUERIES = 4, 5, 6


def network() -> nn.Module:
    layers = [
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 3),
    ]
    layers.append(nn.BatchNorm1d(3, affine=False))
    return randomised(nn.Sequential(*layers))


def data() -> tuple[Tensor, Tensor]:
    return randn(TASKS, SUPPORT, 2, 3, 3), 1.0 + randn(TASKS, QUERIES, 2, 3, 3, seed=1)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("norm", ["running", "support"])
def test_equals_merged(norm: str, format: str) -> None:
    support, queries = data()
    model = mp.attach(network(), FORMATS[format], norm=norm)
    assert_equals_merged(model, queries, support if norm == "support" else None)


@pytest.mark.parametrize("format", FORMATS)
def test_transductive_is_train_mode_a_task_at_a_time(format: str) -> None:
    """torch normalises by the biased variance while it trains."""
    _, queries = data()
    net = network()
    model = mp.attach(net, FORMATS[format], norm="transductive")
    factors = random_factors(model, TASKS)
    merge = mp.attach(net, FORMATS[format])
    output = model(queries, factors)
    for number in range(TASKS):
        plain = merge.merged(task(factors, number)).train()
        assert_close(output[number], call(plain, queries[number]))


@pytest.mark.parametrize("mask", [None, torch.tensor([[True, True, False, True, True]]).repeat(TASKS, 1)])
def test_support_on_itself_is_transductive(mask: Tensor | None) -> None:
    support, _ = data()
    net = network()
    by_support, transductive = (mp.attach(net, mp.Full(), norm=norm) for norm in ("support", "transductive"))
    factors = random_factors(by_support, TASKS)
    expected = transductive(support, factors, mask=mask)
    assert_close(by_support(support, factors, (support, factors, mask)), expected, 1e-12)
    if mask is None:
        assert torch.equal(by_support(support, factors, support), expected)


def test_masked_inputs_do_not_count() -> None:
    support, queries = data()
    model = mp.attach(network(), mp.LoRA(2), norm="support")
    factors = random_factors(model, TASKS)
    mask = torch.ones(TASKS, SUPPORT, dtype=torch.bool)
    mask[:, 3:] = False
    masked = model(queries, factors, (support, factors, mask))
    assert_close(masked, model(queries, factors, support[:, :3]), 1e-12)
    other = support.clone()
    other[:, 3:] = 7.0
    assert torch.equal(model(queries, factors, (other, factors, mask)), masked)
    assert not torch.allclose(model(queries, factors, support), masked)


@pytest.mark.parametrize("norm", ["running", "support"])
def test_other_queries_change_no_prediction(norm: str) -> None:
    support, queries = data()
    model = mp.attach(network(), mp.CP(2), norm=norm)
    factors, own = random_factors(model, TASKS), support if norm == "support" else None
    all_of_them = model(queries, factors, own)
    order = torch.randperm(QUERIES, generator=torch.Generator().manual_seed(0))
    assert_close(model(queries[:, order], factors, own), all_of_them[:, order], 1e-13)
    assert_close(model(queries[:, :2], factors, own), all_of_them[:, :2], 1e-13)
    replaced = torch.cat([queries[:, :2], torch.full_like(queries[:, 2:], 1e3)], 1)
    assert_close(model(replaced, factors, own)[:, :2], all_of_them[:, :2], 1e-13)


def test_transductive_does_depend_on_other_queries() -> None:
    """The control of the test above."""
    _, queries = data()
    model = mp.attach(network(), mp.CP(2), norm="transductive")
    factors = random_factors(model, TASKS)
    assert not torch.allclose(model(queries[:, :2], factors), model(queries, factors)[:, :2])


@pytest.mark.parametrize("norm", ["support", "transductive"])
def test_statistics_come_back_and_buffers_stay(norm: str) -> None:
    support, queries = data()
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    model = mp.attach(net, {}, norm=norm)
    statistics: dict = {}
    own = support if norm == "support" else None
    model(queries, model.factors(), own, statistics=statistics)
    reference = support if norm == "support" else queries
    assert list(statistics) == ["1", "5"]
    mean, variance, count = statistics["1"]
    hidden = net[0](reference.flatten(0, 1)).detach().unflatten(0, reference.shape[:2])
    assert_close(mean, hidden.mean((1, 3, 4)), 1e-12)
    assert_close(variance, hidden.var((1, 3, 4), correction=0), 1e-12)
    assert count.tolist() == [reference.shape[1] * 9.0] * TASKS
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_layers_without_buffers_need_a_reference() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)).double()
    x = randn(2, 5, 3)
    with pytest.raises(ValueError, match="'1' keeps no running statistics"):
        mp.attach(net, mp.LoRA(1))(x, mp.attach(net, mp.LoRA(1)).factors())
    assert_equals_merged(mp.attach(net, mp.LoRA(1), norm="support"), x, randn(2, 4, 3, seed=3))


class Activated(nn.BatchNorm2d):
    """A batch norm that does more, as timm's do."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


@pytest.mark.parametrize("norm", ["running", "support"])
def test_subclass_keeps_what_it_does(norm: str) -> None:
    net = randomised(nn.Sequential(nn.Conv2d(2, 4, 1), Activated(4)))
    support, queries = data()
    assert_equals_merged(
        mp.attach(net, mp.Full(), norm=norm), queries, support if norm == "support" else None
    )


def test_missing_superfluous_and_misplaced_support() -> None:
    support, queries = data()
    net = network()
    models = {norm: mp.attach(net, mp.LoRA(1), norm=norm) for norm in ("running", "support", "transductive")}
    factors = models["running"].factors()
    mask = torch.ones(TASKS, SUPPORT, dtype=torch.bool)
    with pytest.raises(ValueError, match="needs support="):
        models["support"](queries, factors)
    for norm in ("running", "transductive"):
        with pytest.raises(ValueError, match="takes no support="):
            models[norm](queries, factors, support)
    for norm in ("running", "support"):
        with pytest.raises(ValueError, match="mask="):
            models[norm](queries, factors, support if norm == "support" else None, mask=mask)
    for bad in (mask[:, :2], mask.float(), mask[0]):
        with pytest.raises(ValueError, match="mask is"):
            models["support"](queries, factors, (support, factors, bad))
    with pytest.raises(ValueError, match="differ only in the number"):
        models["support"](queries, factors, support[:2])
    one = task(factors, 0)
    with pytest.raises(ValueError, match="transductive"):
        models["transductive"].merged(one)
    with pytest.raises(ValueError, match="needs support="):
        models["support"].merged(one)
    with pytest.raises(ValueError, match="takes no support="):
        models["running"].merged(one, support[0])
    with pytest.raises(ValueError, match="norm='batch'"):
        mp.attach(net, mp.LoRA(1), norm="batch")
