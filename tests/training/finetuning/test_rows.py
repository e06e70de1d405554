"""Reading, padding, ordering and losing of rows, and metrics against numbers that were counted by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import metapeft as mp
from metapeft.training.finetuning.items import read_rows
from metapeft.training.finetuning.metrics import resolve_metrics, scored
from metapeft.training.finetuning.order import epoch_of_batches
from metapeft.training.finetuning.row_losses import next_token_cross_entropy, sums
from tests.training.finetuning.helpers import Listed, attached, bert, rows, sentences


def test_an_item_loses_what_the_forward_does_not_take_and_is_padded() -> None:
    data = read_rows(Listed(sentences(6, 0)), bert(), pad_id=9)
    batch = data.batch(range(6))
    assert set(batch.x) == {"input_ids", "attention_mask"}
    lengths = batch.x["attention_mask"].sum(1)
    assert lengths.tolist() == data.lengths
    assert all((ids[n:] == 9).all() and (ids[:n] != 9).any() for ids, n in zip(batch.x["input_ids"], lengths))


def test_a_mask_is_made_where_there_is_none() -> None:
    bare = Listed([{"input_ids": item["input_ids"], "label": 0} for item in sentences(4, 0)])
    batch = read_rows(bare, bert()).batch(range(4))
    assert batch.x["attention_mask"].sum(1).tolist() == [len(item["input_ids"]) for item in bare.items]

    class NoMask(torch.nn.Module):
        def forward(self, input_ids: Any) -> Any:
            return input_ids

    with pytest.raises(ValueError, match="takes no attention_mask"):
        read_rows(bare, NoMask()).batch(range(4))


def test_a_loader_brings_its_collate_function() -> None:
    def collate(items: list[Any]) -> Any:
        return {
            "input_ids": torch.tensor([item["input_ids"][:2] for item in items]),
            "labels": torch.zeros(len(items)),
        }

    loader = DataLoader(Listed(sentences(6, 0)), batch_size=4, collate_fn=collate)
    data = read_rows(loader, bert())
    assert data.batch_size == 4
    assert not data.shuffled
    assert data.batch([0, 1]).x["input_ids"].shape == (2, 2)


@pytest.mark.parametrize("lengths", [None, [i % 7 for i in range(500)]])
def test_an_epoch_has_every_row_once(lengths: list[int] | None) -> None:
    first, again, other, later = (
        epoch_of_batches(500, 8, seed, epoch, lengths) for seed, epoch in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert first == again
    assert first not in (other, later)
    assert sorted(itertools.chain(*first)) == list(range(500))
    if lengths is not None:
        spread = [max(lengths[row] for row in batch) - min(lengths[row] for row in batch) for batch in first]
        assert sum(spread) / len(spread) < 0.5  # rows drawn at random are about 6 apart


def test_next_tokens_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="pip install 'metapeft[transformers]'")
    from tests.updates.networks import tiny

    model = tiny(transformers, "gpt2").double().eval()
    ids = torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, 3:] = -100
    with torch.no_grad():
        output = model(input_ids=ids, labels=labels)
    values, weights = next_token_cross_entropy(output.logits, labels)
    assert float(values.sum() / weights.sum()) == pytest.approx(
        float(output.loss), rel=1e-6
    )  # theirs is in float32
    fitted = mp.finetune(
        model, ({"input_ids": ids}, labels), format=mp.LoRA(1), targets="*c_attn*", steps=1,
        loss=mp.next_token_cross_entropy, metrics=["perplexity"],
    )  # fmt: skip
    found = fitted.evaluate(({"input_ids": ids}, labels))
    assert found["perplexity"] == pytest.approx(float(torch.tensor(found["loss"]).exp()))


def test_rows_of_a_regression_count_once() -> None:
    outputs, y = torch.randn(3, 2), torch.randn(3, 2)
    plain = lambda outputs, targets: F.mse_loss(outputs, targets, reduction="none")  # noqa: E731
    values, weights = sums(plain, F.mse_loss, outputs, y, torch.tensor([True, True, False]))
    assert torch.allclose(values[:2], (outputs - y).square().mean(1)[:2])
    assert weights.tolist() == [1, 1, 0]
    assert values[2] == 0


def test_metrics_are_those_counted_by_hand() -> None:
    pytest.importorskip("torchmetrics", reason="pip install 'metapeft[metrics]'")
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 2.0]])  # 0 1 1 0 1
    y = torch.tensor([0, 1, 0, 1, 1])
    found = scored(resolve_metrics(["accuracy", "f1", "matthews"]), 0.0, logits, y)
    # two right ones and one false positive and negative each of class 1: precision = recall = 2/3
    assert found == pytest.approx({"accuracy": 0.6, "f1": 2 / 3, "matthews": 1 / 6}, rel=1e-5)
    scores = scored(
        resolve_metrics(["spearman", "pearson"]),
        0.0,
        torch.tensor([[1.0], [2.0], [9.0]]),
        torch.tensor([1.0, 3.0, 2.0]),
    )
    assert scores["spearman"] == pytest.approx(0.5, rel=1e-5)
    assert scores["pearson"] == pytest.approx(0.1147, rel=1e-3)
    three = scored(resolve_metrics(["f1"]), 0.0, torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 2]))
    assert three["f1"] == pytest.approx((1 + 2 / 3 + 0) / 3, rel=1e-5)


def test_a_metric_chooses_the_best_state() -> None:
    pytest.importorskip("torchmetrics", reason="pip install 'metapeft[metrics]'")

    def largest(outputs: Any, targets: Any) -> Any:
        return outputs.abs().max()

    fitted = mp.finetune(
        attached(), rows(), rows(9, 1), epochs=3, lr=0.1, metrics=["accuracy", largest], monitor="largest"
    )
    logged = [row["validation_largest"] for row in fitted.log if "validation_largest" in row]
    assert fitted.evaluate(rows(9, 1))["largest"] == max(logged)
    assert 0 <= fitted.evaluate(rows(9, 1))["accuracy"] <= 1


def test_a_hugging_face_table_goes_in_as_it_is() -> None:
    datasets = pytest.importorskip("datasets", reason="a table of Hugging Face, pip install datasets")
    items = sentences(9, 0)
    table = datasets.Dataset.from_list(items)
    options: dict[str, Any] = {
        "format": mp.LoRA(2),
        "targets": ["*query", "*value"],
        "steps": 4,
        "batch_size": 4,
    }
    expected = mp.finetune(bert(), Listed(items), **options).factors
    for data in (table, table.with_format("torch")):
        found = mp.finetune(bert(), data, **options).factors
        assert all(torch.equal(found[name], value) for name, value in expected.items())
