"""Episodes of one kind alone, for models that are told it."""

from __future__ import annotations

from typing import Any

import numpy as np


class OfKind:
    """The episodes of one kind among those of a sampler, in their order."""

    def __init__(self, sampler: Any, kind: int, count: int) -> None:
        self.sampler, self.episodes = sampler, count
        numbers = np.arange(4 * count * len(sampler.kinds))
        self.numbers = numbers[sampler.kind_of(numbers) == kind][:count]

    def batch(self, start: int, count: int) -> Any:
        """As the sampler's."""
        return self.sampler.at(self.numbers[start : start + count])
