"""Choose settings on validation classes: every method gets the same budget of trials."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from metapeft.base.errors import NumericalError
from metapeft.base.machine.memory import while_it_fits
from metapeft.heads.centroids import Prototypes
from metapeft.learner.learner import Learner
from metapeft.methods.recipes import centroids
from metapeft.training.center import fit_center
from metapeft.training.evaluation import device_of, evaluate

TASKS = 8  # in one forward


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
    """Evaluate `make(**settings)` for every trial on the same validation episodes; the best one wins.

    Where accuracies are equal the smaller loss decides. A trial whose adaptation diverges scores minus infinity.

    Args:
        make: settings -> learner. trials: settings to try. validation: a sampler on validation classes.
        episodes: how many.

    Raises:
        ValueError: no trials.
    """
    rows: list[dict[str, Any]] = []
    for trial in trials:
        score, loss = float("-inf"), float("inf")
        with contextlib.suppress(NumericalError):
            result = evaluate(make(**trial), validation, episodes)
            score, loss = (result.accuracy if result.has_accuracy else -result.loss), result.loss
        rows.append({**trial, "score": score, "loss": loss})
    if not rows:
        raise ValueError("trials is empty: there is nothing to choose from")
    best = max(rows, key=lambda row: (row["score"], -row["loss"]))
    settings = {name: value for name, value in best.items() if name not in ("score", "loss")}
    return Tuned(settings, best["score"], rows)


def inner_steps(
    learner: Learner, validation: Any, episodes: int, choices: Iterable[int]
) -> tuple[int, dict[int, float]]:
    """The number of inner steps with the best validation score (accuracy, or minus the loss), and all scores.

    Args:
        validation: a sampler on validation classes. episodes: how many. choices: to try; those under which
            adaptation diverges are left out.

    Raises:
        NumericalError: adaptation diverges under every one of them.
    """
    scores: dict[int, float] = {}
    for steps in choices:
        with contextlib.suppress(NumericalError):
            found = evaluate(learner, validation, episodes, steps=steps)
            scores[steps] = found.accuracy if found.has_accuracy else -found.loss
    if not scores:
        raise NumericalError(
            "adaptation diverges with every number of inner steps that was tried: lower the rates"
        )
    return max(scores, key=lambda steps: scores[steps]), scores


def calibrated_scale(
    body: nn.Module,
    validation: Any,
    episodes: int = 100,
    scales: Iterable[float] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    head: Prototypes | None = None,
    training: Any = None,
    **options: Any,
) -> float:
    """The scale of the nearest-centroid logits with the smallest validation loss, before anything adapts.

    Accuracy does not depend on it, but every gradient through those logits does. They are proportional to it, so
    all scales are tried on one forward.

    Args:
        body: a backbone. validation: a sampler on validation classes. episodes: how many. scales: to try.
        head: how features are read, whatever its scale; None: as they are, by squared distance.
        training: the data set that measures the centre of a head that reads one.
        options: of `mp.methods.centroids`, such as `preprocess`.

    Raises:
        ValueError: no scales; a head that reads a centre without `training=`.
    """
    tried = list(scales)
    if not tried:
        raise ValueError("scales is empty: there is nothing to choose from")
    head = replace(Prototypes() if head is None else head, scale=1.0)
    learner = centroids(body, head=head, **options)
    if head.reads_center and training is None:
        raise ValueError(f"training= is missing: head={head!r} reads the mean feature of the training images")
    if head.reads_center:
        fit_center(learner, training)

    def losses(tasks: int) -> Tensor:
        total = torch.zeros(len(tried), dtype=torch.float64)
        for start in range(0, episodes, tasks):
            batch = validation.batch(start, min(tasks, episodes - start))
            objectives = learner.objectives(batch, training=False)
            with torch.no_grad():
                logits = objectives.scored(*learner.solve(objectives))[1]
                for i, scale in enumerate(tried):
                    total[i] += objectives.loss_of(scale * logits).sum().cpu()
        return total

    total = while_it_fits(losses, min(TASKS, episodes), device_of(learner), "episodes")
    return tried[int(total.argmin())]
