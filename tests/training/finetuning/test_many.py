"""Many updates in one forward are as many trainings one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import metapeft as mp
from tests.training.finetuning.helpers import Listed, attached, bert, rows, sentences


def apart(one: mp.Fitted, other: mp.Fitted) -> float:
    return max(float((one.factors[name] - other.factors[name]).abs().max()) for name in one.factors)


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_sentences_of_several_lengths_and_numbers(micro_batch: int | None) -> None:
    """20 steps in float64, padding and micro-batches included; epochs of 2, 4 and 1 batches."""
    body = bert()
    data: list[Any] = [
        Listed(sentences(count, seed, longest)) for count, seed, longest in ((9, 1, 7), (19, 2, 4), (3, 3, 6))
    ]
    options: dict[str, Any] = {
        "format": mp.LoRA(2, 4.0), "targets": ["*query", "*value"], "full": ("classifier.*",), "steps": 20,
        "batch_size": 5, "lr": 0.01, "schedule": "linear", "clip": 1.0,
    }  # fmt: skip
    many = mp.finetune(body, data, micro_batch=micro_batch, **options)
    for own, one in zip(data, many):
        alone = mp.finetune(body, own, **options)
        assert apart(one, alone) < 1e-9  # 1e-6 is asked for
        assert [row["loss"] for row in one.log] == pytest.approx([row["loss"] for row in alone.log], rel=1e-9)


class Tagger(torch.nn.Module):
    """A class for each token, which reads its neighbours within the mask only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(11, 6)
        self.out = torch.nn.Linear(6, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        words = self.words(input_ids) * attention_mask.unsqueeze(-1)
        return self.out(torch.tanh(words + words.sum(1, keepdim=True)))


def tagged(count: int, seed: int) -> Listed:
    items = sentences(count, seed)
    tags = [[(t + item["input_ids"][0]) % 4 if t % 3 else -100 for t in item["input_ids"]] for item in items]
    return Listed([{"input_ids": item["input_ids"], "labels": own} for item, own in zip(items, tags)])


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_means_over_tokens_are_weighted(micro_batch: int | None) -> None:
    """The loss of a batch is the mean over all tokens that count, however it is cut and padded."""
    data = [tagged(7, 5), tagged(12, 6)]
    options: dict[str, Any] = {
        "format": mp.LoRA(2),
        "targets": "out",
        "steps": 6,
        "batch_size": 4,
        "lr": 0.05,
    }
    many = mp.finetune(Tagger().double(), data, micro_batch=micro_batch, **options)
    for own, one in zip(data, many):
        alone = mp.finetune(Tagger().double(), own, **options)
        assert apart(one, alone) < 1e-12
        tokens, total = 0, 0.0
        plain = one.merged()
        for item in own.items:
            ids, labels = torch.tensor([item["input_ids"]]), torch.tensor(item["labels"])
            kept = labels != -100
            logits = plain(ids, torch.ones_like(ids))[0]
            total += (
                float(torch.nn.functional.cross_entropy(logits[kept], labels[kept], reduction="sum"))
                if kept.any()
                else 0.0
            )
            tokens += int(kept.sum())
        assert one.evaluate(own)["loss"] == pytest.approx(total / tokens, rel=1e-12)


def test_each_ends_when_it_would_alone() -> None:
    x, y = rows(24)
    data = [(x, y), rows(40, 3), (x, (y + 1) % 3)]
    judges = [(x, (y + 1) % 3), rows(10, 4), (x, y)]
    options: dict[str, Any] = {"epochs": 8, "batch_size": 8, "lr": 0.1, "patience": 2}
    many = mp.finetune(attached(), data, judges, **options)
    assert len({one.step for one in many}) > 1
    for own, judge, one in zip(data, judges, many):
        alone = mp.finetune(attached(), own, judge, **options)
        assert (one.step, one.best_step) == (alone.step, alone.best_step)
        assert apart(one, alone) < 1e-12


def test_starts_of_their_own() -> None:
    model = attached()
    shifted = {name: value + 0.1 for name, value in model.factors().items()}
    many = mp.finetune(model, [rows(), rows()], steps=3, start=[None, shifted])
    assert apart(many[1], mp.finetune(model, rows(), steps=3, start=shifted)) < 1e-12
    assert apart(many[0], many[1]) > 0.05


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of PEFT's own
def test_each_has_a_folder_of_peft(tmp_path: Any) -> None:
    peft = pytest.importorskip("peft", reason="pip install 'metapeft[peft]'")
    body = bert()
    many = mp.finetune(
        body, [Listed(sentences(5, 1)), Listed(sentences(4, 2))], format=mp.LoRA(2, 4.0), targets=["*query", "*value"],
        full=("classifier.*",), steps=3, lr=0.05,
    )  # fmt: skip
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    for number, one in enumerate(many):
        one.export_peft(tmp_path / str(number))
        loaded = peft.PeftModel.from_pretrained(bert(), tmp_path / str(number)).eval()
        found = loaded(input_ids=ids).logits
        assert torch.allclose(found, one({"input_ids": ids}), atol=1e-9)
    assert apart(*many) > 1e-3


def test_inputs_that_would_have_to_be_padded_need_a_mask() -> None:
    data = [(torch.zeros(4, size), torch.zeros(4, dtype=torch.int64)) for size in (3, 5)]
    net = torch.nn.Sequential(torch.nn.Unflatten(1, (-1, 1)), torch.nn.Linear(1, 2), torch.nn.Flatten(1))
    with pytest.raises(ValueError, match="without an attention_mask"):
        mp.finetune(net, data, format=mp.LoRA(1), steps=1)
