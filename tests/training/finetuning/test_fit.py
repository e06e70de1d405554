"""Plain training: against a loop written out, on every kind of data, stopped and gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import metapeft as mp
from metapeft.training.finetuning.order import epoch_of_batches
from tests.training.finetuning.helpers import ByHand, Listed, attached, net, rows


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    return set(one) == set(other) and all(float((one[n] - other[n]).abs().max()) <= tolerance for n in one)


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_it_is_the_loop_that_one_would_write(micro_batch: int | None) -> None:
    x, y = rows()
    model = attached()
    fitted = mp.finetune(
        model, (x, y), steps=9, batch_size=8, micro_batch=micro_batch, lr=0.05, schedule="linear", warmup=0.3, clip=0.5,
        options={"weight_decay": 0.1}, log_every=1,
    )  # fmt: skip
    plain = ByHand(net().requires_grad_(False), model.factors(), scale=2.0)
    optimizer = torch.optim.AdamW([plain.a, plain.b], lr=0.05, weight_decay=0.1)
    losses = []
    for step in range(9):
        rate = step / 3 if step < 3 else 1 - (step - 3) / 6
        optimizer.param_groups[0]["lr"] = 0.05 * rate
        batch = epoch_of_batches(23, 8, 0, step // 3)[step % 3]
        loss = F.cross_entropy(plain(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([plain.a, plain.b], 0.5)
        optimizer.step()
        losses.append(loss.item())
    assert [row["loss"] for row in fitted.log] == pytest.approx(losses, rel=1e-9)
    assert same(
        fitted.factors, {"0.weight.A": plain.a.detach()[None], "0.weight.B": plain.b.detach()[None]}, 1e-9
    )
    assert torch.allclose(fitted.merged()(x), plain(x))
    assert torch.allclose(fitted(x), plain(x))


def test_every_kind_of_data_gives_the_same_numbers() -> None:
    x, y = rows()
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    named = Listed([{"x": one, "labels": int(label), "text": "no number"} for one, label in zip(x, y)])
    pairs = Listed(list(zip(x, y.tolist())))
    first = mp.finetune(attached(), (x, y), epochs=2, batch_size=8)
    assert first.step == 6
    for data in (pairs, loader, TensorDataset(x, y)):
        assert same(mp.finetune(attached(), data, epochs=2, batch_size=8).factors, first.factors)

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = net()

        def forward(self, x: Tensor) -> Any:
            return {"logits": self.inside(x)}

    found = mp.finetune(
        Named(), named, format=mp.LoRA(2, 4.0), targets="inside.0.weight", epochs=2, batch_size=8
    )
    assert set(found.factors) == {"inside.0.weight.A", "inside.0.weight.B"}
    assert found.evaluate(named)["loss"] == pytest.approx(
        float(F.cross_entropy(found.merged()(x)["logits"], y))
    )


def test_what_one_trained_before_is_not_changed_and_gets_no_gradients() -> None:
    body = net()
    before = {name: value.clone() for name, value in body.state_dict().items()}
    fitted = mp.finetune(body, rows(), format=mp.LoRA(1), full=("2.*",), epochs=1, lr=0.1)
    assert set(fitted.factors) == {"2.weight.delta", "2.bias.delta", "0.weight.A", "0.weight.B"}
    assert all(torch.equal(value, before[name]) for name, value in body.state_dict().items())
    assert all(value.requires_grad and value.grad is None for value in body.parameters())


@pytest.mark.parametrize("several", [False, True])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, several: bool) -> None:
    train: Any = [rows(23), rows(40, 1)] if several else rows(23)
    options: dict[str, Any] = {
        "epochs": 3, "batch_size": 8, "schedule": "cosine", "warmup": 0.1, "lr": 0.1, "patience": 2, "log_every": 2,
        "checkpoint_every": 3,
    }  # fmt: skip

    def fit(folder: str, **more: Any) -> list[mp.Fitted]:
        found = mp.finetune(attached(), train, rows(20, 7), run_dir=tmp_path / folder, **options, **more)
        return found if several else [found]

    whole = fit("whole")
    for stop in (1, 3, 7):
        fit(f"cut{stop}", stop_at=stop)
        again = fit(f"cut{stop}", resume=True)
        for one, other in zip(whole, again):
            assert same(one.factors, other.factors)
            assert (one.log, one.best_step, one.step) == (other.log, other.best_step, other.step)
    assert same(fit("whole", resume=True)[0].factors, whole[0].factors)  # one that is at its end
    with pytest.raises(ValueError, match=r"run_dir.lr is 0.2 here"):
        mp.finetune(
            attached(), train, rows(20, 7), run_dir=tmp_path / "whole", resume=True, **{**options, "lr": 0.2}
        )
    with pytest.raises(ValueError, match="holds a run already"):
        fit("whole")


def test_patience_stops_and_the_best_state_stays() -> None:
    x, y = rows(24)
    wrong = (x, (y + 1) % 3)  # what is learned makes this worse
    fitted = mp.finetune(attached(), (x, y), wrong, epochs=50, batch_size=8, lr=0.1, patience=3)
    assert fitted.best_step == 3
    assert fitted.step == 12
    scores = [row["validation_loss"] for row in fitted.log if "validation_loss" in row]
    assert fitted.evaluate(wrong)["loss"] == pytest.approx(min(scores), rel=1e-12)


def test_dropout_is_seeded_and_acts_in_training_only() -> None:
    body = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Dropout(0.5), torch.nn.Linear(5, 3)).double()
    options: dict[str, Any] = {"format": mp.LoRA(1), "steps": 3, "lr": 0.1}
    first, again, other, without = (
        mp.finetune(body, rows(), dropout=dropout, seed=seed, **options)
        for dropout, seed in ((True, 0), (True, 0), (True, 1), (False, 0))
    )
    assert same(first.factors, again.factors)
    assert not same(first.factors, other.factors)
    assert not same(first.factors, without.factors)
    assert torch.equal(first(rows()[0]), first(rows()[0]))
    cut = mp.finetune(body, rows(), dropout=True, micro_batch=5, **options)
    assert same(cut.factors, first.factors, 1e-12)


def test_bfloat16_forwards_leave_float32_factors() -> None:
    x, y = rows()
    fitted = mp.finetune(
        net().float(), (x.float(), y), format=mp.LoRA(1), steps=3, lr=0.1, autocast=torch.bfloat16
    )
    assert {value.dtype for value in fitted.factors.values()} == {torch.float32}


def test_a_loss_that_is_not_finite_stops_by_name() -> None:
    x, y = rows()
    with pytest.raises(mp.NumericalError, match=r"step 1: the loss of adapter 1 is"):
        mp.finetune(
            attached(), [(x, y * 0), (x, y)], steps=1, loss=lambda o, t: o.sum(1) * (t == 0).to(o).log()
        )
    with pytest.raises(mp.NumericalError, match=r"step 1: the loss is nan"):
        mp.finetune(attached(), (x, y), steps=1, loss=lambda o, t: o.sum(1) * float("nan"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "steps=None, epochs=None: one of them"),
        ({"steps": 0}, "steps=0: allowed is a whole number of at least 1"),
        ({"steps": 1, "warmup": 5}, "warmup=5: allowed is a finite number"),
        ({"steps": 1, "schedule": "step"}, "schedule='step': allowed are None"),
        ({"steps": 1, "warmup": 0.1, "schedule": lambda o, s: None}, "warmup=0.1 has no effect beside"),
        ({"steps": 1, "metrics": ["acuracy"]}, "metrics has 'acuracy': known are accuracy"),
        ({"steps": 1, "metrics": "accuracy"}, "metrics='accuracy': allowed is a list"),
        ({"steps": 1, "monitor": "f1"}, "monitor='f1': allowed are 'loss'"),
        ({"steps": 1, "patience": 2}, "patience=2 has no effect without validation="),
        ({"steps": 1, "resume": True}, "give run_dir= too"),
        ({"steps": 1, "dropout": True}, "dropout=True has no effect"),
        ({"steps": 1, "format": mp.LoRA(1)}, "format=, targets=, full= and device= are for a backbone"),
        ({"steps": 1, "start": [{}]}, "factors of '0.weight' are"),
        ({"steps": 1, "start": [None, None]}, "start is a list of 2 for 1 updates"),
        ({"steps": 1, "autocast": torch.bfloat16}, "is for parameters in float32"),
        ({"steps": 1, "validation": [rows(), rows()]}, "validation is a list of 2 for 1 updates"),
        ({"steps": 1, "train": (rows()[0], rows(3)[1])}, r"train is a pair of \[23\] inputs and 3 targets"),
        ({"steps": 1, "train": []}, r"train=\[\]: a list has a data set"),
        ({"steps": 1, "train": 3}, "train is of type int: allowed are a pair"),
        ({"steps": 1, "train": Listed([{"x": 1}])}, "one of them must be 'labels'"),
        ({"steps": 1, "train": Listed([{"text": "a", "labels": 1}])}, "tokenise texts first"),
        ({"steps": 1, "train": Listed([3])}, "an item is a pair"),
        ({"steps": 1, "train": (rows()[0], rows()[1].double())}, "targets have shape|loss= cannot be taken"),
        ({"steps": 1, "train": (rows()[0], torch.full((23,), -100))}, "no row or token of the batch counts"),
        ({"steps": 1, "loss": lambda outputs, targets: outputs.mean()}, r"loss returned shape \(\)"),
    ],
)
def test_what_is_refused(options: dict[str, Any], said: str) -> None:
    given = {"train": rows(), **options}
    with pytest.raises(ValueError, match=said):
        mp.finetune(attached(), given.pop("train"), given.pop("validation", None), **given)


def test_loaders_that_cannot_be_resumed_are_refused() -> None:
    data = TensorDataset(*rows())
    sampler = torch.utils.data.WeightedRandomSampler([1.0] * 23, 23)
    with pytest.raises(ValueError, match="draws by WeightedRandomSampler of its own"):
        mp.finetune(attached(), DataLoader(data, batch_size=4, sampler=sampler), steps=1)
