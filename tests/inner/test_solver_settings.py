"""Settings of inner solvers: rates, callables, what is refused, what is built again."""

import pytest
import torch

import metapeft as mp
from metapeft import inner as mi
from metapeft.hypergradients import hypergradient
from tests.inner.problems import curved
from tests.inner.solvers import SOLVERS, against_torch, named


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


@pytest.mark.parametrize("solver", [entry[0] for entry in against_torch()] + SOLVERS, ids=named)
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
