"""Means of the numbers of outer steps, from one logged row to the next."""

from __future__ import annotations

import math
from typing import Any

_COUNTS = ("diverged",)  # of which the sum is told


class Averages:
    """Means of numbers since they were last read, and sums of counts.

    Attributes:
        sums: name -> sum, and `"count"`; checkpoints hold them.

    Example:
        >>> means = Averages()
        >>> means.add({"loss": 1.0}), means.add({"loss": 2.0}), means.read()
        (None, None, {'loss': 1.5})
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}

    def add(self, row: dict[str, float]) -> None:
        """The numbers of one step."""
        for name, number in {**row, "count": 1.0}.items():
            self.sums[name] = self.sums.get(name, 0.0) + number

    def read(self) -> dict[str, Any]:
        """The means; what follows starts anew."""
        count = self.sums.pop("count", math.nan)
        row = {name: total if name in _COUNTS else total / count for name, total in self.sums.items()}
        self.sums = {}
        return row
