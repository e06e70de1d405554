"""What comes out of each method of the main job, and what of it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metapeft.experiments.compared_methods import METHODS
from metapeft.experiments.results import Cell, Interval, Row
from metapeft.learner.learner import Learner
from metapeft.training.evaluation import Evaluation, compare


@dataclass
class Outcome:
    """One method: the learner as training left it, and how that came about.

    Attributes:
        chosen, log, ranks: as `Row` has them. evaluations: column -> on the test episodes; only rank 0 has them.
    """

    learner: Learner
    chosen: dict[str, Any]
    log: list[dict[str, Any]] = field(default_factory=list)
    ranks: dict[str, dict[str, int]] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Numbers that a task has of its own: adapted or generated factors (a head's come on top)."""
        learner = self.learner
        starts = learner.model.factors()
        names = set(learner.adapted) | (set(learner.seeds) if learner.generator is not None else set())
        return sum(starts[name].numel() for name in names)

    def row(self, name: str) -> Row:
        """What the results keep of it."""
        columns = {
            column: Cell(
                accuracy=found.accuracy,
                ci95=found.ci95,
                diverged=found.diverged,
                protocol=None if found.protocol is None else found.protocol.as_dict(),
                values=[round(value, 4) for value in found.values.tolist()],
            )
            for column, found in self.evaluations.items()
        }
        return Row(METHODS[name].about, self.parameters, self.chosen, self.ranks, self.log, columns)


def differences(outcomes: Mapping[str, Outcome], reference: str) -> dict[str, dict[str, Interval]]:
    """Paired differences of every method to one of them, by method and column."""
    base = outcomes[reference].evaluations
    found: dict[str, dict[str, Interval]] = {}
    for name, outcome in outcomes.items():
        if name != reference:
            own = outcome.evaluations
            pairs = {column: compare(own[column], base[column]) for column in own if column in base}
            found[name] = {column: (pair.difference, pair.ci95) for column, pair in pairs.items()}
    return found
