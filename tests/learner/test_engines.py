"""Every engine in a learner, and the mechanism that hands it what is derived from the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import metapeft as mp
from metapeft.learner import bilevel
from tests.learner.helpers import assert_same, images, learner_of, stir
from tests.learner.plain import Net

SGD = mp.inner.SGD
SOLVED = mp.hypergradients


@pytest.mark.parametrize(("norm", "adapt"), [("running", "all"), ("support", ["*.A", "*.B"])])
@pytest.mark.parametrize(
    ("method", "inner"),
    [
        ("unroll", SGD(2, 0.1)),
        ("recompute", SGD(2, 0.1)),
        (SOLVED.Truncated(window=2), SGD(2, 0.1)),
        ("finite-difference", SGD(1, 0.1)),
        (SOLVED.CG(iterations=50), SGD(40, 0.2, proximal=4.0)),
    ],
    ids=["unroll", "recompute", "truncated", "finite-difference", "cg"],
)
def test_derived_entries_equal_the_direct_form(method: Any, inner: Any, norm: str, adapt: Any) -> None:
    learner, _ = learner_of(
        "cp", norm, inner=inner, adapt=adapt, head="prototype-init", hypergradient=method,
        generator=mp.generators.MappingNet(hidden=4), outer=("weights", "factors", "generator"),
    )  # fmt: skip
    batch = images()
    with_entries, direct = (
        bilevel.hypergradient(learner.objectives(batch, training=True), direct_form=form)
        for form in (False, True)
    )
    # finite differences of 1e-2/||v|| along the same vector, but rounding is divided by that step
    assert_same(dict(with_entries.grads), dict(direct.grads), 1e-6 if method == "finite-difference" else 1e-9)


@pytest.mark.parametrize("method", ["recompute", SOLVED.Recompute(every="sqrt"), SOLVED.Truncated(window=3)])
def test_exact_engines_agree(method: Any) -> None:
    options: dict[str, Any] = {
        "inner": SGD(3, 0.1, rates="step"), "head": "prototype-init", "selection": "softmax",
        "generator": mp.generators.MappingNet(hidden=4),
        "outer": ("weights", "factors", "generator", "selection", "rates"),
    }  # fmt: skip
    batch = images()
    first, second = (
        learner_of("tr", hypergradient=m, **options)[0].hypergradient(batch) for m in ("unroll", method)
    )
    assert_same(dict(second.grads), dict(first.grads), 1e-9)


@pytest.mark.parametrize("norm", ["running", pytest.param("support", marks=pytest.mark.slow)])
def test_forward_mode_agrees(norm: str) -> None:
    options: dict[str, Any] = {
        "inner": SGD(2, 0.1, rates="step"), "head": "prototype-init", "adapt": ["*.A", "*.B"],
        "generator": mp.generators.MappingNet(hidden=2), "outer": ("generator", "rates"),
    }  # fmt: skip
    batch = images()
    first, second = (
        learner_of("cp", norm, hypergradient=m, **options)[0].hypergradient(batch)
        for m in ("unroll", "forward")
    )
    assert_same(dict(second.grads), dict(first.grads), 1e-9)


@pytest.mark.parametrize("method", [SOLVED.CG(iterations=60), "exact", SOLVED.Neumann(terms=60, lr=0.2)])
def test_implicit_engines_reach_the_unrolled_limit(method: Any) -> None:
    """At a stationary point with a strong proximal term both are the derivative of the same solution."""
    options: dict[str, Any] = {
        "inner": SGD(40, 0.2, proximal=4.0), "head": "prototype-init", "outer": ("weights", "factors"),
    }  # fmt: skip
    batch = images()
    first, second = (
        learner_of("lora", hypergradient=m, **options)[0].hypergradient(batch) for m in ("unroll", method)
    )
    # each step shrinks the error to about (1 - 0.2 * 4); what is left is the tolerance of the linear solve
    assert_same(dict(second.grads), dict(first.grads), 1e-6)


def test_finite_difference_is_close_to_one_unrolled_step() -> None:
    options: dict[str, Any] = {
        "inner": SGD(1, 0.1),
        "head": "prototype-init",
        "outer": ("weights", "factors"),
    }
    batch = images()
    first = learner_of("lora", hypergradient="unroll", **options)[0].hypergradient(batch)
    small = SOLVED.FiniteDifference(epsilon=1e-3)
    second = learner_of("lora", hypergradient=small, **options)[0].hypergradient(batch)
    assert_same(dict(second.grads), dict(first.grads), 1e-4)  # of the order epsilon^2, less rounding


def test_reptile_moves_weights_by_minus_the_mean_update() -> None:
    net, batch = Net(norm=False), images()
    learner = mp.Learner(mp.attach(net, mp.Full()), SGD(3, 0.1), hypergradient="reptile")
    found = learner.hypergradient(batch)
    for name, parameter in net.named_parameters():
        moved = []
        for t in range(2):
            own = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}
            for _ in range(3):
                output = torch.func.functional_call(net, own, (batch.support_x[t],))
                loss = F.cross_entropy(output, batch.support_y[t])
                grads = dict(zip(own, torch.autograd.grad(loss, list(own.values()))))
                own = {n: (own[n] - 0.1 * grads[n]).detach().requires_grad_() for n in own}
            moved.append(parameter.detach() - own[name].detach())
        expected = torch.stack(moved).mean(0)
        torch.testing.assert_close(found.grads[f"weights.{name}"], expected, rtol=1e-8, atol=1e-14)


def test_reptile_of_factors_is_their_displacement() -> None:
    learner, _ = learner_of(
        "lora", inner=SGD(2, 0.1), hypergradient="reptile", outer=("factors",), head="zero"
    )
    batch = images()
    found = learner.hypergradient(batch)
    w, _ = learner.solve(learner.objectives(batch, training=True))
    for name in learner.factor_names:
        start = learner.variables[f"factors.{name}"]
        expected = (start - w[name]).mean(0, keepdim=True)
        torch.testing.assert_close(found.grads[f"factors.{name}"], expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("method", ["unroll", "first-order", "envelope"])
@pytest.mark.parametrize("head", ["learned", "prototype-init"])
@pytest.mark.parametrize("norm", ["running", "support"])
def test_seeds_per_input(norm: str, head: str, method: str) -> None:
    """Against central differences of the outer value in the generator's parameters."""
    learner, _ = learner_of(
        "cp", norm, inner=SGD(1, 0.1), adapt=["*.A", "*.B"], head=head, hypergradient=method,
        generator=mp.generators.MappingNet(hidden=4, per="input"), outer=("generator",),
    )  # fmt: skip
    batch = images()
    found = learner.hypergradient(batch)
    assert all(float(value.abs().max()) > 0 for value in found.grads.values())
    if method != "unroll":
        return  # not the derivative of the value
    name = "generator.hidden.bias"
    for k in range(4):
        values = []
        for sign in (1, -1):
            learner.variables[name][k] += sign * 1e-5
            values.append(float(learner.hypergradient(batch).value))
            learner.variables[name][k] -= sign * 1e-5
        slope = (values[0] - values[1]) / 2e-5
        assert abs(slope - float(found.grads[name][k])) <= 1e-6 * (1 + abs(slope))


def test_a_warm_start_replaces_the_start() -> None:
    learner, _ = learner_of("lora", inner=SGD(2, 0.1), head="prototype-init", hypergradient="envelope")
    batch = images()
    first = learner.hypergradient(batch)
    again = learner.hypergradient(batch, first.w)
    four, _ = learner_of("lora", inner=SGD(4, 0.1), head="prototype-init", hypergradient="envelope")
    assert_same(dict(again.grads), dict(four.hypergradient(batch).grads), 1e-9)


def test_dict_inputs_of_a_transformer() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=8, num_labels=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = transformers.BertForSequenceClassification(config).double().eval()
    random = torch.Generator().manual_seed(0)

    def sentences() -> dict[str, torch.Tensor]:
        mask = torch.ones(2, 4, 5, dtype=torch.int64)
        mask[0, 1, 3:] = 0
        return {"input_ids": torch.randint(1, 20, (2, 4, 5), generator=random), "attention_mask": mask}

    y = torch.tensor([[0, 1, 0, 1]] * 2)
    batch = mp.EpisodeBatch(sentences(), y, sentences(), y, classes=torch.tensor([[0, 1]] * 2))
    model = mp.attach(body, mp.LoRA(2), targets=["*query*", "*value*"])
    learner = mp.Learner(model, SGD(2, 0.1), outer=("factors",), head="learned")
    stir(learner)
    found = learner.hypergradient(batch)
    names = list(learner.factor_names)
    u = {name: learner.variables[f"factors.{name}"].clone().requires_grad_() for name in names}
    total = torch.zeros((), dtype=torch.float64)
    for t in range(2):
        w = {name: value[0] for name, value in u.items()}

        def objective(w: dict[str, torch.Tensor], x: dict[str, torch.Tensor], t: int = t) -> torch.Tensor:
            weights = {n.removesuffix(".A") for n in w if n.endswith(".A")}
            state = {n: dict(body.named_parameters())[n] + w[f"{n}.B"] @ w[f"{n}.A"] for n in weights}
            output = torch.func.functional_call(
                body, state, (), {name: value[t] for name, value in x.items()}
            )
            return F.cross_entropy(output.logits, y[t])

        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            for _ in range(2):
                at = {name: value * 1 for name, value in w.items()}
                grads = torch.autograd.grad(
                    objective(at, batch.support_x), list(at.values()), create_graph=True
                )
                w = {name: at[name] - 0.1 * grad for name, grad in zip(at, grads)}
            total = total + objective(w, batch.query_x) / 2
    expected = {f"factors.{n}": g for n, g in zip(names, torch.autograd.grad(total, [u[n] for n in names]))}
    assert_same(dict(found.grads), expected)
