"""The two sweeps of the shallow net, as data; importing it loads torch, which no other figure needs."""

from __future__ import annotations

from dataclasses import replace

import torch

from theory.figures.rows import Row
from theory.models.problems import LinearSetting
from theory.models.shallow import Point, Schedule, run

SWEEPS: dict[str, tuple[int, ...]] = {"shallow-d": (5, 10, 20), "shallow-T": (2, 3, 5, 10)}
BASE = LinearSetting(d=10, T=3, N=1000, n=100, k=1, sigma=0.1)


def settings(sweep: str) -> dict[int, LinearSetting]:
    """The settings of one sweep, by value.

    Example:
        >>> [setting.d for setting in settings("shallow-d").values()]
        [5, 10, 20]
    """
    name = sweep.removeprefix("shallow-")
    return {value: replace(BASE, **{name: value}) for value in SWEEPS[sweep]}


def one_setting(setting: LinearSetting, schedule: Schedule, seed: int) -> list[Point]:
    """`run` on one thread, for a process of its own: nets this small gain nothing from a second."""
    torch.set_num_threads(1)
    return run(setting, schedule, seed)


def all_settings() -> list[LinearSetting]:
    """The distinct settings of both sweeps."""
    return list(dict.fromkeys(setting for sweep in SWEEPS for setting in settings(sweep).values()))


def rows(results: dict[LinearSetting, list[Point]]) -> dict[str, list[Row]]:
    """The rows of both sweeps from the results by setting; the two share their default setting.

    `loss` is the mean squared error to clean targets on the n test inputs, `population` on fresh inputs.
    """
    return {
        sweep: [
            Row(sweep, value, *point)
            for value, setting in settings(sweep).items()
            for point in results[setting]
        ]
        for sweep in SWEEPS
    }
