"""The inner optimisers against torch.optim and higher step by step, and their gradients."""

import re
import warnings

import pytest
import torch

import metapeft as mp
from metapeft import inner as mi
from metapeft.hypergradients import Recompute, hypergradient
from tests.inner.problems import curved, torch_trajectory

OPTIM = torch.optim


def named(value: object) -> str:
    """A test's id: the same in every process, so without the addresses of functions."""
    return re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", repr(value))


PAIRS = [
    (mi.SGD(8, 0.3), OPTIM.SGD, {"lr": 0.3}),
    (mi.SGD(8, 0.3, weight_decay=0.1), OPTIM.SGD, {"lr": 0.3, "weight_decay": 0.1}),
    (mi.Momentum(8, 0.1, 0.9), OPTIM.SGD, {"lr": 0.1, "momentum": 0.9}),
    (
        mi.Momentum(8, 0.1, 0.7, dampening=0.3, weight_decay=0.2),
        OPTIM.SGD,
        {"lr": 0.1, "momentum": 0.7, "dampening": 0.3, "weight_decay": 0.2},
    ),
    (mi.Nesterov(8, 0.1, 0.8), OPTIM.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    (mi.Adam(8, 0.1), OPTIM.Adam, {"lr": 0.1}),
    (mi.Adam(8, 0.1, (0.5, 0.9), eps=0.1), OPTIM.Adam, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 0.1}),
    (mi.Adam(8, 0.1, weight_decay=0.3), OPTIM.Adam, {"lr": 0.1, "weight_decay": 0.3}),
    (mi.AdamW(8, 0.1), OPTIM.AdamW, {"lr": 0.1}),
    (mi.AdamW(8, 0.1, weight_decay=0.5), OPTIM.AdamW, {"lr": 0.1, "weight_decay": 0.5}),
    (
        mi.LBFGS(12, 0.8, memory=3),
        OPTIM.LBFGS,
        {"lr": 0.8, "max_iter": 1, "history_size": 3, "tolerance_grad": 0, "tolerance_change": 0},
    ),
]


@pytest.mark.parametrize(("solver", "optimizer", "options"), PAIRS, ids=named)
def test_every_step_is_that_of_torch(solver, optimizer, options):
    inner, _, u, start = curved()
    found = mi.solve(inner, u, start, solver, trace=True)
    expected = torch_trajectory(inner, u, start, optimizer, solver.steps, **options)
    assert len(found) == solver.steps + 1
    for ours, theirs in zip(found, expected):
        for name in start:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-12)


SOLVERS = [
    mi.SGD(3, 0.2, proximal=0.5, weight_decay=0.1),
    mi.Momentum(3, 0.1, 0.9, proximal=0.3),
    mi.Nesterov(3, 0.1),
    mi.Adam(3, 0.1),
    mi.AdamW(3, 0.1, weight_decay=0.3),
    mi.LBFGS(4, 0.5, memory=2),
    mi.Proximal(
        3, lambda u, w, lr: {n: x.sign() * (x.abs() - 0.05 * lr).clamp_min(0) for n, x in w.items()}, 0.2
    ),
    mi.Projected(3, lambda u, w: {n: x / x.norm().clamp_min(1.0) for n, x in w.items()}, 0.2),
    mi.Step(lambda u, w, g: {n: w[n] - 0.1 * u["c"].square().sum() * torch.tanh(g[n]) for n in w}, 3),
    mi.FixedPoint(lambda u, w: {"a": w["a"].cos() * u["c"], "b": (w["b"] + w["a"].sum(0)).sin()}, 3),
    mi.Higher(torch.optim.SGD, 3, lr=0.1, momentum=0.9),
    mi.Higher(torch.optim.Adam, 3, lr=0.1),
    mi.Higher(torch.optim.Adagrad, 3, lr=0.1),
]


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
    expected = torch_trajectory(inner, u, start, optimizer, 3, lr=0.05)[-1]
    for key in start:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-6)  # its eps placement
    assert grads["c"].isfinite().all()


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


def test_more_steps_repeat_the_last_rate():
    inner, _, u, start = curved()
    solver = mi.SGD(2, 0.1, rates="step")
    rates = {"rates.a": torch.tensor([0.1, 0.3]), "rates.b": torch.tensor([0.2, 0.4])}
    rates = {name: value.double() for name, value in rates.items()}
    longer = {name: torch.cat([value, value[-1:], value[-1:]]) for name, value in rates.items()}
    found = mi.solve(inner, {**u, **rates}, start, solver.with_steps(4))
    expected = mi.solve(inner, {**u, **longer}, start, mi.SGD(4, 0.1, rates="step"))
    for name in start:
        assert torch.equal(found[name], expected[name])


def test_rates_of_a_learner_broadcast_over_tasks():
    inner, outer, u, start = curved(tasks=3)
    shared = {name: value[:1] for name, value in start.items()}
    for per, shape in (("step", ()), ("element", (1, 3, 2))):
        solver = mi.SGD(2, 0.1, rates=per)
        rates = solver.rates(shared)
        assert rates["rates.a"].shape == (2, *shape)
        found = hypergradient(outer, inner, {**u, **rates}, start, solver, task_axis=True)
        plain = mi.solve(inner, u, start, mi.SGD(2, 0.1), task_axis=True)
        assert found.grads["rates.a"].shape == rates["rates.a"].shape
        for name in start:
            torch.testing.assert_close(found.w[name], plain[name])


def test_bare_callables_are_solvers():
    inner, outer, u, start = curved()
    step = hypergradient(outer, inner, u, start, lambda u, w, grads: {n: w[n] - 0.1 * grads[n] for n in w})
    expected = hypergradient(outer, inner, u, start, mi.SGD(1, 0.1))
    torch.testing.assert_close(step.grads["c"], expected.grads["c"])
    whole = hypergradient(outer, None, u, start, lambda u, w: {"a": w["a"] * u["c"], "b": w["b"]})
    leaf = u["c"].clone().requires_grad_()
    (grad,) = torch.autograd.grad(outer({"c": leaf}, {"a": start["a"] * leaf, "b": start["b"]}), leaf)
    torch.testing.assert_close(whole.grads["c"], grad)


def test_a_solver_that_is_not_differentiable_says_so():
    class Rounded(mi.SGD):
        differentiable = "Rounded rounds its iterates: use an implicit method."

    inner, outer, u, start = curved()
    for method in ("unroll", "recompute", "truncated", "forward", "first-order"):
        with pytest.raises(ValueError, match="rounds its iterates"):
            hypergradient(outer, inner, u, start, Rounded(2, 0.1), method)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: mi.SGD(-1, 0.1), "steps=-1"),
        (lambda: mi.SGD(1.5, 0.1), "steps=1.5"),
        (lambda: mi.SGD(1, float("nan")), "lr=nan"),
        (lambda: mi.SGD(1, -0.1), "lr=-0.1"),
        (lambda: mi.SGD(1, torch.ones(3)), "shape"),
        (lambda: mi.SGD(1, "0.1"), "number"),
        (lambda: mi.SGD(1, 0.1, rates="layer"), "rates='layer'"),
        (lambda: mi.SGD(1, lambda u: u["lr"], rates="step"), "not a function"),
        (lambda: mi.SGD(1, 0.1, proximal=-1.0), "proximal"),
        (lambda: mi.Momentum(1, 0.1, 1.0), "momentum"),
        (lambda: mi.Momentum(1, 0.1, 0.9, dampening=0.5, nesterov=True), "nesterov"),
        (lambda: mi.Adam(1, 0.1, (0.9, 1.0)), "betas"),
        (lambda: mi.Adam(1, 0.1, eps=0.0), "eps"),
        (lambda: mi.LBFGS(1, memory=0), "memory"),
        (lambda: mi.solve(*curved()[::2], curved()[3], mi.SGD(1, 0.1, rates="step")), "rates.a"),
        (
            lambda: mi.solve(*curved()[::2], curved()[3], mi.Step(lambda u, w, g: {"a": w["a"]}, 1)),
            "returned",
        ),
    ],
)
def test_bad_settings_are_refused_with_a_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


@pytest.mark.parametrize("solver", [entry[0] for entry in PAIRS] + SOLVERS, ids=named)
def test_settings_build_the_same_solver_again(solver):
    settings = solver.settings()
    again = type(solver)(**settings)
    assert again.settings() == settings
    assert solver.with_steps(7).steps == 7
    assert solver.settings() == settings


def test_a_step_to_infinity_is_said():
    with pytest.raises(mp.NumericalError, match="not finite after 1 steps"):
        mi.solve(lambda u, w: w["x"].abs().sqrt(), {}, {"x": torch.tensor(0.0)}, mi.SGD(1, 0.1))


def test_a_rate_of_each_variable_comes_as_a_dict_and_nothing_else_has_a_shape():
    inner, _, u, start = curved()
    found = mi.solve(
        inner, u, start, mi.SGD(1, lambda u: {"a": torch.zeros(3, 1).double(), "b": u["c"].abs()})
    )
    assert torch.equal(found["a"], start["a"])
    assert not torch.equal(found["b"], start["b"])
    with pytest.raises(ValueError, match=r"gave a tensor of shape \(2,\)"):
        mi.solve(inner, u, start, mi.SGD(1, lambda u: u["c"]))


def named(value: object) -> str:
    """A test's id: the same in every process, so without the addresses of functions."""
    return re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", repr(value))
