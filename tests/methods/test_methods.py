"""Each recipe is the row of the table: which tensors are frozen, outer, inner and generated, by which gradient."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import metapeft as mp
from metapeft.methods.table import registry
from tests.conftest import import_peer
from tests.learner.helpers import assert_same, images, stir
from tests.learner.plain import Net, Plain, Said, plain_gradients

W0, RATES = "weights", "rates"
# name -> formats, adapted factors, outer groups, generated, hypergradient, head, norm
TABLE: dict[str, tuple[set[str], str, set[str], bool, str, str]] = {
    "maml": ({"Full"}, "all", {W0}, False, "unroll", "learned"),
    "meta-sgd": ({"Full"}, "all", {W0, RATES}, False, "unroll", "learned"),
    "fomaml": ({"Full"}, "all", {W0}, False, "first-order", "learned"),
    "reptile": ({"Full"}, "all", {W0}, False, "reptile", "learned"),
    "imaml": ({"Full"}, "all", {W0}, False, "CG", "learned"),
    "anil": ({"Full"}, "head", {W0}, False, "unroll", "learned"),
    "boil": ({"Full"}, "body", {W0}, False, "unroll", "learned"),
    "protonet": (set(), "none", {W0}, False, "direct", "prototypes"),
    "r2d2": (set(), "none", {W0, "head"}, False, "direct", "ridge"),
    "centroids": (set(), "none", set(), False, "direct", "prototypes"),
    "sr-lora": ({"LoRA"}, "body", set(), False, "unroll", "prototype-init"),
    "lora-ml": ({"LoRA"}, "body", {W0, "factors", RATES}, False, "unroll", "prototype-init"),
    "autolora": ({"LoRA"}, "body", {"selection"}, False, "unroll", "prototype-init"),
    "metalora-cp": ({"CP"}, "none", {"factors", "generator"}, True, "direct", "prototypes"),
    "metalora-tr": ({"TensorRing"}, "none", {"factors", "generator"}, True, "direct", "prototypes"),
    "metapeft": (
        {"CP"}, "body", {W0, "factors", "generator", "selection", RATES}, True, "unroll", "prototype-init",
    ),
    "maml++": ({"Full"}, "all", {W0, RATES}, False, "MultiStep", "learned"),
}  # fmt: skip
SGD, LORA, NET = mp.inner.SGD, mp.LoRA(2), mp.generators.MappingNet(hidden=64)
OF_MAML: dict[str, Any] = {"format": mp.Full(), "inner": SGD(5, 0.1), "norm": "support"}
# name -> options of the recipe, and what the plain loop is told
PLAIN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "maml": ({}, OF_MAML),
    "meta-sgd": ({}, {**OF_MAML, "inner": SGD(1, 0.1, rates="element"), "outer": (W0, RATES)}),
    "fomaml": ({}, {**OF_MAML, "hypergradient": "first-order"}),
    "reptile": ({}, {**OF_MAML, "hypergradient": "reptile", "inner_data": "both"}),
    # at the regularised minimum the implicit gradient and the unrolled one are the same
    "imaml": (
        {"steps": 40, "lr": 0.2, "proximal": 4.0, "hypergradient": mp.hypergradients.CG(iterations=80)},
        {**OF_MAML, "inner": SGD(40, 0.2, proximal=4.0)},
    ),
    "anil": ({}, {**OF_MAML, "targets": "head"}),
    "boil": ({}, {**OF_MAML, "targets": "body"}),
    "protonet": ({}, {"head": "prototypes"}),
    "r2d2": ({}, {"head": "ridge", "outer": (W0, "head")}),
    "centroids": ({}, {"head": "prototypes", "outer": ()}),
    "sr-lora": (
        {"rank": 2}, {"format": LORA, "inner": SGD(5, 0.1), "head": "prototype-init", "outer": ()},
    ),
    "lora-ml": (
        {"rank": 2},
        {
            "format": LORA, "inner": SGD(5, 0.1, rates="step"), "head": "prototype-init",
            "outer": (W0, "factors", RATES),
        },
    ),
    "autolora": (
        {"rank": 2, "targets": "*conv*"},
        {
            "format": mp.LoRA(2, alpha=16.0), "inner": SGD(1, 0.1), "head": "prototype-init", "targets": "*conv*",
            "selection": "softmax", "outer": ("selection",),
        },
    ),
    "metalora-cp": (
        {"rank": 2},
        {"format": mp.CP(2), "head": "prototypes", "generator": NET, "outer": ("factors", "generator")},
    ),
    "metalora-tr": (
        {"rank": 2},
        {"format": mp.TensorRing(2), "head": "prototypes", "generator": NET, "outer": ("factors", "generator")},
    ),
    "metapeft": (
        {"format": mp.CP(2), "shots": 1},
        {
            "format": mp.CP(2), "inner": SGD(5, 0.1, rates="step"), "head": "prototype-init", "generator": NET,
            "selection": "softmax", "outer": (W0, "factors", "generator", "selection", RATES),
        },
    ),
    # without annealing its engine is that of MAML
    "maml++": ({}, {**OF_MAML, "inner": SGD(5, 0.1, rates="step"), "outer": (W0, RATES)}),
}  # fmt: skip


def body() -> torch.nn.Module:
    return mp.backbones.conv4(ways=3, channels=1, width=4, size=16)


def make(name: str, **options: Any) -> mp.Learner:
    if name == "autolora":
        options = {"targets": "conv*", **options}
    if name == "imaml":  # so strong that the inner problem of this network with random weights is convex
        options = {"proximal": 50.0, "lr": 0.01, **options}
    learner: mp.Learner = registry.resolve(name)(body(), **options)
    return learner


def test_every_method_is_in_both_tables() -> None:
    assert set(TABLE) == set(PLAIN) == set(registry.names)


@pytest.mark.parametrize("name", TABLE)
def test_roles(name: str) -> None:
    formats, adapted, outer, generated, method, head = TABLE[name]
    learner = make(name)
    assert {type(site.format).__name__ for site in learner.model.sites.values()} == formats
    of_head = {factor for factor in learner.factor_names if factor.startswith("classifier")}
    expected = {
        "all": set(learner.factor_names), "none": set(), "head": of_head, "body": set(learner.factor_names) - of_head,
    }[adapted]  # fmt: skip
    assert set(learner.adapted) == expected
    assert (adapted == "none") or learner.adapted
    assert ("head" in adapted or adapted == "all") == bool(of_head & set(learner.adapted))
    assert set(learner.outer) == outer
    assert (learner.generator is not None) == generated
    said = learner.method if isinstance(learner.method, str) else type(learner.method).__name__
    assert said == method
    assert learner.head_name == head


@pytest.mark.parametrize("name", PLAIN)
def test_gradients_and_predictions_are_those_of_a_plain_loop(name: str) -> None:
    options, said = PLAIN[name]
    net, batch = Net(), images()
    learner: mp.Learner = registry.resolve(name)(net, **options)
    stir(learner)
    value, expected = plain_gradients(learner.variables, net, batch, **said)
    # iMAML: each inner step leaves about 1 - 0.2 * 4 of the error, the linear solve ends at 1e-10
    size = 1e-6 if name == "imaml" else 1e-8
    if said.get("outer") != ():
        found = learner.hypergradient(batch)
        torch.testing.assert_close(found.value, value, rtol=1e-9, atol=0)
        assert_same(dict(found.grads), expected, size)
    else:
        assert learner.trained == expected == {}
    logits = learner.adapt_many(batch.support_x, batch.support_y)(batch.query_x)
    plain = Plain(learner.variables, net, batch, Said(**said)).predictions()
    torch.testing.assert_close(logits, plain, rtol=1e-9, atol=1e-9)


def test_published_lora_ml_is_an_envelope_on_all_data() -> None:
    learner = make("lora-ml", hypergradient="envelope", inner_data="both", inner=mp.inner.SGD(2, 0.1))
    assert learner.outer == ("weights",)
    mp.BilevelTrainer(learner, warm_start=True, progress=False)


def test_parts_of_metapeft_can_be_switched_off() -> None:
    assert make("metapeft", generator=None).outer == ("weights", "factors", "selection", "rates")
    assert make("metapeft", selection=None).outer == ("weights", "factors", "generator", "rates")
    assert make("metapeft", inner=mp.inner.SGD(1, 0.1)).outer == (
        "weights",
        "factors",
        "generator",
        "selection",
    )


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="ranks"):
        make("lora-ml", ranks=3)


def test_imaml_is_its_formula() -> None:
    """`(I + H / lambda)^-1 grad` at the point where the proximal inner problem is solved (its eq. 6)."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).double()
    batch, lam = images(tasks=1), 2.0
    learner = mp.methods.imaml(
        net,
        steps=400,
        lr=0.2,
        proximal=lam,
        hypergradient=mp.hypergradients.CG(iterations=100),
        norm="running",
    )
    found = learner.hypergradient(batch)
    moved = {name: value[0] for name, value in found.w.items()}
    point = torch.cat([(p + moved[f"{n}.delta"]).flatten() for n, p in net.named_parameters()]).detach()

    def loss(theta: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(F.linear(x.flatten(1), theta[:48].view(3, 16), theta[48:]), y)

    support = batch.support_x[0], batch.support_y[0]
    hessian = torch.autograd.functional.hessian(lambda theta: loss(theta, *support), point)
    grad = torch.func.grad(lambda theta: loss(theta, batch.query_x[0], batch.query_y[0]))(point)
    expected = torch.linalg.solve(torch.eye(51).double() + hessian / lam, grad)
    own = torch.cat([found.grads[f"weights.{n}"].flatten() for n, _ in net.named_parameters()])
    torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-9)  # both solves end at about 1e-10


def test_maml_agrees_with_higher() -> None:
    higher = pytest.importorskip("higher")
    net, batch = body().double(), images(tasks=2)
    x = F.interpolate(batch.support_x.flatten(0, 1), size=16).unflatten(0, (2, -1))
    batch = dataclasses.replace(batch, support_x=x, query_x=x.flip(2))
    found = mp.methods.maml(net, steps=2, lr=0.1, norm="transductive").hypergradient(batch)
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for t in range(2):
        with higher.innerloop_ctx(net, optimizer, copy_initial_weights=False) as (fast, steps):
            for _ in range(2):
                steps.step(F.cross_entropy(fast(batch.support_x[t]), batch.support_y[t]))
            (F.cross_entropy(fast(batch.query_x[t]), batch.query_y[t]) / 2).backward()
    assert_same(dict(found.grads), {f"weights.{n}": p.grad for n, p in net.named_parameters()}, 1e-8)


@pytest.mark.peers
@pytest.mark.parametrize("first_order", [False, True])
def test_maml_agrees_with_learn2learn(first_order: bool) -> None:
    learn2learn = import_peer("learn2learn")
    net, batch = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).double(), images(tasks=2)
    recipe = mp.methods.fomaml if first_order else mp.methods.maml
    found = recipe(net, steps=2, lr=0.1, norm="running").hypergradient(batch)
    peer = learn2learn.algorithms.MAML(net, lr=0.1, first_order=first_order)
    for t in range(2):
        clone = peer.clone()
        for _ in range(2):
            clone.adapt(F.cross_entropy(clone(batch.support_x[t]), batch.support_y[t]))
        (F.cross_entropy(clone(batch.query_x[t]), batch.query_y[t]) / 2).backward()
    assert_same(dict(found.grads), {f"weights.{n}": p.grad for n, p in net.named_parameters()})


def test_the_generator_fits_what_a_support_set_says() -> None:
    """Classes with several shots, one shot, numbers: of one input, and of features where the body begins otherwise."""
    from metapeft.generators import ClassEncoder, MappingNet, PairEncoder

    of_images = mp.backbones.conv4(ways=3, width=4, size=16)
    assert mp.methods.metapeft(of_images).generator == ClassEncoder()
    assert mp.methods.metapeft(of_images, shots=5, hidden=8).generator == ClassEncoder(hidden=8)
    assert mp.methods.metapeft(of_images, shots=1, hidden=8).generator == MappingNet(hidden=8)
    curve = mp.methods.metapeft(mp.backbones.mlp(2, 1, hidden=(8,)), loss=F.mse_loss, head="learned")
    assert curve.generator == PairEncoder(size=2)
    assert curve.generator.features == "inputs"  # type: ignore[union-attr]
    deep = mp.methods.metapeft(of_images, loss=F.mse_loss, head="learned")
    assert deep.generator == PairEncoder(features=None, size=None, outputs=3)
    assert deep.generator.features is None  # type: ignore[union-attr]
    x = torch.randn(2, 6, 2)
    batch = mp.EpisodeBatch(x, x.sum(-1, keepdim=True), x, x.sum(-1, keepdim=True))
    assert curve.hypergradient(batch).value.isfinite()
