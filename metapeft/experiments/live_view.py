"""Where a main job is: the stage, how far it has come, the time left over all. Loads no torch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from metapeft.experiments.work import Clock, Part

SILENCE = 2.5  # seconds after which a file is told where the job is
RARER = 40  # later on, after this part of the time that went by, for the hours of a cluster's log


class LiveView:
    """Lines for what is done, and in a terminal two that move; in a file a line wherever it would be silent.

    Args:
        console: where to. begun: when the job began, as `time.monotonic` says it. shown: whether anything moves.

    Attributes:
        clock: of the job. measure: says the bytes that were held at most since it was last asked, if it knows.

    Example:
        >>> with LiveView(Console(quiet=True), time.monotonic()) as view:
        ...     view.plan([Part("sr", "retraining", 1.0)])
        ...     view.begin("sr", "retraining", "standard retraining")
        ...     view.tell(1, 2, "loss 0.5")
        ...     view.state()[:42]
        'standard retraining, step 1 of 2, loss 0.5'
    """

    def __init__(self, console: Console, begun: float, shown: bool = True) -> None:
        self.console, self.begun, self.shown = console, begun, shown and not console.quiet
        self.clock = Clock([])
        self.measure: Callable[[], int | None] = lambda: None
        self.stage, self.doing, self.count = "", "starting", ""
        self._fresh = True
        self._last = time.monotonic()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._spinner = Spinner("dots")
        self._live = Live(self, console=console, transient=True, refresh_per_second=5)
        self._beat = threading.Thread(target=self._beats, daemon=True)

    def plan(self, parts: list[Part]) -> None:
        """What the job will do."""
        self.clock = Clock(parts)

    def say(self, line: str) -> None:
        """A line that stays."""
        now = time.monotonic()
        with self._lock:
            self.console.print(f"[{now - self.begun:5.0f} s] {line}", markup=False, highlight=False)
            self._last = now

    def enter(self, stage: str, about: str) -> None:
        """The next stage: said, and named in all that follows."""
        self.say(f"{stage}: {about}")
        self.stage, self.doing, self.count = stage, "", ""

    def begin(self, stage: str, kind: str, doing: str) -> None:
        """The next part of the plan; `doing` says what it is."""
        self.clock.begin(stage, kind, time.monotonic(), self.measure())
        self.doing, self.count, self._fresh = doing, "", True

    def end(self) -> None:
        """The last part is done."""
        self.clock.end(time.monotonic(), self.measure())

    def now(self, doing: str) -> None:
        """Something else within the part."""
        self.doing, self.count = doing, ""

    def tell(self, made: int, total: int, numbers: str) -> None:
        """The step that the part has come to, as `BilevelTrainer` tells it by `progress=`."""
        self.clock.at(made / max(total, 1), self._fresh)
        self._fresh = False
        self.count = f", step {made} of {total}" + (f", {numbers.replace('  ', ', ')}" if numbers else "")

    def of(self, made: int, total: int) -> None:
        """How many of the trials or columns of the part are done."""
        self.clock.at(made / total)

    def state(self) -> str:
        """One line about now."""
        left = self.clock.left(time.monotonic())
        return self._where() + (f"; about {span(left)} left of all" if left else "")

    def _where(self) -> str:
        return ": ".join(filter(None, [self.stage, f"{self.doing}{self.count}"]))

    def _beats(self) -> None:
        while not self._ended.wait(0.25):
            now = time.monotonic()
            if now - self._last >= max(SILENCE, (now - self.begun) / RARER):
                self.say(f"  {self.state()}")

    def __rich__(self) -> Any:
        now = time.monotonic()
        left, gone = self.clock.left(now), now - self.begun
        first, second = Table.grid(padding=(0, 1)), Table.grid(padding=(0, 1))
        first.add_row(self._spinner, Text(self._where(), no_wrap=True, overflow="ellipsis"))
        rest = f", about {span(left)} left" if left else ""
        bar = ProgressBar(total=1.0, completed=self.clock.share(), width=24)
        second.add_row(bar, Text(f"{span(gone)} gone{rest}", no_wrap=True, overflow="ellipsis"))
        return Group(first, second)

    def __enter__(self) -> LiveView:
        if self.shown and self.console.is_terminal:
            self._live.start()
        elif self.shown:
            self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._live.stop()
        if self._beat.is_alive():
            self._beat.join()


def span(seconds: float) -> str:
    """A time in words, no finer than it is known.

    Example:
        >>> span(4.2), span(103), span(3 * 3600 + 200)
        ('4 s', '1 min 40 s', '3 h 3 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60 // 10 * 10} s"
    return f"{whole // 60} min" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
