"""Heads on normalised features: the numbers by hand, the centre kept with the learner, merged modules alike."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metapeft as mp
from metapeft import heads
from metapeft.heads.normalized import unit
from metapeft.training.tuning import calibrated_scale
from tests.heads.test_heads import support

KINDS: dict[str, Any] = {
    "prototypes": heads.Prototypes,
    "prototype-init": heads.PrototypeInit,
    "cosine prototypes": lambda **more: heads.Prototypes(metric="cosine", **more),
    "cosine": heads.Cosine,
    "ridge": heads.Ridge,
    "weighted-ridge": heads.WeightedRidge,
    "logistic": heads.Logistic,
    "knn": heads.KNN,
}
CENTER = torch.tensor([0.3, -0.2, 0.5, 1.0], dtype=torch.float64)


def by_hand(features: Tensor, normalize: str | None) -> Tensor:
    if normalize == "center+l2":
        features = features - CENTER
    return features if normalize is None else features / features.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("normalize", ["l2", "center+l2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_on_normalised_features_is_the_plain_head_on_them(kind: str, normalize: str) -> None:
    (features, y), (queries, _) = support(), support(seed=5)
    head, plain = KINDS[kind](normalize=normalize), KINDS[kind]()
    found = head.logits(queries, head.start(features, y, 3, None, {"center": CENTER}))
    expected = plain.logits(by_hand(queries, normalize), plain.start(by_hand(features, normalize), y, 3))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    raw = plain.logits(queries, plain.start(features, y, 3))
    if kind == "cosine" and normalize == "l2":
        torch.testing.assert_close(found, raw, rtol=1e-10, atol=1e-12)
    else:
        assert not torch.allclose(found, raw)


@pytest.mark.parametrize("kind", KINDS)
def test_a_centre_that_is_missing_is_said(kind: str) -> None:
    features, y = support()
    with pytest.raises(ValueError, match=r"mp.fit_center"):
        KINDS[kind](normalize="center+l2").start(features, y, 3)
    with pytest.raises(ValueError, match=r"normalize='L2': allowed are"):
        KINDS[kind](normalize="L2")


def test_cosine_prototypes_are_cosines_with_class_means() -> None:
    (features, y), (queries, _) = support(), support(seed=5)
    head = heads.Prototypes(scale=7.0, metric="cosine")
    means = torch.stack([torch.stack([features[t][y[t] == n].mean(0) for n in range(3)]) for t in range(2)])
    expected = 7.0 * torch.cosine_similarity(queries.unsqueeze(2), means.unsqueeze(1), dim=-1)
    found = head.logits(queries, head.start(features, y, 3))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_cosine_classifier_turns_its_weights_only() -> None:
    """Its logits do not change with the length of a weight, and their gradient stands at right angles to it."""
    features, y = support()
    head = heads.Cosine(scale=5.0)
    start = head.start(features, y, 3)
    weight = (3.0 * start["head.weight"]).requires_grad_()
    logits = head.logits(features, {**start, "head.weight": weight})
    torch.testing.assert_close(logits, head.logits(features, start), rtol=1e-10, atol=1e-12)
    (grad,) = torch.autograd.grad(logits[..., 0].sum(), weight)
    assert float((grad * weight.detach()).sum(-1).abs().max()) < 1e-12 < float(grad.abs().max())


@pytest.mark.parametrize("value", [0.0, 1e-3])
def test_derivatives_of_unit_at_small_features(value: float) -> None:
    x = torch.full((1, 3), value, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(unit, x) if value else unit(x).isfinite().all()
    (first,) = torch.autograd.grad(unit(x)[0, 0], x, create_graph=True)
    (second,) = torch.autograd.grad(first[0, 0], x)
    assert first.isfinite().all()
    assert second.isfinite().all()


def learner(kind: str, normalize: str | None, **more: Any) -> mp.Learner:
    body = mp.backbones.conv4(width=4, seed=0).double()
    model = mp.attach(body, mp.LoRA(2), targets="body", preprocess=lambda x: x.double() / 255)
    return mp.Learner(model, head=KINDS[kind](normalize=normalize), **more)


def data() -> Any:
    return mp.load_dataset("glyphs", split="train")


def test_the_centre_is_the_mean_feature_of_the_images() -> None:
    one = mp.fit_center(learner("prototypes", "center+l2"), data(), images=200, group=37, seed=3)
    other = mp.fit_center(learner("prototypes", "center+l2"), data(), images=200, group=200, seed=3)
    assert one.center is not None
    assert other.center is not None
    torch.testing.assert_close(one.center, other.center, rtol=1e-12, atol=0)
    few = mp.ImageData(data().images[:5], data().labels[:5] * 0, ["a"])
    found = mp.fit_center(one, few, images=10).center
    body = mp.backbones.conv4(width=4, seed=0).double().eval()
    body.classifier = nn.Identity()
    with torch.no_grad():
        expected = body(few.images.double() / 255).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("normalize", [None, "l2", "center+l2"])
@pytest.mark.parametrize("kind", ["prototypes", "prototype-init", "cosine", "cosine prototypes", "ridge"])
def test_adapted_merged_kept_and_loaded(kind: str, normalize: str | None, tmp_path) -> None:
    inner = mp.inner.SGD(2, 0.1) if KINDS[kind]().inner else None
    one = learner(kind, normalize, inner=inner, outer=("weights", "factors"))
    if normalize == "center+l2":
        with pytest.raises(ValueError, match=r"mp.fit_center"):
            mp.evaluate(one, mp.EpisodeSampler(data(), 3, 2, 2), episodes=2)
        mp.fit_center(one, data(), images=50)
    batch = mp.EpisodeSampler(data(), 3, 2, 2).batch(0, 2)
    with torch.no_grad():
        one.variables["factors.conv1.weight.B"] += 0.1
    adapted = one.adapt_many(batch.support_x, batch.support_y)
    logits = adapted(batch.query_x)
    plain = adapted.task(1).merged()
    torch.testing.assert_close(plain(batch.query_x[1].double() / 255), logits[1], rtol=1e-9, atol=1e-11)
    assert all(value.isfinite().all() for value in one.hypergradient(batch).grads.values())
    found = mp.evaluate(one, mp.EpisodeSampler(data(), 3, 2, 2), episodes=2)
    metric = "cosine" if kind == "cosine prototypes" else None
    assert found.protocol.head == " ".join(word for word in (one.head_name, metric, normalize) if word)
    mp.save(one, tmp_path / "run")
    again = mp.load(tmp_path / "run", preprocess=one.model.preprocess)
    assert set(again.state()) == set(one.state())
    torch.testing.assert_close(again.adapt_many(batch.support_x, batch.support_y)(batch.query_x), logits)
    if not one.head.linear:
        with pytest.raises(ValueError, match="PEFT keeps a head as a Linear"):
            adapted.task(0).export_peft(tmp_path / "adapter")


def test_a_head_without_a_centre_measures_none() -> None:
    with pytest.raises(ValueError, match=r'"prototypes" reads no centre'):
        mp.fit_center(learner("prototypes", "l2"), data())
    with pytest.raises(ValueError, match=r"an mp.Learner is needed"):
        mp.fit_center(nn.Linear(1, 1), data())  # type: ignore[arg-type]


def test_a_state_that_is_refused_leaves_no_centre() -> None:
    one = learner("prototypes", "center+l2")
    for given in (
        {"center": torch.ones(4), "weights.conv1.weight": torch.ones(7)},
        {"center": torch.ones(9)},
    ):
        with pytest.raises(ValueError, match=r"state has \S+ of shape"):
            one.load_state(given)
        assert one.center is None
    one.load_state({"center": torch.ones(4)})
    assert one.center is not None
    assert one.center.tolist() == [1.0] * 4


def test_the_centre_moves_with_the_learner() -> None:
    one = mp.fit_center(learner("prototypes", "center+l2"), data(), images=50)
    expected = one.center
    one.to(dtype=torch.float32)
    torch.testing.assert_close(one.center, expected.float(), rtol=0, atol=0)
    assert one.state()["center"].dtype == torch.float32


def test_heads_of_ones_own_are_linear_where_their_logits_are_not_their_own() -> None:
    class Plain(heads.Head):
        pass

    class Rooted(heads.Head):
        def logits(self, features: Tensor, tensors: Any) -> Tensor:
            return super().logits(features.sqrt(), tensors)

    assert Plain().linear
    assert not Rooted().linear


@pytest.mark.parametrize(
    "head",
    [
        heads.Prototypes(normalize="l2"),
        heads.Prototypes(metric="cosine"),
        heads.Prototypes(normalize="center+l2"),
    ],
)
def test_the_scale_with_the_smallest_loss_is_found(head: heads.Prototypes) -> None:
    body = mp.backbones.conv4(width=8, seed=0)
    validation = mp.EpisodeSampler(mp.load_dataset("glyphs", split="val"), 5, 1, 5)
    options: dict[str, Any] = {"preprocess": data().preprocess}
    scales = (0.3, 3.0, 30.0, 300.0)
    losses = []
    for scale in scales:
        one = mp.methods.centroids(body, head=dataclasses.replace(head, scale=scale), **options)
        if head.reads_center:
            mp.fit_center(one, data())
        losses.append(mp.evaluate(one, validation, episodes=20).loss)
    found = calibrated_scale(body, validation, 20, scales, head=head, training=data(), **options)
    assert found == scales[losses.index(min(losses))]
    if head.reads_center:
        with pytest.raises(ValueError, match="training= is missing"):
            calibrated_scale(body, validation, head=head, **options)
