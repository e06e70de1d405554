"""The inner optimisers against torch.optim and higher step by step, and their gradients."""

import warnings

import pytest
import torch

from metapeft import inner as mi
from metapeft.hypergradients import Recompute, hypergradient
from tests.inner.problems import curved, torch_trajectory
from tests.inner.solvers import OPTIM, SOLVERS, against_torch, named


@pytest.mark.parametrize(("solver", "optimizer", "options"), against_torch(), ids=named)
def test_every_step_is_that_of_torch(solver, optimizer, options):
    inner, _, u, start = curved()
    found = mi.solve(inner, u, start, solver, trace=True)
    expected = torch_trajectory(inner, u, start, optimizer, solver.steps, **options)
    assert len(found) == solver.steps + 1
    for ours, theirs in zip(found, expected):
        for name in start:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS, ids=named)
def test_unroll_iterates_are_those_of_solve_and_gradients_those_of_finite_differences(solver):
    inner, outer, u, start = curved(seed=1)
    moving = {**u, "shift": torch.tensor(0.3, dtype=torch.float64)}

    def w0(u):
        return {name: value + u["shift"] for name, value in start.items()}

    def value(u):
        return outer(u, mi.solve(inner, u, w0, solver)).item()

    found = hypergradient(outer, inner, moving, w0, solver, "unroll")
    plain = mi.solve(inner, moving, w0, solver)
    for name in start:
        assert torch.equal(found.w[name], plain[name])
    assert found.value.item() == value(moving)
    for name, entry in moving.items():
        direction = torch.linspace(0.5, 1, max(entry.numel(), 1), dtype=torch.float64).view_as(entry)
        up, down = ({**moving, name: entry + sign * 1e-6 * direction} for sign in (1, -1))
        slope = (value(up) - value(down)) / 2e-6  # central difference: error about 1e-9
        assert (found.grads[name] * direction).sum().item() == pytest.approx(slope, rel=1e-6, abs=1e-8)
    for every in (1, 2):
        again = hypergradient(outer, inner, moving, w0, solver, Recompute(every))
        for name in moving:
            torch.testing.assert_close(again.grads[name], found.grads[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "solver",
    [solver for solver in SOLVERS if not isinstance(solver, (mi.FixedPoint, mi.Projected))],
    ids=named,
)
def test_tasks_do_not_see_each_other(solver):
    if isinstance(solver, mi.Step):
        pytest.skip("the user's own step mixes nothing here, but reads u alone")
    inner, _, u, start = curved(seed=2, tasks=3)
    together = mi.solve(inner, u, start, solver, task_axis=True)
    for t in range(3):
        own = {name: value[t] for name, value in start.items()}
        alone = mi.solve(lambda u, w, t=t: inner(u, w, t), u, own, solver)
        for name in start:
            torch.testing.assert_close(together[name][t], alone[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "solver", [mi.Momentum(4, 0.1), mi.Nesterov(4, 0.1), mi.Adam(4, 0.1), mi.LBFGS(4, 0.5)], ids=named
)
def test_forward_mode_goes_through_every_optimiser(solver):
    inner, outer, u, start = curved(seed=3)
    exact = hypergradient(outer, inner, u, start, solver, "unroll")
    found = hypergradient(outer, inner, u, start, solver, "forward")
    torch.testing.assert_close(found.grads["c"], exact.grads["c"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("ours", "options"),
    [
        (mi.SGD(5, 0.1), {"optimizer": OPTIM.SGD, "lr": 0.1}),
        (mi.Momentum(5, 0.1, 0.9), {"optimizer": OPTIM.SGD, "lr": 0.1, "momentum": 0.9}),
        (mi.Adam(5, 0.1, eps=1e-12), {"optimizer": OPTIM.Adam, "lr": 0.1, "eps": 1e-12}),
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_hypergradients_agree_with_higher(ours, options):
    """With an eps that does not matter, as higher places it elsewhere in Adam."""
    inner, outer, u, start = curved(seed=4)
    theirs = mi.Higher(steps=5, **options)
    expected = hypergradient(outer, inner, u, start, theirs, "unroll")
    found = hypergradient(outer, inner, u, start, ours, "unroll")
    torch.testing.assert_close(found.value, expected.value, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.grads["c"], expected.grads["c"], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["Adadelta", "Adagrad", "Adam", "Adamax", "ASGD", "RMSprop", "Rprop", "SGD"])
def test_every_optimiser_that_higher_supports_follows_torch(name):
    inner, outer, u, start = curved(seed=5)
    optimizer = getattr(torch.optim, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # higher's own remark on RMSprop
        solver = mi.Higher(optimizer, 3, lr=0.05)
        found = mi.solve(inner, u, start, solver)
        grads = hypergradient(outer, inner, u, start, solver, "unroll").grads
        ends = [
            outer(v, mi.solve(inner, v, start, solver)) for v in ({"c": u["c"] + h} for h in (1e-6, -1e-6))
        ]
    expected = torch_trajectory(inner, u, start, optimizer, 3, lr=0.05)[-1]
    for key in start:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-6)  # its eps placement
    slope = float(ends[0] - ends[1]) / 2e-6  # central difference: error about 1e-9
    assert grads["c"].sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_higher_learns_a_rate_and_names_what_it_does_not_support():
    inner, outer, u, start = curved(seed=6)
    u = {"c": u["c"], "lr": torch.tensor(0.1, dtype=torch.float64)}
    theirs = mi.Higher(torch.optim.SGD, 3, lr=lambda u: u["lr"])
    ours = mi.SGD(3, lambda u: u["lr"])
    found, expected = (hypergradient(outer, inner, u, start, solver).grads for solver in (theirs, ours))
    torch.testing.assert_close(found["lr"], expected["lr"], rtol=1e-9, atol=0)
    with pytest.raises(ValueError, match=r"AdamW has no differentiable form in higher.*Adagrad.*SGD"):
        mi.Higher(torch.optim.AdamW, 3, lr=0.1)
    with pytest.raises(ValueError, match="'maximize'"):
        mi.Higher(torch.optim.SGD, 3, lr=0.1, maximize=True)


def test_adam_is_differentiable_where_a_gradient_is_zero():
    """B = 0 makes A's first gradients 0: sqrt(v) at 0 must not turn the hypergradient into NaN."""
    u = {"c": torch.tensor(0.5, dtype=torch.float64)}
    start = {"A": torch.tensor(1.0, dtype=torch.float64), "B": torch.tensor(0.0, dtype=torch.float64)}

    def loss(u, w):
        return (w["A"] * w["B"] - u["c"]).square()

    def value(c):
        return loss({"c": c}, mi.solve(loss, {"c": c}, start, mi.Adam(3, 0.1, eps=1e-2))).item()

    found = hypergradient(loss, loss, u, start, mi.Adam(3, 0.1, eps=1e-2))
    slope = (value(u["c"] + 1e-6) - value(u["c"] - 1e-6)) / 2e-6
    assert found.grads["c"].item() == pytest.approx(slope, rel=1e-6)


def test_implicit_engines_see_the_objective_that_is_really_minimised():
    """Decay and proximal term belong to it; a converged solve and the unrolled one then agree."""
    inner, outer, u, start = curved(seed=7)
    for solver in (
        mi.SGD(250, 0.3, proximal=0.5, weight_decay=0.3),
        mi.Momentum(150, 0.2, 0.5, proximal=0.5, weight_decay=0.3),
        mi.LBFGS(30, 1.0, proximal=0.5, weight_decay=0.3),
        mi.Higher(torch.optim.SGD, 150, lr=0.3, weight_decay=0.8),
    ):
        exact = hypergradient(outer, inner, u, start, solver, "exact")
        unrolled = hypergradient(outer, inner, u, start, solver, "unroll")
        torch.testing.assert_close(exact.grads["c"], unrolled.grads["c"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "solver",
    [mi.AdamW(2, 0.1), mi.Proximal(2, lambda u, w, lr: w, 0.1), mi.Projected(2, lambda u, w: w, 0.1)],
    ids=named,
)
def test_what_minimises_no_smooth_objective_is_refused_by_implicit_engines(solver):
    inner, outer, u, start = curved()
    with pytest.raises(ValueError, match="unroll"):
        hypergradient(outer, inner, u, start, solver, "cg")


@pytest.mark.parametrize("tasks", [None, 3])
def test_each_tasks_gradient_is_clipped_by_its_own_norm(tasks):
    inner, _, u, start = curved(seed=2, tasks=tasks)
    leaves = {name: value.clone().requires_grad_() for name, value in start.items()}
    value = inner(u, leaves)
    grads = dict(zip(leaves, torch.autograd.grad(value.sum(), list(leaves.values()))))
    rows = torch.cat([grad.reshape(tasks or 1, -1) for grad in grads.values()], 1)
    norms = rows.norm(dim=1)
    clip = float(norms.median()) if tasks else float(norms[0]) / 2
    found = mi.solve(inner, u, start, mi.SGD(1, 0.1, clip=clip), task_axis=tasks is not None)
    factor = (clip / norms).clamp_max(1)
    assert (factor < 1).any()
    for name, grad in grads.items():
        own = factor.view(-1, *[1] * (grad.dim() - 1)) if tasks else factor[0]
        torch.testing.assert_close(found[name], start[name] - 0.1 * own * grad, rtol=1e-10, atol=1e-12)


def test_clipping_at_rest_and_in_settings():
    still = mi.solve(lambda u, w: (w["x"] * 0).sum(), {}, {"x": torch.ones(2)}, mi.SGD(3, 0.5, clip=1.0))
    assert torch.equal(still["x"], torch.ones(2))
    assert "clip" not in mi.SGD(3, 0.5).settings()
    assert mi.Adam(3, clip=2.0).settings()["clip"] == 2.0
    assert mi.SGD(**mi.SGD(3, 0.5, clip=1.0).settings()).clip == 1.0
    with pytest.raises(ValueError, match="clip"):
        mi.SGD(3, 0.5, clip=0.0)


def test_a_root_that_is_kept_from_zero():
    """By its formula in a loop; without it nothing changes, also in settings."""
    inner, _, u, start = curved(seed=3)
    solver = mi.Adam(4, 0.1, eps_root=1e-3)
    w, m, v = dict(start), dict.fromkeys(start, 0.0), dict.fromkeys(start, 0.0)
    for k in range(1, 5):
        leaves = {name: value.clone().requires_grad_() for name, value in w.items()}
        grads = dict(zip(leaves, torch.autograd.grad(inner(u, leaves), list(leaves.values()))))
        for name, grad in grads.items():
            m[name], v[name] = 0.9 * m[name] + 0.1 * grad, 0.999 * v[name] + 0.001 * grad**2
            root = (v[name] / (1 - 0.999**k) + 1e-3).sqrt()
            w[name] = w[name] - 0.1 * (m[name] / (1 - 0.9**k)) / (root + 1e-8)
    for name, value in mi.solve(inner, u, start, solver).items():
        torch.testing.assert_close(value, w[name], rtol=1e-10, atol=1e-12)
    assert solver.settings()["eps_root"] == 1e-3
    assert "eps_root" not in mi.Adam(4, 0.1).settings()
    with pytest.raises(ValueError, match="eps_root"):
        mi.Adam(4, 0.1, eps_root=-1.0)
