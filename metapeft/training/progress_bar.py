"""The live line of a training run: loss, accuracy, tasks or images a second, time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich import progress as bars

Told = Callable[[int, int, str], None]  # the steps made, those in all, and the numbers of now
_NUMBERS = [("loss", "loss {:.3f}"), ("accuracy", "acc {:.3f}"), ("validation_accuracy", "val {:.3f}")]


class Progress:
    """A rich progress bar over outer steps; silent where it is not wanted or there is no terminal.

    Args:
        show: whether to show anything; or who shows it instead, and is told of each step.
        total: outer steps in all. done: those already made. counted: of which a step has so many, in words.
    """

    def __init__(self, show: bool | Told, total: int, done: int, count: int, counted: str = "tasks") -> None:
        self.total, self.done, self.count, self.counted = total, done, count, counted
        self.begun, self.made, self.numbers = time.monotonic(), 0, ""
        self.told = show if callable(show) else None
        self.bar = bars.Progress(
            bars.TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            bars.BarColumn(),
            bars.TextColumn("{task.fields[numbers]}"),
            bars.TimeRemainingColumn(),
            bars.SpinnerColumn(),  # moves while a step, or a validation, takes long
            disable=not show or self.told is not None,
            transient=True,
        )
        if not (self.bar.console.is_terminal or self.bar.console.is_jupyter):
            self.bar.disable = True  # else it leaves an empty line in a file
        self.id = self.bar.add_task("", total=total, completed=done, numbers="")

    def advance(self, row: dict[str, Any]) -> None:
        """One step more; `row` is what was logged, `{}` for nothing."""
        self.made += 1
        if row:
            self.numbers = "  ".join(text.format(row[name]) for name, text in _NUMBERS if name in row)
        rate = self.made * self.count / max(time.monotonic() - self.begun, 1e-9)
        said = "  ".join(filter(None, [self.numbers, f"{rate:.1f} {self.counted}/s"]))
        self.bar.update(self.id, advance=1, numbers=said)
        if self.told is not None:
            self.told(self.done + self.made, self.total, said)

    def __enter__(self) -> Progress:
        self.bar.start()
        if self.told is not None:
            self.told(self.done, self.total, "")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
