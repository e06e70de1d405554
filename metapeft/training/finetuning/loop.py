"""The loop of a fine-tuning: steps of all adapters, validation, rows of the log, checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metapeft.base.machine.ctrl_c import Interruption
from metapeft.base.machine.freed_memory import freed_memory_kept
from metapeft.training.finetuning.adapter import Adapter
from metapeft.training.finetuning.joint_step import JointStep
from metapeft.training.progress_bar import Progress
from metapeft.training.runs.run import Run


class Loop:
    """T adapters from their first step to their last.

    Args:
        step: what makes a step of all that are active. adapters: in order.
    """

    def __init__(self, step: JointStep, adapters: Sequence[Adapter]) -> None:
        self.joint, self.adapters = step, adapters

    @property
    def steps(self) -> int:
        """The steps made: of the adapter that made the most."""
        return max(adapter.step for adapter in self.adapters)

    def run(self, folder: Run | None, stop_at: int | None, progress: bool) -> None:
        """Go on to the end, or to `stop_at`.

        Args:
            folder: the run folder; None to keep nothing.

        Raises:
            KeyboardInterrupt: after Ctrl-C, when the step that was running is finished and kept.
            SystemExit: after SIGTERM, likewise.
        """
        settings = self.joint.settings
        last = max(adapter.total for adapter in self.adapters)
        end = last if stop_at is None else min(stop_at, last)
        bar = Progress(progress, last, self.steps, len(self.adapters))
        with freed_memory_kept(), bar, Interruption() as interruption:
            while self.steps < end and (active := [one for one in self.adapters if one.active]):
                self.joint(active)
                row: dict[str, Any] = {}
                for adapter in active:
                    row = self._logged(adapter, folder) or row
                done = self.steps >= end or not any(adapter.active for adapter in self.adapters)
                if folder is not None and (
                    done or interruption.asked or self.steps % settings.checkpoint_every == 0
                ):
                    self.save(folder)
                bar.advance(row)
                if interruption.asked and not done:
                    kept = "nothing was kept (no run_dir=)" if folder is None else "resume=True goes on"
                    interruption.stop(f"stopped after step {self.steps} of {last}; {kept}")

    def _logged(self, adapter: Adapter, folder: Run | None) -> dict[str, Any]:
        """Validate where it is time to, and note the row of this step; {} for none."""
        row: dict[str, Any] = {}
        due = adapter.step % self.joint.settings.log_every == 0 or adapter.step == adapter.total
        if adapter.validates and adapter.validation is not None:
            found = self.joint.evaluated(adapter.factors, adapter.validation)
            row = {f"validation_{name}": value for name, value in found.items()}
            adapter.judge(row)
        if due or row:
            row = {**adapter.averages.read(), **row}
            adapter.log.append({"step": adapter.step, **row})
            if folder is not None:
                several = {"adapter": self.adapters.index(adapter)} if len(self.adapters) > 1 else {}
                folder.log(adapter.step, **several, **row)
        return row

    def save(self, folder: Run) -> None:
        """Keep everything that the rest of the run depends on."""
        folder.save(
            "latest", {"adapters": [adapter.state() for adapter in self.adapters]}, {"step": self.steps}
        )

    def restore(self, folder: Run) -> None:
        """Go on where the latest checkpoint was written, with the log up to there."""
        for adapter, tree in zip(self.adapters, folder.load("latest")[0]["adapters"]):
            adapter.restore(tree)
        folder.truncate(self.steps)
        for row in folder.metrics():
            adapter = self.adapters[row.pop("adapter", 0)]
            adapter.log.append(row)
