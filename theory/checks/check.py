"""One measured statement, and what a check is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

BEYOND = 0  # the number under which statements that are not the paper's are listed


@dataclass(frozen=True)
class Check:
    """One measured statement.

    Args:
        theorem: its number in P3; 0 for what goes beyond the paper.
        statement: in words, with its sizes.
        instances: random instances measured.
        measured: the worst of them, or the statistic that the statement is about.
        bound: what `measured` is held to.
        relation: `"<="` or `">="`.
        detail: further numbers worth keeping, such as a spectrum.

    Example:
        >>> Check(1, "ranks agree", 10, measured=2e-16, bound=1e-10).passed
        True
    """

    theorem: int
    statement: str
    instances: int
    measured: float
    bound: float
    relation: str = "<="
    detail: dict[str, list[float]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the measured value keeps to its bound; NaN does not."""
        return bool(self.measured <= self.bound if self.relation == "<=" else self.measured >= self.bound)


CheckFunction = Callable[[np.random.Generator], list[Check]]
