"""Searches on layers with planted ranks; stopped ones go on bit for bit; what comes out goes to PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft.training.rank_search.autolora import SelectionSearch
from metapeft.training.rank_search.fitting import Fitting
from tests.training.rank_search.problems import TRUTH, close, options, planted, same

FORMATS = {"lora": mp.LoRA(4), "cp": mp.CP(4), "ring": mp.TensorRing((1, 4, 1))}


@pytest.mark.parametrize("kind", FORMATS)
def test_planted_ranks_are_found(kind: str) -> None:
    net, train, validation = planted()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    given = options(format=FORMATS[kind])
    fisher = mp.search_ranks(net, train, validation, method="fisher", total=4, **given)
    prune = mp.search_ranks(net, train, validation, method="prune", **given)
    assert sum(fisher.ranks.values()) == 4
    assert close(fisher.ranks)
    assert close(prune.ranks)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [row["terms"] for row in fisher.curve] == [12, 4]
    # what is left of the search's own update is as good as its stage says
    x, y = validation
    output = prune.attached()(x.unsqueeze(0), prune.factors)[0]
    stage = next(row for row in prune.curve if row["terms"] == sum(prune.ranks.values()))
    assert float((output - y).square().mean()) == pytest.approx(stage["loss"], rel=1e-4)


@pytest.mark.parametrize("method", ["fisher", "prune"])
def test_a_budget_of_parameters_is_kept_to(method: str) -> None:
    net, train, validation = planted()
    found = mp.search_ranks(net, train, validation, method=method, parameters=50, **options(steps=60))
    assert sum(found.ranks.values()) == 4  # a term has 12 parameters


def test_pruning_meets_a_total_exactly() -> None:
    net, train, validation = planted()
    found = mp.search_ranks(
        net, train, validation, method=mp.PruneRanks(keep=0.6), total=5, **options(steps=60)
    )
    assert sum(found.ranks.values()) == 5


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_pruning_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    net, train, validation = planted()
    given: dict[str, Any] = {"method": mp.PruneRanks(keep=0.7), **options(steps=40)}
    whole = mp.search_ranks(net, train, validation, run_dir=tmp_path / "whole", **given)
    fit, fits = Fitting.fit, []

    def dying(self: Fitting, *arguments: Any, **more: Any) -> Any:
        if len(fits) == after:
            raise Killed
        fits.append(1)
        return fit(self, *arguments, **more)

    monkeypatch.setattr(Fitting, "fit", dying)
    with pytest.raises(Killed):
        mp.search_ranks(net, train, validation, run_dir=tmp_path / "cut", **given)
    monkeypatch.undo()
    again = mp.search_ranks(net, train, validation, run_dir=tmp_path / "cut", **given)
    assert (again.ranks, again.curve) == (whole.ranks, whole.curve)
    assert same(again.factors, whole.factors)
    with pytest.raises(ValueError, match=r"run_dir.lr is 0.5 here"):
        mp.search_ranks(net, train, validation, run_dir=tmp_path / "cut", **{**given, "lr": 0.5})


def test_a_killed_autolora_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, train, validation = planted()
    given: dict[str, Any] = {"method": mp.AutoLoRARanks(lr=0.05), "total": 4, **options(steps=12)}
    whole = mp.search_ranks(net, train, validation, run_dir=tmp_path / "whole", **given)
    step = SelectionSearch.step

    def dying(self: SelectionSearch) -> None:
        if self.lower.step == 7:
            raise Killed
        step(self)
        if self.lower.step == 5:
            self.save(run)

    from metapeft.training.runs.run import Run

    create = Run.create
    run: Any = None

    def created(*arguments: Any) -> Any:
        nonlocal run
        run = create(*arguments)
        return run

    monkeypatch.setattr(Run, "create", created)
    monkeypatch.setattr(SelectionSearch, "step", dying)
    with pytest.raises(Killed):
        mp.search_ranks(net, train, validation, run_dir=tmp_path / "cut", **given)
    monkeypatch.undo()
    again = mp.search_ranks(net, train, validation, run_dir=tmp_path / "cut", **given)
    assert whole.logits is not None
    assert again.logits is not None
    assert same(again.logits, whole.logits)
    assert same(again.factors, whole.factors)
    assert again.curve == whole.curve
    assert again.scores is None


@pytest.mark.parametrize("engine", ["unroll", "finite-difference", "autolora", "first-order"])
def test_autolora_moves_logits_by_every_hypergradient(engine: str) -> None:
    net, train, validation = planted()
    method = mp.AutoLoRARanks(engine, lr=0.1)
    found = mp.search_ranks(
        net, train, validation, method=method, **options(format=mp.LoRA(4, 16.0), steps=30)
    )
    assert found.logits is not None
    assert all(float(value.abs().max()) > 0.1 for value in found.logits.values())
    assert found.ranks == mp.ranks(found.logits)
    assert found.curve[-1]["loss"] < found.curve[0]["loss"]


def test_logits_that_have_not_moved_are_said_so() -> None:
    net, train, validation = planted()
    with pytest.warns(UserWarning, match="hardly moved"):
        mp.search_ranks(net, train, validation, method="autolora", **options(steps=2))


def test_what_is_found_goes_to_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="pip install 'metapeft[peft]'")
    net, train, validation = planted()
    found = mp.search_ranks(
        net, train, validation, method="fisher", total=2, **options(format=mp.LoRA(4, 8.0))
    )
    assert 0 in found.ranks.values()
    found.export_peft(tmp_path / "adapter")
    x = validation[0]
    loaded = peft.PeftModel.from_pretrained(planted()[0], tmp_path / "adapter")
    assert torch.allclose(loaded(x), found.attached()(x.unsqueeze(0), found.factors)[0], atol=1e-5)
    config = found.lora_config()
    assert sum(config.rank_pattern.values()) == 2
    assert config.lora_alpha == 8
    loss = torch.nn.functional.mse_loss
    fitted = mp.finetune(net, train, format=found.formats(), start=found.factors, steps=1, loss=loss)
    shapes = {name: value.shape for name, value in found.factors.items()}
    assert {name: value.shape for name, value in fitted.factors.items()} == shapes


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"method": "fischer"}, r"method='fischer': allowed are .*did you mean 'fisher'"),
        ({"method": "fisher"}, r"needs total= or parameters="),
        ({"total": 4, "parameters": 9}, "one of them is the budget"),
        ({"total": 13}, "total=13: the updates have 12 terms"),
        ({"total": -1}, "total=-1: allowed is a whole number"),
        ({"format": mp.Full(), "total": 1}, "no update with terms"),
        ({"total": 1, "validation": None}, "validation=None: ranks are chosen"),
    ],
)
def test_what_is_refused(more: dict[str, Any], said: str) -> None:
    net, train, validation = planted()
    given = {"validation": validation, **options(), **more}
    with pytest.raises(ValueError, match=said):
        mp.search_ranks(net, train, given.pop("validation"), **given)


def test_ranks_of_the_problem_are_not_those_of_a_control() -> None:
    assert not close({"0.weight": 2, "2.weight": 1, "4.weight": 1})
    assert close(TRUTH)
