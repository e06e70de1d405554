"""What all stages and methods of a main job share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from metapeft.base.machine import devices
from metapeft.base.machine.processes import Processes
from metapeft.experiments.config import TrainConfig
from metapeft.experiments.live_view import LiveView
from metapeft.experiments.samplers import Samplers


@dataclass(frozen=True)
class Job:
    """A main job in its folder.

    Attributes:
        config: the settings. samplers: the episodes.
        folder: a run folder that exists; every stage and method has a folder of its own in it.
        processes: this process among those that train together; only rank 0 evaluates and writes.
        view: what is told where the job is.
    """

    config: TrainConfig
    samplers: Samplers
    folder: Path
    processes: Processes
    view: LiveView

    @property
    def data(self) -> Any:
        """The training images."""
        return self.samplers.data["train"]

    @property
    def place(self) -> dict[str, Any]:
        """Device, dtype and autocast, as learners and `mp.pretrain` take them."""
        return devices.options(self.config.device, self.config.dtype, self.config.autocast)


@dataclass(frozen=True)
class Start:
    """A backbone that methods begin from, and the scale of nearest-centroid logits that suits it."""

    body: nn.Module
    scale: float
