"""Groups: each reachable one gets a gradient; what cannot be reached is refused when a learner is made."""

from __future__ import annotations

import copy
import logging
import pickle
from typing import Any

import pytest
import torch

import metapeft as mp
from tests.learner.helpers import assert_same, images, learner_of
from tests.learner.plain import Net

SGD = mp.inner.SGD
NET = mp.generators.MappingNet


def test_after_one_outer_step_every_group_has_a_gradient() -> None:
    """`B = 0` leaves most groups without one at step 0; the update is 0 there."""
    for kind in ("cp", "tr"):
        learner, net = learner_of(
            kind, warm=False, inner=SGD(3, 0.1, rates="step"), head="prototype-init", selection="softmax",
            generator=NET(hidden=4), outer=("weights", "factors", "generator", "selection", "rates"),
        )  # fmt: skip
        batch = images()
        x = batch.query_x
        merged = learner.model(x, learner.model.factors())
        torch.testing.assert_close(
            merged, torch.stack([net.eval()(x[t]) for t in range(2)]), rtol=1e-12, atol=0
        )
        trainer = mp.BilevelTrainer(learner, torch.optim.SGD, lr=0.1, tasks_per_step=2, progress=False)
        trainer.fit(Fixed(batch), steps=1)
        found = learner.hypergradient(batch)
        assert set(found.grads) == set(learner.trained)
        # a layer's rates of the last step and biases of a hidden layer that is off may be 0, no group is
        for group in learner.outer:
            size = max(float(v.abs().max()) for n, v in found.grads.items() if n.startswith(group))
            assert size > 0, (kind, group)
        for name in learner.factor_names:
            assert float(found.grads[f"factors.{name}"].abs().max()) > 0, (kind, name)


def test_what_a_head_learns_is_a_group() -> None:
    learner, _ = learner_of("lora", head="ridge", outer=("head",))
    found = learner.hypergradient(images())
    assert set(found.grads) == {"head.log_penalty", "head.log_scale", "head.bias"}
    assert found.grads["head.log_penalty"] != 0
    assert found.grads["head.log_scale"] != 0


class Fixed:
    """The same batch at every step."""

    def __init__(self, batch: Any) -> None:
        self.own = batch

    def batch(self, start: int, count: int) -> Any:
        return self.own


UNREACHABLE: list[tuple[dict[str, Any], str]] = [
    ({"hypergradient": "envelope", "outer": ("factors",)}, "starts receive no gradient"),
    (
        {"hypergradient": "envelope", "inner": SGD(2, 0.1, rates="step"), "outer": ("rates",)},
        "rates receive no",
    ),
    ({"hypergradient": "cg", "outer": ("factors",)}, "proximal term"),
    (
        {"hypergradient": "cg", "inner": SGD(2, 0.1, rates="step"), "outer": ("rates",)},
        "does not depend on the rates",
    ),
    (
        {"hypergradient": mp.hypergradients.Truncated(window=1), "outer": ("factors",)},
        "starts receive no gradient",
    ),
    ({"hypergradient": "reptile", "outer": ("selection",), "selection": "softmax"}, "Reptile moves"),
    ({"hypergradient": "reptile", "outer": ("weights",)}, "Reptile moves only what is adapted"),
    ({"hypergradient": "envelope", "outer": ("generator",), "generator": NET(hidden=2)}, "starts receive no"),
    ({"inner": None, "outer": ("rates",)}, "no learnable rates"),
    ({"outer": ("generator",)}, "generator= is missing"),
    ({"outer": ("selection",)}, "selection= is missing"),
    ({"outer": ("head",)}, "the head learns nothing"),
    ({"outer": ("rates",)}, "no learnable rates"),
    ({"outer": ("weight",)}, "did you mean 'weights'"),
    ({"outer": ("weights", "weights")}, "twice"),
    ({"adapt": "*.C"}, "matches no factor"),
    ({"inner": None, "adapt": "*.A"}, "no effect"),
    ({"inner": None, "test_steps": 3}, "no effect"),
    ({"inner": None, "hypergradient": "unroll"}, "without an inner solver"),
    ({"hypergradient": "direct"}, "no inner loop"),
    ({"hypergradient": mp.hypergradients.Direct()}, "no inner loop"),
    ({"hypergradient": "unrol"}, "did you mean 'unroll'"),
    ({"head": "zeros"}, "did you mean 'zero'"),
    ({"head": "knn"}, "evaluation only"),
    ({"inner_data": "query"}, "allowed are 'support' and 'both'"),
    ({"generator": NET(hidden=2, per="input")}, "generated per input"),
    ({"loss": torch.nn.CrossEntropyLoss()}, "reduces by itself"),
    ({"loss": "mse"}, "has to be a function"),
    ({"inner": lambda u, w: w}, "sees no support set"),
]


@pytest.mark.parametrize(("options", "sentence"), UNREACHABLE, ids=[text for _, text in UNREACHABLE])
def test_refused_at_construction(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        learner_of("cp", warm=False, **{"inner": SGD(2, 0.1), **options})


def test_a_generator_wants_seeds_and_an_inner_loop_something_to_move() -> None:
    with pytest.raises(ValueError, match="no seed, shift or gate to write"):
        learner_of("lora", inner=SGD(2, 0.1), generator=NET(hidden=2))
    with pytest.raises(ValueError, match="nothing to move"):
        mp.Learner(mp.attach(Net(), {}), SGD(2, 0.1))


def test_frozen_backbones_have_no_weights_to_train() -> None:
    net = Net().requires_grad_(False)
    with pytest.raises(ValueError, match="requires_grad=False"):
        mp.Learner(mp.attach(net, mp.LoRA(1)), SGD(2, 0.1))


def test_engines_and_heads_may_be_objects() -> None:
    learner, _ = learner_of("lora", head=mp.heads.Learned(), hypergradient=mp.hypergradients.Direct())
    assert learner.head_name == "learned"
    assert "weights.classifier.weight" in learner.trained
    by_function, _ = learner_of("lora", inner=SGD(2, 0.1), hypergradient=mp.hypergradients.Unroll().compute)
    expected, _ = learner_of("lora", inner=SGD(2, 0.1))
    batch = images()
    torch.testing.assert_close(by_function.hypergradient(batch).grads, expected.hypergradient(batch).grads)


@pytest.mark.parametrize(
    ("steps", "head", "notes"), [(2, "zero", 1), (3, "zero", 0), (1, "prototype-init", 0)]
)
def test_few_steps_are_noted(steps: int, head: str, notes: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        learner_of("lora", warm=False, inner=SGD(steps, 0.1), head=head)
    assert len(caplog.records) == notes


def test_losses_without_a_reduction_argument() -> None:
    def loss(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs, y, reduction="none")

    batch = images()
    own, _ = learner_of("lora", inner=SGD(2, 0.1), loss=loss)
    module, _ = learner_of("lora", inner=SGD(2, 0.1), loss=torch.nn.CrossEntropyLoss(reduction="none"))
    expected = learner_of("lora", inner=SGD(2, 0.1))[0].hypergradient(batch).value
    assert own.hypergradient(batch).value == module.hypergradient(batch).value == expected
    wrong, _ = learner_of("lora", loss=lambda outputs, y: (outputs.mean() - y.sum()).square())
    with pytest.raises(ValueError, match="one value an item"):
        wrong.hypergradient(batch)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"support_y": torch.zeros(2, 5, dtype=torch.int64)}, r"support_y has shape \(2, 5\)"),
        ({"query_mask": torch.ones(2, 6)}, "torch.bool"),
        ({"query_x": torch.zeros(2, 6, 1, 4, 4).fill_(torch.nan).double()}, "NaN"),
        ({"classes": torch.arange(5).expand(2, -1)}, "5 ways, the learned head 3 outputs"),
        ({"support_y": torch.zeros(2, 6, dtype=torch.bool)}, "labels are integers"),
    ],
)
def test_bad_batches_are_refused(change: dict[str, Any], sentence: str) -> None:
    import dataclasses

    learner, _ = learner_of("lora", head="learned")
    with pytest.raises((ValueError, mp.NumericalError), match=sentence):
        learner.hypergradient(dataclasses.replace(images(), **change))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])  # noqa: S301
def test_a_copy_has_tensors_of_its_own(copied: Any) -> None:
    """Also after a run, when views of the model are there."""
    own, _ = learner_of(
        "cp", inner=mp.inner.SGD(2, 0.1), head="prototype-init", outer=("weights", "factors", "generator"),
        generator=mp.generators.MappingNet(hidden=4),
    )  # fmt: skip
    before = own.hypergradient(images())
    again = copied(own)
    assert_same(dict(again.hypergradient(images()).grads), dict(before.grads), 1e-12)
    for value in again.trained.values():
        value.add_(1.0)
    changed = again.hypergradient(images())
    assert float(changed.value) != float(before.value)
    assert_same(dict(own.hypergradient(images()).grads), dict(before.grads), 1e-12)


def test_labels_of_classes_are_integers() -> None:
    batch = images()
    own, _ = learner_of(inner=mp.inner.SGD(1, 0.1), outer=("weights",))
    with pytest.raises(ValueError, match="class labels are integers"):
        own.adapt_many(batch.support_x, batch.support_y.double(), ways=3)


@pytest.mark.parametrize("method", ["maml", "lora_ml", "metapeft", "protonet"])
def test_unknown_options_of_recipes_are_refused_with_the_nearest(method: str) -> None:
    with pytest.raises(ValueError, match=r"'dropuot'; did you mean 'dropout'"):
        getattr(mp.methods, method)(mp.backbones.mlp(4, 3, hidden=(8,)), dropuot=True)


def test_nothing_to_train_has_no_hypergradient() -> None:
    learner, _ = learner_of("lora", inner=SGD(2, 0.1), outer=())
    with pytest.raises(ValueError, match="trains nothing"):
        learner.hypergradient(images())
