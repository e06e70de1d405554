"""Ranks by pruning: leave out the terms of the smallest scores in stages, and train on in between."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from metapeft.training.rank_search.budget import Budget
from metapeft.training.rank_search.fitting import Fitting, cut, singular_terms, stage
from metapeft.training.rank_search.methods import PruneRanks
from metapeft.updates.formats.ranking import ranks as rounded
from metapeft.updates.formats.scores import Scores

PATIENCE = 3  # stages in a row that miss what was left out, after which no smaller one is tried
Terms = dict[str, list[int]]
Stage = tuple[Terms, dict[str, Tensor], Scores]


def pruned(
    fitting: Fitting, method: PruneRanks, budget: Budget, steps: int
) -> tuple[Stage, list[dict[str, Any]]]:
    """The stage that is chosen, and the curve of all.

    Args:
        steps: of the first training.
    """
    factors = singular_terms(fitting.model, fitting.fit("fit").factors)
    terms: Terms = {
        name: list(range(site.format.terms))
        for name, site in fitting.model.sites.items()
        if site.format.terms
    }
    refit = method.refit or max(50, steps // 20)
    stages: list[Stage] = []
    curve: list[dict[str, Any]] = []
    while True:
        scores = fitting.scored(factors, method.kind, method.examples)
        stages.append((terms, factors, scores))
        count = sum(map(len, terms.values()))
        curve.append(stage(fitting.validated(factors), count))
        fits = budget.total is not None and count <= budget.total
        fits |= budget.parameters is not None and spent(terms, scores) <= budget.parameters
        if fits or count == 0 or (not budget.given and given_up(curve)):
            break
        fewer = next_stage(scores, terms, min(count - 1, math.floor(method.keep * count)), budget)
        factors = cut(fitting.model, factors, fewer)
        if any(fewer.values()):
            factors = fitting.fit(f"stage-{len(stages)}", refit, factors).factors
        factors, terms = (
            singular_terms(fitting.model, factors),
            {n: list(range(len(v))) for n, v in fewer.items()},
        )
    return stages[-1 if budget.given else smallest(curve)], curve


def next_stage(scores: Scores, terms: Terms, count: int, budget: Budget) -> Terms:
    """The terms of the next stage: `count` of the largest scores, but no fewer than the budget asks for."""
    if budget.total is not None:
        count = max(count, budget.total)
    alive = Scores({name: value[: len(terms[name])] for name, value in scores.values.items()}, scores.costs)
    chosen = rounded(alive, "total", total=count)
    if budget.parameters is not None and cost(chosen, scores) <= budget.parameters:
        chosen = rounded(alive, "parameters", total=budget.parameters)
    return alive.kept(chosen)


def spent(terms: Terms, scores: Scores) -> int:
    """Parameters of the terms."""
    return cost({name: len(own) for name, own in terms.items()}, scores)


def cost(ranks: dict[str, int], scores: Scores) -> int:
    """Parameters of ranks.

    Example:
        >>> cost({"a": 2, "b": 1}, Scores({}, {"a": 10, "b": 3}))
        23
    """
    return sum(rank * scores.costs[name] for name, rank in ranks.items())


def within_error(row: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
    """Whether a stage's loss is within one standard error of the best one's."""
    return bool(row["loss"] <= best["loss"] + best["error"])


def given_up(curve: list[dict[str, Any]]) -> bool:
    """Whether the last `PATIENCE` stages are all worse than the best by more than its standard error.

    Example:
        >>> given_up([{"loss": loss, "error": 0.1} for loss in (1.0, 2.0, 3.0, 4.0)])
        True
    """
    best = min(curve, key=lambda row: float(row["loss"]))
    return len(curve) > PATIENCE and not any(within_error(row, best) for row in curve[-PATIENCE:])


def smallest(curve: list[dict[str, Any]]) -> int:
    """The last stage, which has the fewest terms, whose loss is within one standard error of the best one's.

    Example:
        >>> losses = [(9, 1.0, 0.1), (6, 0.9, 0.2), (3, 1.05, 0.1), (0, 2.0, 0.1)]
        >>> smallest([{"terms": t, "loss": l, "error": e} for t, l, e in losses])
        2
    """
    best = min(curve, key=lambda row: float(row["loss"]))
    return max(i for i, row in enumerate(curve) if within_error(row, best))
