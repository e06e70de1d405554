"""Meta-SGD, Reptile, iMAML, R2-D2 and MAML++ against loops of their own over tasks and steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

import metapeft as mp
from metapeft.hypergradients import CG, MultiStep
from metapeft.methods.maml_plus_plus import step_weights
from tests.learner.helpers import images
from tests.learner.plain import Net

Tensors = dict[str, Tensor]
BATCH = images()
TASKS = range(2)


def weights_of(net: Net) -> Tensors:
    return {name: value.detach().clone().requires_grad_() for name, value in net.named_parameters()}


def loss(net: Net, weights: Tensors, task: int, part: str) -> Tensor:
    """Of one task on its support set, its query set, or both."""
    parts = ("support", "query") if part == "both" else (part,)
    x = torch.cat([getattr(BATCH, f"{name}_x")[task] for name in parts])
    y = torch.cat([getattr(BATCH, f"{name}_y")[task] for name in parts])
    return F.cross_entropy(functional_call(net, weights, (x,)), y)


def trajectory(
    net: Net, weights: Tensors, task: int, rates: list[Tensors], second_order: bool = True
) -> list[Tensors]:
    """The weights after each inner step on the support set, with their graph."""
    now, path = dict(weights), []
    for rate in rates:
        grads = torch.autograd.grad(
            loss(net, now, task, "support"), list(now.values()), create_graph=second_order
        )
        now = {name: now[name] - rate[name] * grad for name, grad in zip(now, grads)}
        path.append(now)
    return path


def assert_close(found: Tensors, expected: dict[str, Any], relative: float = 1e-9) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=relative, atol=relative * float(value.abs().max())
        )


@pytest.mark.parametrize("steps", [1, 3])
def test_meta_sgd_learns_a_rate_for_every_element_and_step(steps: int) -> None:
    net = Net(norm=False)
    found = mp.methods.meta_sgd(net, steps=steps, lr=0.3).hypergradient(BATCH)
    weights = weights_of(net)
    rates = [{n: torch.full_like(w, 0.3).requires_grad_() for n, w in weights.items()} for _ in range(steps)]
    value = sum(loss(net, trajectory(net, weights, t, rates)[-1], t, "query") for t in TASKS) / 2
    leaves = [*weights.values(), *(rate[name] for rate in rates for name in rate)]
    grads = torch.autograd.grad(value, leaves)
    expected = {f"weights.{name}": grad for name, grad in zip(weights, grads)}
    of_rates = iter(grads[len(weights) :])
    by_step = [{name: next(of_rates) for name in weights} for _ in range(steps)]
    for name in weights:
        expected[f"rates.{name}.delta"] = torch.stack([step[name] for step in by_step])
    got = {
        name: grad.reshape(expected[name].shape) if name.startswith("rates.") else grad
        for name, grad in found.grads.items()
    }
    assert set(got) == set(expected)
    assert_close(got, expected)


@pytest.mark.parametrize("part", ["both", "support"])
def test_reptile_is_minus_the_mean_update_on_all_data_of_a_task(part: str) -> None:
    net = Net(norm=False)
    found = mp.methods.reptile(net, steps=4, lr=0.2, inner_data=part).hypergradient(BATCH)
    moved: dict[str, list[Tensor]] = {}
    for t in TASKS:
        now = weights_of(net)
        for _ in range(4):
            grads = torch.autograd.grad(loss(net, now, t, part), list(now.values()))
            now = {n: (now[n] - 0.2 * g).detach().requires_grad_() for n, g in zip(now, grads)}
        for name, value in now.items():
            moved.setdefault(name, []).append(net.get_parameter(name).detach() - value.detach())
    assert_close(
        found.grads, {f"weights.{name}": torch.stack(values).mean(0) for name, values in moved.items()}
    )


@pytest.mark.parametrize("proximal", [pytest.param(1.0, marks=pytest.mark.slow), 4.0])
def test_imaml_is_the_closed_form_of_its_paper(proximal: float) -> None:
    """Eq. 6: `(I + H / lambda)^-1 grad L_query` at the regularised minimum, H the plain Hessian there."""
    net = Net(norm=False)
    learner = mp.methods.imaml(net, steps=200, lr=0.15, proximal=proximal, hypergradient=CG(iterations=200))
    found = learner.hypergradient(BATCH)
    weights = weights_of(net)
    total = {name: torch.zeros_like(value) for name, value in weights.items()}
    names, sizes = list(weights), [value.numel() for value in weights.values()]

    def named(flat: Tensor) -> Tensors:
        return {n: part.view_as(weights[n]) for n, part in zip(names, flat.split(sizes))}

    origin = torch.cat([value.detach().flatten() for value in weights.values()])
    for t in TASKS:
        flat = torch.cat([origin[:0], *(found.w[f"{name}.delta"][t].flatten() for name in names)]) + origin
        hessian = torch.autograd.functional.hessian(lambda w, t=t: loss(net, named(w), t, "support"), flat)
        leaf = flat.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(net, named(leaf), t, "query"), leaf)
        grad = torch.linalg.solve(torch.eye(len(flat)).double() + hessian / proximal, g)
        total = {name: total[name] + value / 2 for name, value in named(grad).items()}
    assert float(found.log["stationarity"].max()) < 1e-6
    # CG stops at a residual of 1e-10; the formula at the returned point is the same expression in both
    assert_close(found.grads, {f"weights.{name}": value for name, value in total.items()}, relative=1e-7)


def test_r2d2_is_a_ridge_regression_a_task() -> None:
    net = Net(norm=False)
    learner = mp.methods.r2d2(net)
    found = learner.hypergradient(BATCH)
    weights = {n: v for n, v in weights_of(net).items() if not n.startswith("classifier")}
    log_penalty, log_scale, bias = (
        torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(3)
    )
    value = torch.zeros(())
    for t in TASKS:
        features = [
            functional_call(Body(net), {f"net.{n}": v for n, v in weights.items()}, (x[t],))
            for x in (BATCH.support_x, BATCH.query_x)
        ]
        x, rows = features[0], F.one_hot(BATCH.support_y[t], 3).double()
        # the primal form; the head solves the other one
        solution = torch.linalg.inv(x.T @ x + log_penalty.exp() * torch.eye(x.shape[1]).double()) @ x.T @ rows
        logits = log_scale.exp() * features[1] @ solution + bias
        value = value + F.cross_entropy(logits, BATCH.query_y[t]) / 2
    leaves = {**{f"weights.{n}": v for n, v in weights.items()}, "head.log_penalty": log_penalty}
    leaves.update({"head.log_scale": log_scale})
    grads = torch.autograd.grad(value, list(leaves.values()))
    assert found.value.item() == pytest.approx(value.item(), rel=1e-10)
    assert_close(found.grads, dict(zip(leaves, grads)))


class Body(torch.nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net.features(x)


def plus_plus(
    net: Net, weights: Tensors, rates: Tensors, steps: int, v: tuple[float, ...], second_order: bool
) -> tuple[Tensor, list[Tensor]]:
    """The multi-step loss of MAML++ and its gradient for weights, then rates."""
    value = torch.zeros((), dtype=torch.float64)
    for t in TASKS:
        by_step = [{name: rate[k] for name, rate in rates.items()} for k in range(steps)]
        path = trajectory(net, weights, t, by_step, second_order)
        value = value + sum(share * loss(net, at, t, "query") for share, at in zip(v, path)) / 2
    return value, list(torch.autograd.grad(value, [*weights.values(), *rates.values()]))


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("v", [(0.25, 0.25, 0.5), (0.0, 0.0, 1.0), (0.6, 0.4, 0.0), None])
def test_multi_step_loss_and_rates(v: tuple[float, ...] | None, second_order: bool) -> None:
    net = Net(norm=False)
    learner = mp.methods.mamlpp(net, steps=3, lr=0.3, hypergradient=MultiStep(v, second_order))
    found = learner.hypergradient(BATCH)
    weights = weights_of(net)
    rates = {name: torch.full((3,), 0.3, dtype=torch.float64, requires_grad=True) for name in weights}
    value, grads = plus_plus(net, weights, rates, 3, v or (0.0, 0.0, 1.0), second_order)
    expected = [f"weights.{name}" for name in weights] + [f"rates.{name}.delta" for name in rates]
    assert found.value.item() == pytest.approx(value.item(), rel=1e-12)
    assert_close(found.grads, dict(zip(expected, grads)))


def test_the_outer_step_drives_weights_order_and_rate() -> None:
    """Six outer steps against a loop by hand: annealed loss, first order for two steps, cosine."""
    net, steps = Net(norm=False), 6
    learner = mp.methods.mamlpp(net, steps=2, lr=0.3)
    schedule = mp.methods.annealing(learner, multi_step=4, first_order=2)
    trainer = mp.BilevelTrainer(
        learner, torch.optim.SGD, lr=0.5, tasks_per_step=2, schedule=schedule, progress=False
    )
    trainer.fit(Always(), steps)
    weights = weights_of(net)
    rates = {name: torch.full((2,), 0.3, dtype=torch.float64, requires_grad=True) for name in weights}
    for step in range(steps):
        each = max(1 - step / 4, 0) / 2
        _, grads = plus_plus(net, weights, rates, 2, (each, 1 - each), second_order=step >= 2)
        pace = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / steps)).item()) / 2
        with torch.no_grad():
            for value, grad in zip([*weights.values(), *rates.values()], grads):
                value -= pace * grad
    assert_close(
        learner.trained, {f"weights.{name}": value.detach() for name, value in weights.items()}, 1e-7
    )
    assert_close(learner.trained, {f"rates.{n}.delta": value.detach() for n, value in rates.items()}, 1e-7)


class Always:
    """The same batch at every step."""

    def batch(self, start: int, count: int) -> Any:
        return BATCH


def test_a_resumed_run_goes_on_at_its_step(tmp_path: Path) -> None:
    def trainer() -> tuple[Any, Any]:
        learner = mp.methods.mamlpp(Net(norm=False), steps=2, lr=0.3)
        schedule = mp.methods.annealing(learner, multi_step=4, first_order=2)
        return learner, mp.BilevelTrainer(learner, tasks_per_step=2, schedule=schedule, progress=False)

    whole, one = trainer()
    one.fit(Always(), 5)
    cut, two = trainer()
    two.fit(Always(), 5, run_dir=tmp_path / "run", stop_at=3)
    again, three = trainer()
    three.resume(tmp_path / "run", Always())
    assert again.engine == whole.engine == MultiStep((0.0, 1.0), True)
    assert cut.engine == MultiStep((0.125, 0.875), True)
    for name, value in whole.trained.items():
        assert torch.equal(value, again.trained[name]), name


@pytest.mark.parametrize("until", [0, 1, 7])
@pytest.mark.parametrize("inner_steps", [1, 3])
def test_step_weights_add_up_to_one_and_end_on_the_last(until: int, inner_steps: int) -> None:
    for step in range(9):
        weights = step_weights(step, until, inner_steps)
        assert sum(weights) == pytest.approx(1.0)
        assert all(weight >= 0 for weight in weights)
    assert weights == (*[0.0] * (inner_steps - 1), 1.0)


def test_what_makes_no_sense_is_refused() -> None:
    net = Net(norm=False)
    with pytest.raises(ValueError, match="add up to"):
        MultiStep((0.5, 0.2))
    with pytest.raises(ValueError, match="at least 0"):
        MultiStep((1.5, -0.5))
    with pytest.raises(ValueError, match="makes 3 steps"):
        mp.methods.mamlpp(net, steps=3, hypergradient=MultiStep((0.5, 0.5))).hypergradient(BATCH)
    with pytest.raises(ValueError, match="annealing changes MultiStep"):
        mp.methods.annealing(mp.methods.maml(net), multi_step=3)
    with pytest.raises(ValueError, match="first_order=-1"):
        mp.methods.annealing(mp.methods.mamlpp(net), multi_step=3, first_order=-1)
