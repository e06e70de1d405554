"""How `mp.search_ranks` comes to its ranks: the settings of its methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from metapeft.base.arguments import number, whole
from metapeft.base.suggestions import did_you_mean
from metapeft.hypergradients.problem import resolve


@dataclass(frozen=True)
class FisherRanks:
    """Train once, score the singular terms, keep those of the largest scores.

    Args:
        examples: training examples that scores are measured on; None for all.
        kind: `"fisher"` or `"ablation"`, as `mp.scores` has it.

    Example:
        >>> FisherRanks(examples=0)
        Traceback (most recent call last):
        ValueError: examples=0: allowed is a whole number of at least 1
    """

    examples: int | None = None
    kind: str = "fisher"
    name: ClassVar[str] = "fisher"

    def __post_init__(self) -> None:
        _check_scores(self.examples, self.kind)


@dataclass(frozen=True)
class PruneRanks:
    """Train once; then, in stages, leave out the terms of the smallest scores and train on.

    Terms of a joint fit compensate one another: only training on shows which are missed. Without a budget, the
    smallest stage is chosen whose validation loss is within one standard error of the best one's; there are stages
    until three in a row are not, or no term is left.

    Args:
        keep: share of the terms that stay in a stage.
        refit: steps of a stage; None for a twentieth of the training's, at least 50. Where they are too few, every
            stage looks worse than the one before, and too many terms stay.
        examples, kind: as `FisherRanks` has them.

    Source: the rule of one standard error is that of Breiman et al. 1984 for trees.

    Example:
        >>> PruneRanks(keep=1.5)
        Traceback (most recent call last):
        ValueError: keep=1.5: allowed is a finite number above 0 and below 1
    """

    keep: float = 0.9
    refit: int | None = None
    examples: int | None = None
    kind: str = "fisher"
    name: ClassVar[str] = "prune"

    def __post_init__(self) -> None:
        number(0, 1, above=True, keep=self.keep)
        if self.refit is not None:
            whole(refit=self.refit)
        _check_scores(self.examples, self.kind)


@dataclass(frozen=True)
class AutoLoRARanks:
    """AutoLoRA: train the update on the training set and its selection variables, by hypergradient, on the validation.

    A step: the hypergradient of `L_val(D - lr grad_D L_tr(D, a), a)` moves the logits; the lower step is rolled back,
    and made again at the new logits. Ranks are `#{j : softmax_j >= 1/k}`, or by a budget where one is given.

    Args:
        hypergradient: `"unroll"` (exact), `"finite-difference"` (the paper's), `"autolora"` (that of its code), or
            any engine that reaches the selection variables.
        lr, betas: of Adam on the logits.

    Source: Zhang et al. 2024 (arXiv 2403.09113), section 3.3 and its code.

    Example:
        >>> AutoLoRARanks(lr=-1)
        Traceback (most recent call last):
        ValueError: lr=-1: allowed is a finite number of at least 0
    """

    hypergradient: Any = "finite-difference"
    lr: float = 3e-4
    betas: tuple[float, float] = (0.5, 0.999)
    name: ClassVar[str] = "autolora"

    def __post_init__(self) -> None:
        number(lr=self.lr)
        for beta in self.betas:
            number(0, 1, betas=beta)
        resolve(self.hypergradient)


Method = FisherRanks | PruneRanks | AutoLoRARanks
METHODS = {kind.name: kind for kind in (FisherRanks, PruneRanks, AutoLoRARanks)}


def resolved_method(method: str | Method) -> Method:
    """The settings that a name stands for, or what was given; raises ValueError for anything else.

    Example:
        >>> resolved_method("prune")
        PruneRanks(keep=0.9, refit=None, examples=None, kind='fisher')
    """
    if isinstance(method, FisherRanks | PruneRanks | AutoLoRARanks):
        return method
    if method not in METHODS:
        hint = did_you_mean(method, METHODS) if isinstance(method, str) else ""
        raise ValueError(f"method={method!r}: allowed are {', '.join(map(repr, METHODS))}{hint}")
    made: Method = METHODS[method]()
    return made


def _check_scores(examples: int | None, kind: str) -> None:
    if examples is not None:
        whole(examples=examples)
    if kind not in ("fisher", "ablation"):
        raise ValueError(f"kind={kind!r}: allowed are 'fisher' and 'ablation'")
