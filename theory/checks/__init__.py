"""The theorem checks: each draws random instances, measures a quantity, and holds it to a bound.

Checks take what the statement claims or supposes (a rank, a constant, a number of tasks, a common covariance) as
an argument whose default is right, so that a test can pass a wrong one and see the check fail.
"""

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


def all_checks() -> list[CheckFunction]:
    """Every check, in the order of the theorems; importing them is left until they are asked for."""
    from theory.checks import beyond, metalearners, minima, rates, residual, surface

    modules = (residual, minima, surface, metalearners, rates, beyond)
    return [check for module in modules for check in module.CHECKS]
