"""What comes out of the main job: evaluations, choices and logs by method, and all of it as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metapeft.experiments.compared_methods import METHODS
from metapeft.experiments.config import TrainConfig
from metapeft.learner.learner import Learner
from metapeft.training.evaluation import Comparison, Evaluation, compare


@dataclass
class Row:
    """What came out for one method: evaluations by column, choices, and the training log."""

    name: str
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    learner: Learner | None = None
    parameters: int = 0
    ranks: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass
class Results:
    """What came out of the main job."""

    config: TrainConfig
    rows: dict[str, Row]
    sr_log: list[dict[str, Any]]
    samplers: dict[str, Any]

    def differences(self, reference: str) -> dict[str, dict[str, Comparison]]:
        """Paired differences of every method against one of them, by method and column."""
        if reference not in self.rows:
            return {}
        base = self.rows[reference].evaluations
        return {
            name: {column: compare(found, base[column]) for column, found in row.evaluations.items()}
            for name, row in self.rows.items()
            if name != reference
        }


def adapted_parameters(learner: Learner) -> int:
    """Numbers that a task has of its own: adapted or generated factors (a head's come on top)."""
    starts = learner.model.factors()
    names = set(learner.adapted) | (set(learner.seeds) if learner.generator is not None else set())
    return sum(starts[name].numel() for name in names)


def as_json(results: Results) -> dict[str, Any]:
    """Everything that a table needs, as JSON can say it."""
    return {
        "config": {
            name: str(v) if isinstance(v, Path) else v
            for name, v in dataclasses.asdict(results.config).items()
        },
        "rows": {
            name: {
                "about": METHODS[name].about,
                "parameters": row.parameters,
                "chosen": row.chosen,
                "ranks": row.ranks,
                "log": row.log,
                "columns": {
                    column: {
                        "accuracy": found.accuracy,
                        "ci95": found.ci95,
                        "diverged": found.diverged,
                        "protocol": None if found.protocol is None else found.protocol.as_dict(),
                        "values": [round(value, 4) for value in found.values.tolist()],
                    }
                    for column, found in row.evaluations.items()
                },
            }
            for name, row in results.rows.items()
        },
        "differences": {
            reference: {
                name: {column: [found.difference, found.ci95] for column, found in columns.items()}
                for name, columns in results.differences(reference).items()
            }
            for reference in ("sr+lora", "centroids")
            if reference in results.rows
        },
        "sr_log": results.sr_log,
    }
