"""From selection variables or scores of terms to one whole rank a layer: the rules, and the controls of every table."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from metapeft.base.arguments import number, whole
from metapeft.updates.formats.scores import Scores
from metapeft.updates.formats.selection import Softmax

Weights = dict[str, list[float]]


def ranks(
    selection: Any,
    rule: str = "threshold",
    total: int | None = None,
    costs: Mapping[str, int] | None = None,
    updates: Mapping[str, Tensor] | None = None,
    noise: float | None = None,
    seed: int | None = None,
) -> dict[str, int]:
    """One rank a layer, from selection variables or from scores of terms, by the rules

    (`alpha = softmax(logits)` of a layer's `k` terms; with scores, a term's score stands in place of `k alpha`)

    - `"threshold"`: `#{j : alpha_j >= 1/k}`, AutoLoRA's; equal weights keep all k, and 0 is impossible.
    - `"total"`: the `total` terms of largest `k * alpha_j` over all layers (1 is a layer's average, which
      makes layers of different k comparable). The ranks sum to `total` exactly.
    - `"parameters"`: terms in the same order, each taken if it still fits into `total` parameters; a term of
      layer p takes `costs[p]`. Never more than `total`, and less by less than the cheapest term left out.
    - `"svd"`: `#{i : s_i > edge}` of the singular values of `updates[p]`, which need not be aligned with the
      terms. `edge = noise (sqrt(rows) + sqrt(columns))`, the largest singular value of a matrix of
      independent entries of deviation `noise`. At most k.
    - `"uniform"`: `total` spread evenly (what does not divide goes to the first layers).
    - `"shuffled"`: control; the ranks of `"total"` (without `total`: of `"threshold"`) dealt to other layers
      at random, among the assignments in which no layer gets more than its k.
    - `"random"`: control; as many terms as there, each drawn from all terms with equal probability.

    Ties go to the layer that has fewer terms so far, then to the earlier layer.

    Args:
        selection: parameter -> logits `(k,)`, keys with or without `"selection."`; or a learner; or `mp.scores(...)`,
            which have no threshold, and bring their `costs` along.
        rule: one of the above.
        total: budget of `"total"`, `"uniform"` (terms) and `"parameters"` (parameters); optional for the controls.
        costs: parameter -> parameters a term, for `"parameters"`; see `mp.costs`.
        updates: parameter -> trained update `(out, in, *kernel)`, for `"svd"`.
        noise: standard deviation of the noise in an entry of the updates, for `"svd"`.
        seed: of the controls, 0 unless given.

    Raises:
        ValueError: unknown rule, options that the rule does not have or lacks, a total out of range, logits
            that are not finite vectors.

    Source: AutoLoRA (arXiv 2403.09113), section 3.4, for `"threshold"`.

    Example:
        >>> logits = {"a": torch.tensor([2.0, 0.0, 0.0]), "b": torch.tensor([1.0, 1.0])}
        >>> ranks(logits), ranks(logits, "total", total=1), ranks(logits, "uniform", total=3)
        ({'a': 1, 'b': 2}, {'a': 1, 'b': 0}, {'a': 2, 'b': 1})
    """
    if rule not in _RULES:
        raise ValueError(f"rule={rule!r}: allowed are {', '.join(map(repr, _RULES))}")
    function, needed, optional = _RULES[rule]
    given = {"total": total, "costs": costs, "updates": updates, "noise": noise, "seed": seed}
    options = {name: value for name, value in given.items() if value is not None}
    if isinstance(selection, Scores):
        if rule == "threshold":
            raise ValueError(
                "rule='threshold' is about selection variables: for scores take 'total' or 'parameters'"
            )
        if total is None and rule in ("shuffled", "random"):
            raise ValueError(f"rule={rule!r} needs total= where it is given scores, which have no threshold")
        if rule == "parameters":
            options.setdefault("costs", selection.costs)
    for name in needed:
        if name not in options:
            raise ValueError(f"rule={rule!r} needs {name}=")
    for name in options:
        if name not in (*needed, *optional):
            raise ValueError(f"rule={rule!r} takes no {name}=")
    return function(_weights(selection), **options)


def _weights(selection: Any) -> Weights:
    """Every layer's weights, as `Softmax` gives them to the update; of scores, such that `k alpha` orders them."""
    if isinstance(selection, Scores):
        values = {name: value.detach().double() for name, value in selection.values.items()}
        if not all(value.isfinite().all() for value in values.values()):
            raise ValueError("selection=Scores: a score is not finite")
        largest = (
            max((float(value.abs().max()) for value in values.values() if value.numel()), default=0.0) or 1.0
        )
        return {name: (value / (largest * len(value))).tolist() for name, value in values.items()}
    logits = selection
    if hasattr(selection, "selected"):  # a learner
        logits = {name: selection.variables[f"selection.{name}"] for name in selection.selected}
        if not logits:
            raise ValueError(
                "selection=Learner: this one has no selection variables, make it with selection="
            )
    if not isinstance(logits, Mapping):
        raise ValueError(
            f"selection={type(selection).__name__}: allowed are {{parameter: logits}}, or a learner"
        )
    weights: Weights = {}
    for key, value in logits.items():
        name = key.removeprefix("selection.")
        if not isinstance(value, Tensor) or value.dim() != 1 or not value.isfinite().all():
            raise ValueError(f"selection[{key!r}]: allowed is a tensor (terms,) of finite logits")
        weights[name] = Softmax().weights(value.detach().double()).tolist()
    return weights


def _threshold(weights: Weights) -> dict[str, int]:
    # the slack is rounding only: k equal weights of 1/k must all count
    return {name: sum(a * len(own) >= 1.0 - 1e-12 for a in own) for name, own in weights.items()}


def _ordered(weights: Weights) -> list[str]:
    """The layer of every term, the term with the largest `k * alpha` first; ties as `ranks` says."""
    keys = []
    for layer, (name, own) in enumerate(weights.items()):
        for position, alpha in enumerate(sorted(own, reverse=True)):
            keys.append((-round(alpha * len(own), 12), position, layer, name))
    return [name for *_, name in sorted(keys)]


def _check_total(total: int, largest: int, unit: str) -> None:
    if isinstance(total, bool) or not isinstance(total, int) or not 0 <= total <= largest:
        raise ValueError(f"total={total!r}: allowed is a whole number of {unit} from 0 to {largest}")


def _total(weights: Weights, total: int) -> dict[str, int]:
    _check_total(total, sum(map(len, weights.values())), "terms")
    chosen = Counter(_ordered(weights)[:total])
    return {name: chosen[name] for name in weights}


def _parameters(weights: Weights, total: int, costs: Mapping[str, int]) -> dict[str, int]:
    if set(costs) != set(weights):
        odd = sorted(set(costs) ^ set(weights))
        raise ValueError(
            f"costs and selection disagree on {', '.join(odd[:5])}: one cost a layer, see mp.costs"
        )
    for name, cost in costs.items():
        if not cost > 0:
            raise ValueError(f"costs[{name!r}]={cost!r}: a term has at least one parameter")
    whole(0, total=total)
    result = dict.fromkeys(weights, 0)
    for name in _ordered(weights):
        if costs[name] <= total:
            total -= costs[name]
            result[name] += 1
    return result


def _svd(weights: Weights, updates: Mapping[str, Tensor], noise: float) -> dict[str, int]:
    number(noise=noise)
    missing = sorted(set(weights) - set(updates))
    if missing:
        raise ValueError(f"updates misses {', '.join(missing[:5])}: one trained update a layer")
    result = {}
    for name, own in weights.items():
        matrix = updates[name].detach().double().flatten(1)
        edge = max(noise * sum(math.sqrt(side) for side in matrix.shape), 1e-12 * float(matrix.norm()))
        result[name] = min(int((torch.linalg.svdvals(matrix) > edge).sum()), len(own))
    return result


def _uniform(weights: Weights, total: int) -> dict[str, int]:
    _check_total(total, sum(map(len, weights.values())), "terms")
    return _total({name: [1.0 / len(own)] * len(own) for name, own in weights.items()}, total)


def _chosen(weights: Weights, total: int | None) -> dict[str, int]:
    return _threshold(weights) if total is None else _total(weights, total)


def _shuffled(weights: Weights, total: int | None = None, seed: int = 0) -> dict[str, int]:
    generator = torch.Generator().manual_seed(seed)
    left = sorted(_chosen(weights, total).values())
    result = dict.fromkeys(weights, 0)
    # layers with the smallest k first: what they may take all later ones may, so all are equally likely
    for name in sorted(weights, key=lambda name: len(weights[name])):
        allowed = bisect.bisect_right(left, len(weights[name]))
        result[name] = left.pop(int(torch.randint(allowed, (), generator=generator)))
    return result


def _random(weights: Weights, total: int | None = None, seed: int = 0) -> dict[str, int]:
    terms = [name for name, own in weights.items() for _ in own]
    count = sum(_chosen(weights, total).values())
    order = torch.randperm(len(terms), generator=torch.Generator().manual_seed(seed))
    drawn = Counter(terms[i] for i in order[:count].tolist())
    return {name: drawn[name] for name in weights}


#: rule -> its function, the options that it needs, those that it may take
_RULES: dict[str, tuple[Callable[..., dict[str, int]], tuple[str, ...], tuple[str, ...]]] = {
    "threshold": (_threshold, (), ()),
    "total": (_total, ("total",), ()),
    "parameters": (_parameters, ("total", "costs"), ()),
    "svd": (_svd, ("updates", "noise"), ()),
    "uniform": (_uniform, ("total",), ()),
    "shuffled": (_shuffled, (), ("total", "seed")),
    "random": (_random, (), ("total", "seed")),
}
