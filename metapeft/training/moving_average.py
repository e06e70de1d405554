"""An exponential moving average of what is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from metapeft.training.task import Task


class MovingAverage:
    """`m_k = d_k m_(k-1) + (1 - d_k) s_k` of every tensor of a task's state, buffers included.

    `d_k = min(decay, (1 + k) / (10 + k))`, so that the start is forgotten within the first steps.
    Source: Polyak & Juditsky 1992 for averages of iterates; the ramp is that of TensorFlow's ExponentialMovingAverage.

    Args:
        decay: between 0 and 1, such as 0.999: the average is over about `1 / (1 - decay)` steps.
        state: where it begins.

    Example:
        >>> average = MovingAverage(0.5, {"w": torch.tensor([4.0])})
        >>> average.add({"w": torch.tensor([0.0])}, step=90)
        >>> average.state
        {'w': tensor([2.])}
    """

    def __init__(self, decay: float, state: Mapping[str, Tensor]) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in state.items()}

    @torch.no_grad()
    def add(self, state: Mapping[str, Tensor], step: int) -> None:
        """Take in the state after outer step `step`; whole numbers are taken as they are."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in state.items():
            own = self.state[name]
            if own.is_floating_point():
                own.lerp_(value.to(own), 1 - decay)
            else:
                own.copy_(value)

    @contextmanager
    def used(self, task: Task) -> Iterator[None]:
        """The task with the average in the place of its state, until the end of a `with` block."""
        before = task.state()
        task.load_state(self.state)
        try:
            yield
        finally:
            task.load_state(before)
