"""The outer loop of one run: batches in, steps, rows, validation and checkpoints out."""

from __future__ import annotations

import gc
import logging
import math
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from metapeft.base.machine.ctrl_c import Interruption
from metapeft.base.machine.freed_memory import freed_memory_kept
from metapeft.base.machine.memory import is_out_of_memory, refuse_too_little
from metapeft.base.machine.processes import Processes
from metapeft.training.plan import Plan
from metapeft.training.progress_bar import Progress
from metapeft.training.runs.run import Run
from metapeft.training.tensorboard import Board
from metapeft.updates.layers.compiled.switch import compiled_used, in_use

if TYPE_CHECKING:
    from metapeft.training.trainer import BilevelTrainer

_log = logging.getLogger("metapeft")


class Averages:
    """Means of numbers since they were last read.

    Example:
        >>> means = Averages()
        >>> means.add({"loss": 1.0}), means.add({"loss": 2.0}), means.read()
        (None, None, {'loss': 1.5})
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}

    def add(self, row: dict[str, float]) -> None:
        for name, number in {**row, "count": 1.0}.items():
            self.sums[name] = self.sums.get(name, 0.0) + number

    def read(self) -> dict[str, Any]:
        """The means; what follows starts anew."""
        count = self.sums.pop("count", math.nan)
        row = {name: total / count for name, total in self.sums.items()}
        self.sums = {}
        return row


def run_loop(
    trainer: BilevelTrainer,
    episodes: Any,
    validation: Any,
    run: Run | None,
    plan: Plan,
    log: list[dict[str, Any]],
    stop_at: int | None,
    tensorboard: bool = False,
) -> list[dict[str, Any]]:
    """Go on from the trainer's step to the end or to `stop_at`; returns the log with the rows added."""
    end = trainer.steps if stop_at is None else min(stop_at, trainer.steps)
    processes = trainer.processes
    best = None if run is None or trainer.best is None else run.load("best")[0]
    bar = Progress(trainer.show and processes.main, trainer.steps, trainer.step, trainer.tasks_per_step)
    board = Board(run.folder if run is not None and tensorboard and processes.main else None, trainer.step)

    def validated() -> dict[str, float]:
        nonlocal best
        score, found = trainer.validate(validation, plan.validation_episodes)
        if trainer.best is None or score > trainer.best:
            trainer.best, best = score, trainer.learner.state()
            if run is not None:
                run.save("best", best, {"step": trainer.step})
        return found

    def logged(row: dict[str, Any]) -> None:
        log.append({"step": trainer.step, **row})
        board.add(trainer.step, row)
        if run is not None:
            run.log(trainer.step, **row)

    processes.wait()  # until all have read what rank 0 is about to replace
    settled = freed_memory_kept(), compiled_used(trainer.compiled)
    with settled[0], settled[1], ThreadPoolExecutor(1) as pool, bar, board, Interruption() as interruption:
        if plan.validate_start and trainer.step == 0 and trainer.best is None:
            found = validated()
            if not log:  # a run that was killed right here has the row already
                logged(found)
            if run is not None:
                trainer.save(run)
        upcoming = _fetch(trainer, pool, episodes, trainer.step) if trainer.step < end else None
        while upcoming is not None:
            batch = _drawn(upcoming, trainer, episodes)
            upcoming = _fetch(trainer, pool, episodes, trainer.step + 1) if trainer.step + 1 < end else None
            trainer.outer_step(batch)
            last = trainer.step == trainer.steps
            row = trainer.averages.read() if last or trainer.step % plan.log_every == 0 else {}
            if validation is not None and (last or trainer.step % plan.validate_every == 0):
                row.update(validated())
            if row:
                logged(row)
            stopped = bool(processes.most(int(interruption.asked))) and not last
            due = stopped or upcoming is None or trainer.step % plan.checkpoint_every == 0
            if run is not None and (due or trainer.gradient.changed):
                trainer.save(run)
            bar.advance(row)
            if stopped:
                raise KeyboardInterrupt(plan.farewell(trainer.step, run))
    processes.wait()  # until what rank 0 wrote is there for all
    if best is not None and trainer.step == trainer.steps:
        trainer.learner.load_state(best)
    return log


def _drawn(upcoming: Future[Any], trainer: BilevelTrainer, episodes: Any) -> Any:
    """The batch of the next step; where memory was too little beside the last step, it is drawn now, alone.

    Raises:
        MemoryError: too little for that too.
    """
    try:
        return upcoming.result()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    where = f"outer step {trainer.step + 1}"
    _log.warning("%s: out of memory where its episodes were drawn; they are drawn again", where)
    gc.collect()
    share = trainer.share(trainer.step)
    try:
        return episodes.batch(share.start, share.count)
    except (MemoryError, RuntimeError) as error:
        refuse_too_little(
            error, f"{where}: out of memory where its episodes are drawn: take fewer tasks_per_step"
        )
        raise


def _fetch(trainer: BilevelTrainer, pool: ThreadPoolExecutor, episodes: Any, step: int) -> Future[Any]:
    """Draw this rank's part of the next batch while the current one is worked on."""
    if episodes is None:
        return pool.submit(lambda: None)
    share = trainer.share(step)
    return pool.submit(episodes.batch, share.start, share.count)


def note_other_processes(before: int, processes: Processes) -> None:
    """Say that a run goes on with another number of processes than its checkpoint was written by."""
    if processes.main and before != processes.count:
        _log.warning(
            "%d processes go on where %d stopped: the same means up to rounding, not the same bits",
            processes.count,
            before,
        )


def as_begun(compiled: bool, processes: Processes) -> bool:
    """Whether a run goes on with compiled kernels: as it was begun, for its bits; where that differs, it is said."""
    if processes.main and compiled != in_use():
        _log.warning(
            "this run was begun %s compiled kernels, and goes on so", "with" if compiled else "without"
        )
    return compiled
