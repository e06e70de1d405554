"""The live line of a run, as a terminal shows it."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

import metapeft as mp
from metapeft.training import progress_bar as progress
from tests.training.helpers import learner, sampler


def shown(monkeypatch: pytest.MonkeyPatch, show: bool) -> str:
    """What a training of 6 steps writes to a terminal."""
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=160)
    made = progress.bars.Progress
    monkeypatch.setattr(
        progress.bars, "Progress", lambda *columns, **options: made(*columns, console=terminal, **options)
    )
    trainer = mp.BilevelTrainer(learner(), tasks_per_step=2, progress=show)
    trainer.fit(sampler(), 6, sampler("val"), validate_every=3, validation_episodes=2, log_every=1)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())


def test_a_run_shows_loss_accuracy_tasks_a_second_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in re.split(r"[\r\n]", shown(monkeypatch, True)) if "step" in line]
    assert lines[-1].startswith("step 6/6")
    assert re.search(r"loss \d+\.\d{3}  acc \d\.\d{3}  val \d\.\d{3}", lines[-1])
    assert float(re.search(r"([\d.]+) tasks/s", lines[-1]).group(1)) > 0  # type: ignore[union-attr]
    assert re.search(r"\d:\d\d:\d\d|-:--:--", lines[-1])


def test_a_run_without_progress_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, False) == ""


def test_somebody_else_is_told_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int, str]] = []
    trainer = mp.BilevelTrainer(learner(), tasks_per_step=2, progress=lambda *now: told.append(now))
    trainer.fit(sampler(), 3, log_every=2)
    assert [(made, total) for made, total, _ in told] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert re.fullmatch(r"loss \d\.\d{3}  acc \d\.\d{3}  [\d.]+ tasks/s", told[-1][2])


def test_retraining_counts_images() -> None:
    told: list[str] = []
    data = mp.load_dataset("glyphs", per_class=2)
    mp.pretrain(
        mp.backbones.conv4(width=2),
        data,
        steps=1,
        group=8,
        groups=2,
        progress=lambda *now: told.append(now[2]),
    )
    assert told[-1].endswith("images/s")
