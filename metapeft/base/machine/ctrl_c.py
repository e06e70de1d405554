"""Ctrl-C, or a scheduler's SIGTERM, as a request: the step that is running is finished, and what is kept is whole."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

_log = logging.getLogger("metapeft")


class Interruption:
    """While it is entered, a first Ctrl-C or SIGTERM only sets `.asked`; a second one stops at once.

    Outside the main thread, where signals do not arrive, it does nothing. A handler of SIGTERM that others have set, as
    submitit has in its jobs, stays.

    Example:
        >>> with Interruption() as interruption:
        ...     signal.raise_signal(signal.SIGINT)
        ...     interruption.asked
        True
    """

    def __init__(self) -> None:
        self.asked = False
        self.by: int | None = None
        self._before: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self.stop("stopped at once")
        self.asked, self.by = True, number

    def stop(self, said: str) -> NoReturn:
        """End as asked: KeyboardInterrupt after Ctrl-C, SystemExit with SIGTERM's exit code after that."""
        if self.by == signal.SIGTERM:
            _log.warning("%s", said)
            raise SystemExit(128 + signal.SIGTERM)  # as of a process that the signal ended itself
        raise KeyboardInterrupt(said)

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
