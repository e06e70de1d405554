"""Where a job says that it is: the method of how many, the step, the time left over all, and no silence."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from metapeft.experiments import live_view
from metapeft.experiments.compared_methods import METHODS
from metapeft.experiments.config import BenchConfig, PairsConfig, TrainConfig
from metapeft.experiments.live_view import LiveView
from metapeft.experiments.main_job import in_order
from metapeft.experiments.stages import made_before
from metapeft.experiments.work import Clock, Part, parts
from metapeft.training.runs.run import Run

PLAN = [Part("sr", "retraining", 1.0), Part("maml", "training", 3.0)]


def job(view: LiveView, seconds: float = 0.0, until: Callable[[], bool] = lambda: False) -> None:
    """A job that is in its second part until something is seen, or for some seconds."""
    view.plan(PLAN)
    view.begin("sr", "retraining", "training")
    time.sleep(0.02)
    view.enter("method 1 of 2, maml", "full updates adapted")
    view.begin("maml", "training", "training")
    view.tell(1, 4, "loss 0.500  41.0 tasks/s")
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until():
        time.sleep(0.05)


def test_a_file_is_told_where_the_job_is_before_it_is_silent_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live_view, "SILENCE", 0.1)
    file = io.StringIO()
    with LiveView(Console(file=file, width=200), time.monotonic()) as view:
        job(view, 30, lambda: "step 1 of 4" in file.getvalue())
    assert "] method 1 of 2, maml: full updates adapted\n" in file.getvalue()
    assert re.search(
        r"\]   method 1 of 2, maml: training, step 1 of 4, loss 0\.500, 41\.0 tasks/s; about \d+ .* left of all\n",
        file.getvalue(),
    )
    assert live_view.RARER > 20  # an hour's log has few hundred lines
    said = file.getvalue()
    time.sleep(0.4)
    assert file.getvalue() == said  # nothing after the end


def test_a_terminal_has_two_lines_that_move() -> None:
    screen = io.StringIO()
    with LiveView(Console(file=screen, force_terminal=True, width=120), time.monotonic()) as view:
        job(view, 30, lambda: "gone, about" in screen.getvalue())
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "method 1 of 2, maml: training, step 1 of 4, loss 0.500, 41.0 tasks/s" in shown
    assert re.search(r"s gone, about \d+ s left", shown)


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_keeps_the_lines_and_nothing_else(quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_view, "SILENCE", 0.05)
    file = io.StringIO()
    console = Console(file=file, width=120, quiet=quiet)  # quiet: a process other than the first
    with LiveView(console, time.monotonic(), shown=False) as view:
        job(view, 0.4)
    assert file.getvalue().count("\n") == (0 if quiet else 1)


def test_what_an_earlier_call_made_is_not_taken_for_speed() -> None:
    clock = Clock([Part("a", "training", 10.0), Part("b", "training", 10.0)])
    clock.begin("a", "training", 0.0)
    clock.at(0.8, fresh=True)  # goes on from there
    clock.at(0.95)
    assert clock.left(15.0) == pytest.approx(5.0 + 100.0)  # 0.15 of a part in 15 s
    clock.begin("b", "training", 20.0)
    assert clock.left(20.0) == pytest.approx(100.0)
    clock.end(130.0, highest=7)
    assert clock.costs == {"b": {"training": (110.0, 7)}}  # of "a" not all was seen
    assert (clock.left(130.0), clock.share()) == (0.0, 1.0)


@pytest.mark.parametrize(
    "config", [PairsConfig(), BenchConfig(), TrainConfig(methods=tuple(METHODS), shots=5)]
)
def test_every_part_of_a_job_has_a_size_and_a_place(config: TrainConfig) -> None:
    methods = in_order(config)
    found = parts(config, methods, [0, 1, 5] if isinstance(config, PairsConfig) else [None, None])
    assert all(part.size > 0 for part in found)
    assert len({(part.stage, part.kind) for part in found}) == len(found)
    assert {part.stage for part in found} >= set(config.methods) | {"sr", "sr-continued"}
    more = parts(replace(config, steps=2 * config.steps), methods, [None, None])
    assert sum(part.size for part in more) > sum(part.size for part in parts(config, methods, [None, None]))


def test_a_job_that_goes_on_says_what_is_done(tmp_path: Path) -> None:
    (tmp_path / "sr").mkdir()
    (tmp_path / "sr" / "done.safetensors").touch()
    for name, step in (("metapeft", 30), ("maml", 25), ("anil", 0)):
        with Run.create(tmp_path / name, {"fit": {"steps": 30}}) as run:
            run.save("latest", {}, {"step": step})
    methods = {
        name: METHODS[name] for name in ("metapeft", "maml", "anil", "boil", "centroids", "other-task")
    }
    assert made_before(tmp_path, methods) == {"sr": "", "metapeft": "", "maml": " up to step 25 of 30"}
