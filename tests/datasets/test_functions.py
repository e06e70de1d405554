"""Functions of several kinds: coefficients, found again from the points alone, are those of the papers' code."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import metapeft as mp
from metapeft.base import counter

PI = math.pi


@dataclass
class Model:
    """`y = columns(x, z, s) @ solution` for one number s of a grid: linear in all but one coefficient."""

    columns: Callable[..., list[Tensor]]
    coefficients: Callable[..., list[Tensor]]  # of solution and s, in the order of the ranges
    ranges: list[tuple[float, float]]
    grid: tuple[float, float] | None = None
    off: float = 1e-3  # float32, or the step of the grid


def phase(cos: Tensor, sin: Tensor) -> Tensor:
    return torch.atan2(sin, cos) % (2 * PI)


def one(x: Tensor) -> Tensor:
    return torch.ones_like(x)


THREE = (-3.0, 3.0)
MODELS: dict[str, dict[str, Model]] = {
    "mmaml": {
        "sine": Model(
            lambda x, z, s: [x.sin(), -x.cos()], lambda u, v, s: [u.hypot(v), phase(u, v)], [(0.1, 5), (0, PI)]
        ),
        "line": Model(lambda x, z, s: [x, one(x)], lambda a, b, s: [a, b], [THREE, THREE]),
        "quadratic": Model(
            lambda x, z, s: [x**2, x, one(x)],
            lambda a, b, c, s: [a.abs(), -b / (2 * a), c - b**2 / (4 * a)],
            [(0.02, 0.15), THREE, THREE],
        ),
        "abs": Model(
            lambda x, z, s: [(x - s).abs(), one(x)], lambda a, b, s: [a, b, s], [THREE] * 3, THREE, 0.1
        ),
        "tanh": Model(
            lambda x, z, s: [(x - s).tanh(), one(x)], lambda a, b, s: [a, b, s], [THREE] * 3, THREE, 0.1
        ),
    },
    "arml": {
        "sinusoid": Model(
            lambda x, z, s: [(s * x).sin(), (s * x).cos()],
            lambda u, v, s: [u.hypot(v), phase(u, v), s],
            [(0.1, 5), (0, 2 * PI), (0.8, 1.2)], (0.8, 1.2), 0.1,
        ),
        "line": Model(lambda x, z, s: [x, one(x)], lambda a, b, s: [a, b], [THREE, THREE]),
        "quadratic": Model(
            lambda x, z, s: [x**2, x, one(x)], lambda a, b, c, s: [a, b, c], [(-0.2, 0.2), (-2, 2), THREE]
        ),
        "cubic": Model(
            lambda x, z, s: [x**3, x**2, x, one(x)],
            lambda a, b, c, d, s: [a, b, c, d], [(-0.1, 0.1), (-0.2, 0.2), (-2, 2), THREE],
        ),
        "quadratic surface": Model(
            lambda x, z, s: [x**2, z**2], lambda a, b, s: [a, b], [(-1, 1), (-1, 1)]
        ),
        "ripple": Model(
            lambda x, z, s: [(-s * (x**2 + z**2)).sin(), one(x)],
            lambda height, b, s: [height.abs(), b, s * height.sign()],
            [(1.0, 1.0), THREE, (-0.2, 0.2)], (-0.2, 0.2), 0.1,
        ),
    },
}  # fmt: skip
DOMAIN = {"mmaml": (-5.0, 5.0), "arml": (0.0, 5.0)}


def keys(tasks: int) -> Any:
    return counter.words(counter.root(0), tasks)[0]


@pytest.fixture(scope="module")
def drawn() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Of each protocol 2,500 tasks of 30 points without noise: x, y, kinds."""
    found = {}
    for protocol in MODELS:
        data = mp.Functions(noise=0.0, protocol=protocol)
        x, y = data.draw(keys(2500), 30)
        found[protocol] = (x.double(), y.double(), torch.from_numpy(data.kinds_of(keys(2500))))
    return found


@pytest.mark.parametrize(("protocol", "name"), [(p, name) for p, models in MODELS.items() for name in models])
def test_formulas_and_ranges(
    drawn: dict[str, tuple[Tensor, Tensor, Tensor]], protocol: str, name: str
) -> None:
    model, (x, y, kinds) = MODELS[protocol][name], drawn[protocol]
    mine = kinds == list(MODELS[protocol]).index(name)
    x, y = x[mine], y[mine]
    grid = torch.zeros(1) if model.grid is None else torch.linspace(*model.grid, 201)
    best: list[Tensor] = []
    for s in grid.double():
        columns = torch.stack(model.columns(x[..., 0], x[..., -1], s), dim=-1)
        solution = torch.linalg.lstsq(columns, y).solution
        off = (columns @ solution - y).abs().amax((1, 2))
        row = torch.cat([off[:, None], s.expand(len(x), 1), solution[..., 0]], dim=1)
        best = [row] if not best else [torch.where(off[:, None] < best[0][:, :1], row, best[0])]
    off, s, *solution = best[0].T
    assert off.max() < model.off
    for found, (low, high) in zip(model.coefficients(*solution, s), model.ranges, strict=True):
        if low == high:  # a number of the formula
            assert (found - low).abs().median() < 0.01
            continue
        assert low - 0.02 < found.min()
        assert found.max() < high + 0.02
        assert stats.kstest(found.numpy(), stats.uniform(low, high - low).cdf).pvalue > 0.001
    if name == "quadratic" and protocol == "mmaml":  # either sign
        assert 0.35 < (solution[0] > 0).double().mean() < 0.65


@pytest.mark.parametrize("protocol", list(MODELS))
def test_inputs_kinds_and_noise(drawn: dict[str, tuple[Tensor, Tensor, Tensor]], protocol: str) -> None:
    x, y, kinds = drawn[protocol]
    low, high = DOMAIN[protocol]
    assert stats.kstest(x[..., 0].flatten().numpy(), stats.uniform(low, high - low).cdf).pvalue > 0.001
    assert stats.chisquare(kinds.bincount(minlength=len(MODELS[protocol]))).pvalue > 0.001
    if protocol == "arml":
        assert x.shape[-1] == 2
        assert bool((x[kinds < 4][..., 1] == 1).all())
        both = x[kinds >= 4]
        assert stats.kstest(both[..., 1].flatten().numpy(), stats.uniform(0, 5).cdf).pvalue > 0.001
        assert abs(np.corrcoef(both.flatten(0, 1).T.numpy())[0, 1]) < 0.02
    noisy_x, noisy_y = mp.Functions(noise=0.3, protocol=protocol).draw(keys(2500), 30)
    assert torch.equal(noisy_x.double(), x)
    assert stats.kstest((noisy_y.double() - y).flatten().numpy() / 0.3, "norm").pvalue > 0.001


def test_fewer_points_are_the_first_of_more() -> None:
    for data in (mp.Functions(), mp.Functions(protocol="arml")):
        (x, y), (more_x, more_y) = data.draw(keys(5), 3), data.draw(keys(5), 8)
        assert torch.equal(x, more_x[:, :3])
        assert torch.equal(y, more_y[:, :3])


def test_splits_are_streams_of_their_own() -> None:
    parts = [mp.Functions(split) for split in ("train", "val", "test")]
    points = torch.stack([data.draw(keys(50), 2)[0] for data in parts])
    assert len(points.flatten().unique()) == points.numel()
    kinds = [tuple(data.kinds_of(keys(50)).tolist()) for data in parts]
    assert len(set(kinds)) == 3
    assert len({data.split_hash for data in parts}) == 3


def test_the_hash_tells_protocols_domains_and_noise_apart() -> None:
    many = [
        mp.Functions(), mp.Functions(noise=0.0), mp.Functions(protocol="arml"),
        mp.Functions(protocol="arml", domain=(-5, 5)),
    ]  # fmt: skip
    assert len({data.split_hash for data in many}) == 4
    assert [many[0].name, many[2].name] == ["functions", "functions-arml"]
    assert mp.Functions(domain=(-5, 5)).split_hash == mp.Functions().split_hash


def test_workers_of_a_data_loader_can_be_sent_it() -> None:
    """What is sent to another process is pickled, where processes do not fork."""
    sampler = mp.EpisodeSampler(mp.Functions(protocol="arml"), 1, 4, 6)
    assert pickle.dumps(mp.MixedSampler({"a": sampler}))


def test_a_domain_of_ones_own() -> None:
    x, _ = mp.Functions(protocol="arml", domain=(-5, 5)).draw(keys(300), 20)
    assert stats.kstest(x[..., 0].flatten().numpy(), stats.uniform(-5, 10).cdf).pvalue > 0.001


def test_episodes_know_their_kinds() -> None:
    data = mp.load_dataset("functions", split="val", protocol="arml", noise=0.0)
    sampler = mp.EpisodeSampler(data, 1, 10, 20, seed=3)
    assert sampler.kinds == tuple(MODELS["arml"])
    batch = sampler.batch(0, 60)
    assert batch.support_x.shape == (60, 10, 2)
    flat = (batch.query_x[..., 1] == 1).all(1)
    assert torch.equal(flat, batch.kind < 4)
    kinds = sampler.kind_of(range(60))
    assert kinds.tolist() == batch.kind.tolist()
    other = sampler.partners(range(60), same_kind=False)
    assert (sampler.kind_of(other) != kinds).all()
    own = [mp.MixedSampler({"a": sampler, "b": mp.EpisodeSampler(data, 1, 10, 20, seed=4)}).batch(0, 20)]
    assert own[0].support_y.shape == (20, 10, 1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"root": "x"}, "root has no effect on 'functions', whose tasks are made up"),
        ({"noise": -0.1}, "noise=-0.1: allowed is a finite number of at least 0"),
        ({"protocol": "maml"}, "protocol='maml': allowed are 'mmaml' and 'arml'"),
        ({"domain": 5}, "domain=5: allowed are two numbers, the lower first"),
        ({"domain": (5, 5)}, r"domain=\(5, 5\): allowed are two numbers, the lower first"),
        ({"domain": (0, "5")}, r"domain\[1\]='5': allowed is a finite number"),
        ({"split": "all"}, "split must be one of"),
        ({"noize": 1}, "no option 'noize': it has noise, protocol, domain; did you mean 'noise'"),
    ],
)
def test_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        mp.load_dataset("functions", **options)
