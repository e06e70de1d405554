"""Neumann terms on batches of their own: each draw in closed form, and all draws together the full batch's value."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import metapeft as mp
from metapeft.hypergradients import Neumann, hypergradient
from metapeft.inner import SGD, solve
from metapeft.learner import settings
from tests.hypergradients.quadratics import assert_close

LR, SIZE, BATCHES = 0.3, 4, 3
numbers = torch.Generator().manual_seed(0)
ROOTS = torch.randn(BATCHES, SIZE, SIZE, generator=numbers, dtype=torch.float64) / 3
H = ROOTS @ ROOTS.mT + torch.eye(SIZE).double()
B = torch.randn(BATCHES, SIZE, 2, generator=numbers, dtype=torch.float64)
Y = torch.randn(SIZE, generator=numbers, dtype=torch.float64)
U = {"c": torch.tensor([0.5, -1.0]).double()}
W = {"w": torch.randn(SIZE, generator=numbers, dtype=torch.float64)}


def inner(u: Any, w: Any, batch: Any) -> Tensor:
    """`w'H w / 2 - w'B c` of one batch, or the mean over several."""
    x, at = w["w"], torch.as_tensor(batch).reshape(-1)
    return x @ H[at].mean(0) @ x / 2 - x @ (B[at].mean(0) @ u["c"])


def outer(u: Any, w: Any, _: Any) -> Tensor:
    return (w["w"] - Y).square().sum() / 2


def found(steps: int, terms: int, batches: Any, w: Any = None) -> mp.hypergradients.Result:
    method = Neumann(terms, LR, fresh=True)
    return hypergradient(outer, inner, U, w or W, SGD(steps, 0.2), method, data=(batches, None))


@pytest.mark.parametrize("steps", [0, 2])
def test_each_draw_is_its_product_of_matrices(steps: int) -> None:
    """`q = lr (g + A_a g + A_b A_a g)` with `A_b = I - lr H_b`, and the last batch in the mixed derivative."""
    first = [2, 0][:steps]
    w = solve(inner, U, W, SGD(steps, 0.2), first) if steps else W
    eye = torch.eye(SIZE).double()
    for a, b, last in product(range(BATCHES), repeat=3):
        g = w["w"] - Y
        power = (eye - LR * H[a]) @ g
        q = LR * (g + power + (eye - LR * H[b]) @ power)
        result = found(steps, 3, [*first, a, b, last])
        assert_close(result.grads, {"c": B[last].T @ q}, 1e-12)
        assert_close(result.w, w, 1e-12)
        torch.testing.assert_close(result.residual, ((eye - LR * H[b]) @ power).norm() / g.norm())


@pytest.mark.filterwarnings("ignore::metapeft.hypergradients.NotConverged")  # no step is made
@pytest.mark.parametrize("terms", [1, 2, 4])
def test_the_mean_over_all_draws_is_the_value_of_the_full_batch(terms: int) -> None:
    draws = [found(0, terms, list(draw)).grads["c"] for draw in product(range(BATCHES), repeat=terms)]
    everything = list(range(BATCHES))
    full = hypergradient(outer, inner, U, W, SGD(0, 0.2), Neumann(terms, LR), data=(tuple(everything), None))
    mean, A = H.mean(0), torch.eye(SIZE).double() - LR * H.mean(0)
    g = W["w"] - Y
    closed = B.mean(0).T @ (LR * sum(torch.linalg.matrix_power(A, j) @ g for j in range(terms)))
    assert float(torch.linalg.eigvalsh(mean).max()) < 2 / LR
    assert_close(full.grads, {"c": closed}, 1e-12)
    torch.testing.assert_close(torch.stack(draws).mean(0), closed, rtol=1e-12, atol=1e-13)
    assert terms == 1 or float(torch.stack(draws).std(0).min()) > 1e-3
    # one batch for all terms is another thing: its powers do not average
    same = torch.stack([found(0, terms, [b] * terms).grads["c"] for b in range(BATCHES)]).mean(0)
    assert terms == 1 or float((same - closed).abs().max()) > 1e-3


def test_a_task_axis() -> None:
    def each(objective: Any) -> Any:
        return lambda u, w, batch: torch.stack([objective(u, {"w": w["w"][t]}, batch) for t in range(2)])

    both = {"w": torch.stack([W["w"], Y / 2])}
    together = hypergradient(
        each(outer),
        each(inner),
        U,
        both,
        SGD(1, 0.2),
        Neumann(2, LR, fresh=True),
        ([0, 1, 2], None),
        task_axis=True,
    )
    alone = [found(1, 2, [0, 1, 2], {"w": both["w"][t]}).grads["c"] for t in range(2)]
    torch.testing.assert_close(together.grads["c"], sum(alone) / 2)
    assert together.residual.shape == (2,)


def test_a_trainer_whose_batches_have_them(tmp_path: Path) -> None:
    """K batches and `terms` more a step; where the inner variables are held, the last of them."""

    class Draws:
        def batch(self, start: int, count: int) -> Any:
            return torch.randint(0, 3, (4,), generator=torch.Generator().manual_seed(start)).tolist(), None

    task = mp.Problem(outer, inner, U, W, SGD(1, 0.2), Neumann(3, LR, fresh=True))
    trainer = mp.BilevelTrainer(
        task, torch.optim.SGD, lr=0.1, warm_start=True, inner_every=2, tasks_per_step=1, progress=False
    )
    trainer.fit(Draws(), steps=5, run_dir=tmp_path / "run")
    u, w = U, W
    for step in range(5):
        batches, held = Draws().batch(step, 1)[0], step % 2
        result = hypergradient(
            outer, inner, u, w, SGD(1 - held, 0.2), task.method, data=(batches[held:], None)
        )
        u, w = {"c": u["c"] - 0.1 * result.grads["c"]}, result.w
    assert_close(trainer.learner.trained, u, 1e-12)


def test_settings_and_refusals() -> None:
    assert settings.of(Neumann())["fields"] == {"terms": 20, "lr": 0.1}  # as runs of before have it
    fields = {"terms": 2, "lr": 0.1, "fresh": True}
    assert settings.of(Neumann(2, fresh=True))["fields"] == fields
    assert settings.built({"name": "Neumann", "fields": fields}, "method") == Neumann(2, fresh=True)
    for batches in ([0, 1], [0, 1, 2, 0], 0):
        with pytest.raises(
            ValueError, match=r"a list of 3 batches is needed: one for each of 1 steps, and 2 more"
        ):
            found(1, 2, batches)
    with pytest.raises(ValueError, match=r"the inner level is without data, but a list of 3"):
        hypergradient(
            lambda u, w: outer(u, w, 0),
            lambda u, w: inner(u, w, 0),
            U,
            W,
            SGD(1, 0.2),
            Neumann(2, fresh=True),
        )
    with pytest.raises(ValueError, match=r"fresh=True with terms=0 has no effect"):
        Neumann(0, fresh=True)
    with pytest.raises(ValueError, match=r"fresh=2"):
        Neumann(2, fresh=2)
