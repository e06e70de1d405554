"""What adapted tasks predict: independent of other queries, equal to merged modules, one forward for many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import metapeft as mp
from tests.learner.formulas import LEARNED
from tests.learner.helpers import FORMATS, grid, images, learner_of
from tests.learner.plain import Net, Plain, Said

SGD = mp.inner.SGD
HEADS = ("learned", "zero", "prototype-init", "prototypes", "ridge", "knn")


def predictions(learner: mp.Learner, batch: Any, x: torch.Tensor) -> torch.Tensor:
    return learner.adapt_many(batch.support_x, batch.support_y, mask=batch.support_mask, ways=3)(x)


def make(kind: str, norm: str, head: str, **options: Any) -> mp.Learner:
    given: dict[str, Any] = {"inner": SGD(2, 0.1), "outer": ("weights",), **options}
    if head == "knn":
        given.update(inner=None, outer=(), adapt="all")
    return learner_of(kind, norm, head=head, **given)[0]


@pytest.mark.parametrize(
    ("per", "head", "norm"), grid([None, "task", "input"], HEADS, ["running", "support"], quick=2)
)
def test_other_queries_change_no_prediction(per: Any, head: str, norm: str) -> None:
    options: dict[str, Any] = {}
    if per is not None:
        options = {"generator": mp.generators.MappingNet(hidden=4, per=per), "adapt": ["*.A", "*.B"]}
    learner, batch = make("cp", norm, head, **options), images(queries=3)
    x, order = batch.query_x, torch.tensor([4, 0, 8, 2, 6, 1, 3, 5, 7])
    whole = predictions(learner, batch, x)
    torch.testing.assert_close(
        predictions(learner, batch, x[:, order]), whole[:, order], rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(predictions(learner, batch, x[:, :2]), whole[:, :2], rtol=1e-10, atol=1e-12)
    other = torch.cat([x[:, :3], 5.0 * torch.randn_like(x[:, 3:])], 1)
    torch.testing.assert_close(
        predictions(learner, batch, other)[:, :3], whole[:, :3], rtol=1e-10, atol=1e-12
    )


def test_transductive_predictions_do_depend_on_queries() -> None:
    learner, batch = make("cp", "transductive", "zero"), images()
    changed = batch.query_x.clone()
    changed[:, -1] += 3.0
    first, second = predictions(learner, batch, batch.query_x), predictions(learner, batch, changed)
    assert not torch.allclose(first[:, 0], second[:, 0])


@pytest.mark.parametrize(
    ("norm", "head", "kind"),
    grid(["running", "support"], ["learned", "zero", "prototypes"], FORMATS, quick=3),
)
def test_adapted_equals_merged(norm: str, head: str, kind: str) -> None:
    learner, batch = make(kind, norm, head, selection=None if kind == "full" else "softmax"), images()
    many = learner.adapt_many(batch.support_x, batch.support_y)
    logits = many(batch.query_x)
    for t in range(2):
        alone = learner.adapt(batch.support_x[t], batch.support_y[t])
        torch.testing.assert_close(alone(batch.query_x[t]), logits[t], rtol=1e-10, atol=1e-12)
        plain = many.task(t).merged()
        assert type(plain) is Net
        torch.testing.assert_close(plain(batch.query_x[t]), logits[t], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(many.task(t)(batch.query_x[t]), logits[t], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("norm", ["running", "support", "transductive"])
def test_evaluation_scores_what_adapted_tasks_predict(norm: str, head: str) -> None:
    learner = make("cp", norm, head, inner=SGD(2, 0.1) if head != "prototypes" else None)
    batch = images(tasks=3)
    logits = predictions(learner, batch, batch.query_x)
    hits = (logits.argmax(-1) == batch.query_y).double().mean(1)

    class Sampler:
        def batch(self, start: int, count: int) -> Any:
            return batch.tasks(slice(start, start + count))

    result = mp.evaluate(learner, Sampler(), episodes=3, tasks_per_batch=2)
    torch.testing.assert_close(result.values, hits, rtol=0, atol=0)


@pytest.mark.parametrize("head", [head for head in LEARNED if head != "learned"])
def test_heads_take_any_number_of_ways(head: str) -> None:
    """The same learner, whatever it was trained with: as a plain loop on the same variables."""
    said: dict[str, Any] = {"inner": SGD(2, 0.1), "head": head}
    learner, net = learner_of("lora", **said)
    for ways in (2, 7):
        batch = images(ways=ways)
        found = learner.adapt_many(batch.support_x, batch.support_y)(batch.query_x)
        plain = Plain(learner.variables, net, batch, Said(format=FORMATS["lora"], **said))
        torch.testing.assert_close(found, plain.predictions(), rtol=1e-9, atol=1e-9)


def test_masked_items_count_for_nothing() -> None:
    batch = images(masked=True)
    for head in HEADS:
        learner = make("lora", "support", head)
        first = predictions(learner, batch, batch.query_x)
        changed = batch.support_x.clone()
        changed[~batch.support_mask] += 7.0
        batch_2 = mp.EpisodeBatch(
            changed,
            batch.support_y,
            batch.query_x,
            batch.query_y,
            batch.classes,
            support_mask=batch.support_mask,
        )
        torch.testing.assert_close(
            predictions(learner, batch_2, batch.query_x), first, rtol=1e-10, atol=1e-12
        )


def test_what_is_about_one_update_is_refused_otherwise(tmp_path: Path) -> None:
    learner, batch = make("cp", "running", "zero"), images()
    many = learner.adapt_many(batch.support_x, batch.support_y)
    with pytest.raises(ValueError, match="one task"):
        many.merged()
    with pytest.raises(ValueError, match="one task"):
        many.export_peft(tmp_path / "x")
    each = make(
        "cp",
        "running",
        "zero",
        generator=mp.generators.MappingNet(hidden=4, per="input"),
        adapt=["*.A", "*.B"],
    )
    one = each.adapt(batch.support_x[0], batch.support_y[0])
    with pytest.raises(ValueError, match="a seed for each input"):
        one.merged()
    near = make("cp", "running", "knn").adapt(batch.support_x[0], batch.support_y[0])
    with pytest.raises(ValueError, match="nearest-neighbour"):
        near.merged()


def test_labels_out_of_range_are_refused() -> None:
    learner, batch = make("lora", "running", "zero"), images()
    with pytest.raises(ValueError, match="labels 0 to 2: 2 ways"):
        learner.adapt_many(batch.support_x, batch.support_y, ways=2)
    with pytest.raises(ValueError, match="labels -1"):
        learner.adapt_many(batch.support_x, batch.support_y - 1)


def test_export_gives_a_folder_that_peft_loads(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    learner, batch = make("lora", "running", "zero", inner=SGD(3, 0.1)), images()
    with torch.no_grad():  # as if W0 had been trained
        learner.variables["weights.hidden.weight"].add_(0.1)
    one = learner.adapt(batch.support_x[0], batch.support_y[0])
    one.export_peft(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "base").is_dir()
    from safetensors.torch import load_file

    body = Net()
    body.load_state_dict(load_file(tmp_path / "adapter" / "base" / "model.safetensors"))
    loaded = peft.PeftModel.from_pretrained(body, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(batch.query_x[0]), one(batch.query_x[0]), rtol=1e-8, atol=1e-10)


def test_state_moves_between_learners() -> None:
    first, batch = make("lora", "running", "zero"), images()
    second = learner_of("lora", inner=SGD(2, 0.1), head="zero", net=Net(seed=5), warm=False)[0]
    assert not torch.equal(
        predictions(first, batch, batch.query_x), predictions(second, batch, batch.query_x)
    )
    second.load_state(first.state())
    torch.testing.assert_close(
        predictions(second, batch, batch.query_x), predictions(first, batch, batch.query_x), rtol=0, atol=0
    )
    with pytest.raises(ValueError, match="belongs to another"):
        second.load_state({"x": torch.zeros(1)})
    before = second.state()
    with pytest.raises(ValueError, match="of shape"):
        second.load_state({**first.state(), "weights.hidden.bias": torch.zeros(2)})
    assert all(torch.equal(value, before[name]) for name, value in second.state().items())


def test_learners_do_not_share_what_they_train() -> None:
    net = Net()
    model = mp.attach(net, mp.Full())
    first, second = (mp.Learner(model, SGD(2, 0.1)) for _ in range(2))
    first.variables["weights.hidden.bias"].add_(1.0)
    assert torch.equal(second.variables["weights.hidden.bias"], net.hidden.bias.detach())


def test_moving_a_learner_keeps_its_tensors() -> None:
    learner, batch = make("cp", "running", "zero", generator=mp.generators.MappingNet(hidden=4)), images()
    expected = predictions(learner, batch, batch.query_x)
    learner.to(dtype=torch.float32)
    assert {value.dtype for value in learner.variables.values()} == {torch.float32}
    torch.testing.assert_close(
        predictions(learner, batch, batch.query_x).double(), expected, rtol=1e-4, atol=1e-4
    )


def test_more_steps_at_test_repeat_the_last_rates() -> None:
    learner, batch = make("lora", "running", "zero", inner=SGD(2, 0.1, rates="step")), images()
    fixed = make("lora", "running", "zero", inner=SGD(5, 0.1))
    fixed.load_state(learner.state())
    again = learner.adapt_many(batch.support_x, batch.support_y, steps=5)(batch.query_x)
    expected = fixed.adapt_many(batch.support_x, batch.support_y)(batch.query_x)
    torch.testing.assert_close(again, expected, rtol=1e-10, atol=1e-12)


def test_one_task_is_adapted_under_its_mask() -> None:
    data = mp.load_dataset("glyphs", split="val", per_class=12)
    learner = mp.methods.centroids(
        mp.backbones.conv4(ways=5, channels=1, width=4), preprocess=data.preprocess
    )
    episode = mp.EpisodeSampler(data, (2, 4), (1, 3), 2, seed=1)[3]
    mask = episode.support_mask
    assert not mask.all()
    padded = learner.adapt(episode.support_x, episode.support_y, mask=mask)(episode.query_x)
    real = learner.adapt(episode.support_x[mask], episode.support_y[mask])(episode.query_x)
    torch.testing.assert_close(padded, real)
    assert not torch.allclose(learner.adapt(episode.support_x, episode.support_y)(episode.query_x), real)
