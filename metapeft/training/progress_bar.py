"""The live line of a training run: loss, accuracy, tasks a second, time left."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich import progress as bars


class Progress:
    """A rich progress bar over outer steps; silent where it is not wanted or there is no terminal.

    Args:
        show: whether to show anything.
        total: outer steps in all. done: those already made. tasks: a step.
    """

    def __init__(self, show: bool, total: int, done: int, tasks: int) -> None:
        self.tasks, self.done, self.begun, self.count = tasks, done, time.monotonic(), 0
        self.bar = bars.Progress(
            bars.TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            bars.BarColumn(),
            bars.TextColumn("{task.fields[numbers]}"),
            bars.TextColumn("{task.fields[rate]:.1f} tasks/s"),
            bars.TimeRemainingColumn(),
            disable=not show,
            transient=True,
        )
        self.id = self.bar.add_task("", total=total, completed=done, numbers="", rate=0.0)

    def advance(self, row: dict[str, Any]) -> None:
        """One step more; `row` is what was logged, `{}` for nothing."""
        self.count += 1
        fields: dict[str, Any] = {}
        if row:
            shown = [
                ("loss", "loss {:.3f}"),
                ("accuracy", "acc {:.3f}"),
                ("validation_accuracy", "val {:.3f}"),
            ]
            fields["numbers"] = "  ".join(text.format(row[name]) for name, text in shown if name in row)
            fields["rate"] = self.count * self.tasks / max(time.monotonic() - self.begun, 1e-9)
        self.bar.update(self.id, advance=1, **fields)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
