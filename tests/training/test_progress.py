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
