"""One process of a small run, as a module that torchrun can start: folder, kind, and where rank 1 dies."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import metapeft as mp
from metapeft.base.machine.processes import _leave, restarts
from metapeft.base.state import digest
from tests.training.helpers import PLAN, sampler, trainer

STEPS, TASKS = 6, 5  # five tasks on two processes: three and two


class Dying:
    """Episodes of which the drawing of one kills its process, unless it was started again."""

    def __init__(self, at: int) -> None:
        self.at = at

    def settings(self) -> dict[str, Any]:
        return {"dying": TASKS}

    def batch(self, start: int, count: int) -> Any:
        if start <= self.at < start + count and not restarts()[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return sampler().batch(start, count)


def train(folder: Path, kind: str, death: int = -1, **options: Any) -> mp.BilevelTrainer:
    """Start the run or go on with it; float64 and SGD, so that other sums do not become other steps."""
    chosen = {
        "tasks_per_step": TASKS,
        "optimizer": torch.optim.SGD,
        "lr": 0.1,
        "dtype": torch.float64,
        **options,
    }
    own = trainer(kind=kind, **chosen)
    if own.has_run(folder):
        own.resume(folder, Dying(death), sampler("val"))
    else:
        own.fit(Dying(death), STEPS, sampler("val"), folder, **PLAN)
    return own


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, kinds, death = Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3])
    for kind in kinds:
        found = train(folder / kind, kind, death)
        (folder / f"{kind}.{found.processes.rank}").write_text(digest(found.learner.state()))
    _leave()
    threads = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    (folder / f"threads.{found.processes.rank}").write_text("".join(sorted(threads)))
