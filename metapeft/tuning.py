"""Choose settings on validation classes: every method gets the same budget of trials."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from metapeft.errors import NumericalError
from metapeft.evaluation import evaluate
from metapeft.learner import Learner


@dataclass(frozen=True)
class Tuned:
    """The best of the tried settings, its validation accuracy (minus the loss in regression), and all trials."""

    settings: dict[str, Any]
    score: float
    trials: list[dict[str, Any]]


def grid(**choices: Iterable[Any]) -> list[dict[str, Any]]:
    """All combinations, in order.

    Example:
        >>> grid(lr=[0.1, 1.0], steps=[5])
        [{'lr': 0.1, 'steps': 5}, {'lr': 1.0, 'steps': 5}]
    """
    return [dict(zip(choices, values)) for values in itertools.product(*choices.values())]


def tune(
    make: Callable[..., Learner], trials: Iterable[Mapping[str, Any]], validation: Any, episodes: int = 100
) -> Tuned:
    """Evaluate `make(**settings)` for every trial on the same validation episodes; the first best one wins.

    A trial whose adaptation diverges scores minus infinity.

    Args:
        make: settings -> learner. trials: settings to try. validation: a sampler on validation classes.
        episodes: how many.

    Raises:
        ValueError: no trials.
    """
    rows: list[dict[str, Any]] = []
    for trial in trials:
        try:
            result = evaluate(make(**trial), validation, episodes)
            score = result.accuracy if result.has_accuracy else -result.loss
        except NumericalError:
            score = float("-inf")
        rows.append({**trial, "score": score})
    if not rows:
        raise ValueError("trials is empty: there is nothing to choose from")
    best = max(rows, key=lambda row: row["score"])
    settings = {name: value for name, value in best.items() if name != "score"}
    return Tuned(settings, best["score"], rows)
