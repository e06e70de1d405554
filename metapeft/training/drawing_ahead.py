"""The episodes of the next outer step, drawn while the current one is worked on."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from metapeft.base.machine.memory import is_out_of_memory, refuse_too_little
from metapeft.base.machine.processes import Share

_log = logging.getLogger("metapeft")


def drawn_ahead(
    episodes: Any, share: Callable[[int], Share], first: int, end: int
) -> Generator[Any, None, None]:
    """The batches of the outer steps `first .. end - 1`, each drawn by a thread before it is asked for.

    Args:
        episodes: anything with `.batch(start, count)`; None for no data, then every batch is None.
        share: step -> the episodes of it that this process takes.

    Raises:
        MemoryError: too little for the episodes of one step alone.

    Example:
        >>> class Numbers:
        ...     def batch(self, start, count):
        ...         return list(range(start, start + count))
        >>> list(drawn_ahead(Numbers(), lambda step: Share(3 * step, 3, 1.0), 1, 3))
        [[3, 4, 5], [6, 7, 8]]
    """

    def draw(step: int) -> Any:
        own = share(step)
        return None if episodes is None else episodes.batch(own.start, own.count)

    if first >= end:
        return
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(draw, first)
        for step in range(first, end):
            batch = _result(upcoming, draw, step)
            if step + 1 < end:
                upcoming = thread.submit(draw, step + 1)
            yield batch


def _result(upcoming: Future[Any], draw: Callable[[int], Any], step: int) -> Any:
    """The batch of a step; where memory was too little beside the last step, it is drawn now, alone."""
    try:
        return upcoming.result()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    where = f"outer step {step + 1}"
    _log.warning("%s: out of memory where its episodes were drawn; they are drawn again", where)
    gc.collect()
    try:
        return draw(step)
    except (MemoryError, RuntimeError) as error:
        refuse_too_little(
            error, f"{where}: out of memory where its episodes are drawn: take fewer tasks_per_step"
        )
        raise
