"""The formats against their formulas, against tensorly, and against each other."""

from __future__ import annotations

import math

import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.cp_tensor import cp_to_tensor
from tensorly.tr_tensor import tr_to_tensor
from torch import Tensor, nn

import metapeft as mp
from metapeft.updates.formats.format import Format, Geometry
from metapeft.updates.table import registry
from tests.updates import helpers
from tests.updates.helpers import SELECTIONS, assert_close, generator, randn

GEOMETRIES = {
    "linear": Geometry((5, 7)),
    "conv1d": Geometry((6, 4, 3)),
    "conv2d": Geometry((6, 4, 3, 2)),
    "embedding": Geometry((9, 4), transposed=True),
}
#: every format of the table -> its settings, and the scale of each by hand
GRID: dict[str, dict[Format, float]] = {
    "full": {mp.Full(): 1.0},
    "lora": {mp.LoRA(3): 1.0, mp.LoRA(2, alpha=5.0): 2.5, mp.LoRA(0): 1.0},
    "cp": {mp.CP(3): 1.0, mp.CP(2, alpha=0.5): 0.25, mp.CP(0): 1.0, mp.CP(2, shift=True): 1.0},
    "tensor-ring": {
        mp.TensorRing(2): 1.0, mp.TensorRing((1, 3, 2), alpha=2.0): 2 / 3, mp.TensorRing((3, 1, 2)): 1.0,
        mp.TensorRing(0): 1.0,
    },
}  # fmt: skip
CASES = [
    pytest.param(name, format, scale, id=str(format))
    for name, formats in GRID.items()
    for format, scale in formats.items()
]
LOW_RANK = [format for formats in GRID.values() for format in formats if not format.dense]


def random(format: Format, geometry: Geometry, tasks: int = 2) -> dict[str, Tensor]:
    shapes = format.shapes(geometry)
    return {name: randn(tasks, *shape, seed=number) for number, (name, shape) in enumerate(shapes.items())}


@pytest.fixture(autouse=True)
def _pytorch_backend():
    with tensorly.backend_context("pytorch"):
        yield


def matrix(factor: Tensor) -> Tensor:
    """A of one task as `(in * kernel, r)`."""
    return factor.flatten(1).T


def of_cp(own: dict[str, Tensor]) -> Tensor:
    """tensorly's sum of `seed_r B[:, r] x A[r]`, as `(out, in * kernel)`; a seed of ones for LoRA."""
    weights = own.get("seed", torch.ones(len(own["A"]), dtype=torch.float64))
    return cp_to_tensor((weights, [own["B"], matrix(own["A"])]))


def of_ring(own: dict[str, Tensor]) -> Tensor:
    """tensorly's ring of `A (R0, in * kernel, R1)`, `B (R1, out, R2)` and `seed (R2, 1, R0)`."""
    ring = tr_to_tensor([own["A"].flatten(1, -2), own["B"], own["seed"].unsqueeze(1)])
    return ring.squeeze(-1).T


#: name -> its update without the scale, from one task's factors
FORMULAS = {"full": lambda own: own["delta"], "lora": of_cp, "cp": of_cp, "tensor-ring": of_ring}


def test_every_format_is_in_the_grids() -> None:
    names = {name for name, kind in registry.names.items() if issubclass(registry.attribute(kind), Format)}
    assert set(GRID) == set(FORMULAS) == set(helpers.GRID) == names
    for name in names:
        classes = {type(format) for format in [*GRID[name], *helpers.GRID[name].values()]}
        assert classes == {registry.resolve(name)}
    assert set(SELECTIONS) == set(registry.names) - names


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize(("name", "format", "scale"), CASES)
def test_the_update_is_that_of_tensorly(name: str, format: Format, scale: float, geometry: Geometry) -> None:
    factors = random(format, geometry)
    deltas = format.delta(factors)
    if not format.terms and not format.dense:  # rank 0, which tensorly has not
        assert deltas.shape == (2, geometry.out, geometry.inner, *geometry.kernel)
        assert not deltas.any()
        return
    for number, delta in enumerate(deltas):
        expected = scale * FORMULAS[name]({key: value[number] for key, value in factors.items()})
        assert_close(delta.reshape(expected.shape), expected, 1e-12)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("format", LOW_RANK, ids=str)
def test_layout_and_pieces(format: Format, geometry: Geometry) -> None:
    """`delta = up @ down = to_lora`, in shapes that other programs rely on."""
    factors = random(format, geometry)
    delta = format.delta(factors)
    assert delta.shape == (2, geometry.out, geometry.inner, *geometry.kernel)
    assert_close((format.up(factors) @ format.down(factors).flatten(2)).view(delta.shape), delta, 1e-12)
    lora = format.to_lora(factors)
    rank = lora["A"].shape[1]
    assert lora["A"].shape == (2, rank, geometry.inner, *geometry.kernel)
    assert lora["B"].shape == (2, geometry.out, rank)
    assert_close(mp.LoRA(rank).delta(lora), delta, 1e-12)
    assert geometry.stored(delta).shape == (2, *geometry.shape)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_cp_with_seed_one_is_lora(geometry: Geometry) -> None:
    factors = random(mp.LoRA(2, alpha=3.0), geometry)
    seeded = {**factors, "seed": torch.ones(2, 2, dtype=torch.float64)}
    assert torch.equal(mp.CP(2, alpha=3.0).delta(seeded), mp.LoRA(2, alpha=3.0).delta(factors))


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_tensor_ring_contains_cp(geometry: Geometry) -> None:
    """`A[r0, i, r1] = d(r0, r1) a[r0, i]`, `B[r1, o, r2] = d(r1, r2) b[o, r1]`, `seed = diag(c)`."""
    factors = random(mp.CP(2), geometry)
    identity = torch.eye(2, dtype=torch.float64)
    ring = {
        "A": torch.einsum("tri...,rs->tri...s", factors["A"], identity),
        "B": torch.einsum("tor,rs->tros", factors["B"], identity),
        "seed": torch.diag_embed(factors["seed"]),
    }
    assert_close(mp.TensorRing(2).delta(ring), mp.CP(2).delta(factors), 1e-12)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("format", [*LOW_RANK, mp.Full()], ids=str)
def test_start_is_a_zero_update_that_can_move(format: Format, geometry: Geometry) -> None:
    start = format.start(geometry, generator())
    assert {name: tuple(value.shape[1:]) for name, value in start.items()} == format.shapes(geometry)
    leaves = {name: value.requires_grad_() for name, value in start.items()}
    delta = format.delta(leaves)
    assert not delta.any()
    if format.terms or format.dense:
        target = torch.randn(delta.shape, generator=generator(1))
        gradients = torch.autograd.grad((delta * target).sum(), list(leaves.values()), allow_unused=True)
        assert any(gradient is not None and gradient.any() for gradient in gradients)


def test_rank_bounds() -> None:
    """CP reaches rank R, a tensor ring R^2."""
    geometry = Geometry((12, 12))
    assert torch.linalg.matrix_rank(mp.CP(3).delta(random(mp.CP(3), geometry))).tolist() == [3, 3]
    assert torch.linalg.matrix_rank(mp.TensorRing(3).delta(random(mp.TensorRing(3), geometry))).tolist() == [
        9,
        9,
    ]


def test_start_does_not_read_or_move_the_global_random_state() -> None:
    layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = mp.attach(layers, mp.LoRA(1)).factors()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    two = mp.attach(layers, mp.LoRA(1)).factors()
    other = mp.attach(layers, mp.LoRA(1), seed=1).factors()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["0.weight.A"], other["0.weight.A"])
    alone = mp.attach(layers, mp.LoRA(1), targets="1").factors()
    assert torch.equal(alone["1.weight.A"], one["1.weight.A"])  # whatever else carries an update


@pytest.mark.parametrize("seed", [-3, 2**62, 2**70])
def test_any_integer_is_a_seed(seed: int) -> None:
    """Each a start of its own, and the same one again."""
    found, again, next_one = (
        mp.attach(nn.Linear(2, 2), mp.LoRA(1), seed=number).factors()["weight.A"]
        for number in (seed, seed, seed + 1)
    )
    assert torch.equal(found, again)
    assert not torch.equal(found, next_one)


@pytest.mark.parametrize("seed", [None, 4])
def test_selection_weighs_the_terms(seed: int | None) -> None:
    """Weights 1 change nothing, a weight 0 is the update without that term."""
    geometry = GEOMETRIES["conv2d"]
    for format in (mp.LoRA(3, alpha=2.0), mp.CP(3), mp.TensorRing((2, 3, 1))):
        factors = random(format, geometry)
        if seed is not None and format.seed:  # a seed per input
            factors["seed"] = randn(2, seed, *factors["seed"].shape[1:])
            assert (
                format.select(factors, torch.ones(3, dtype=torch.float64))["seed"].shape
                == factors["seed"].shape
            )
            continue
        kept = format.select(factors, torch.ones(3, dtype=torch.float64))
        assert_close(format.delta(kept), format.delta(factors), 1e-14)
        parts = sum(format.delta(format.select(factors, row)) for row in torch.eye(3, dtype=torch.float64))
        assert_close(parts, format.delta(factors), 1e-12)
        weights = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
        weighed = sum(
            w * format.delta(format.select(factors, row)) for w, row in zip(weights, torch.eye(3).double())
        )
        assert_close(format.delta(format.select(factors, weights)), weighed, 1e-12)


@settings(max_examples=50, deadline=None)
@given(
    out=st.integers(1, 5),
    inner=st.integers(1, 5),
    kernel=st.lists(st.integers(1, 3), max_size=2),
    rank=st.integers(0, 40),
    alpha=st.none() | st.floats(0.1, 10),
)
def test_cutting_keeps_the_scale(
    out: int, inner: int, kernel: list[int], rank: int, alpha: float | None
) -> None:
    geometry = Geometry((out, inner, *kernel))
    assert geometry.limit == min(out, inner * math.prod(kernel))
    for format in (mp.LoRA(rank, alpha), mp.CP(rank, alpha), mp.TensorRing(rank, alpha)):
        cut = format.cut(geometry.limit)
        assert cut.terms == min(rank, geometry.limit)
        assert cut.scale == pytest.approx(format.scale)
        assert cut.at_rank(3).terms == 3


@pytest.mark.parametrize("rank", [-1, 1.5, True, "2", None])
def test_bad_ranks(rank: object) -> None:
    for format in (mp.LoRA, mp.CP, mp.TensorRing):
        with pytest.raises(ValueError, match="rank"):
            format(rank)


def test_bad_bonds_and_alphas() -> None:
    with pytest.raises(ValueError, match="three"):
        mp.TensorRing((1, 2))
    for alpha in (0, -1.0, math.nan, math.inf, "4"):
        for format in (mp.LoRA, mp.CP, mp.TensorRing):
            with pytest.raises(ValueError, match="alpha"):
                format(2, alpha)
