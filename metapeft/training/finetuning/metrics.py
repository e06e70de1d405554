"""Metrics by name, from torchmetrics; a function of one's own is one too."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from metapeft.learner.labels import IGNORED

Metric = Callable[[Tensor, Tensor], Any]
FOLDER = "torchmetrics.functional"
#: of these less is better
LOSSES = ("loss", "perplexity")


def resolve_metrics(metrics: Sequence[str | Metric]) -> dict[str, Metric | None]:
    """Name -> function of outputs `(n, ...)` and targets `(n, ...)`; None for what follows from the loss.

    `"accuracy"`, `"f1"` (of class 1 where there are two classes, else the mean over classes), `"matthews"`: of the
    class with the largest output; `"spearman"`, `"pearson"`: of one output a row; `"perplexity"`: `exp(loss)`, for
    losses that are a cross-entropy a token. Rows and tokens whose target is -100 do not count.

    Raises:
        ValueError: an unknown name, what is no function, two metrics of one name.
        ImportError: torchmetrics is not installed.

    Example:
        >>> list(resolve_metrics(["perplexity", max]))
        ['perplexity', 'max']
    """
    if isinstance(metrics, str) or not isinstance(metrics, Sequence):
        raise ValueError(
            f"metrics={metrics!r}: allowed is a list of names and functions (outputs, targets) -> number"
        )
    found: dict[str, Metric | None] = {}
    for metric in metrics:
        name = metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)
        if name in found or name == "loss":
            raise ValueError(f"metrics={metrics!r}: the name {name!r} is there already")
        if not isinstance(metric, str) and not callable(metric):
            raise ValueError(
                f"metrics has {metric!r}: allowed are names and functions (outputs, targets) -> number"
            )
        found[name] = _named(metric) if isinstance(metric, str) else metric
    return found


def scored(metrics: Mapping[str, Metric | None], loss: float, outputs: Tensor, y: Tensor) -> dict[str, float]:
    """The value of every metric.

    Args:
        loss: the mean loss. outputs: `(n, ...)`, y: `(n, ...)`, of the rows or tokens that count.

    Example:
        >>> import torch
        >>> scored({"perplexity": None}, 0.0, torch.zeros(1, 2), torch.zeros(1))
        {'perplexity': 1.0}
    """
    return {
        name: float(math.exp(min(loss, 700.0)) if metric is None else metric(outputs, y))
        for name, metric in metrics.items()
    }


def is_better(monitor: str, value: float, best: float | None) -> bool:
    """Whether a value of a metric is better than the best so far; what is no number is not.

    Example:
        >>> is_better("loss", 1.0, 2.0), is_better("accuracy", 1.0, 2.0), is_better("loss", math.nan, None)
        (True, False, False)
    """
    if math.isnan(value):
        return False
    return best is None or (value < best if monitor in LOSSES else value > best)


def _named(name: str) -> Metric | None:
    known = ["perplexity", "spearman", "pearson", *_CLASSES]
    if name not in known:
        raise ValueError(
            f"metrics has {name!r}: known are {', '.join(sorted(known))}, and functions of your own"
        )
    if name == "perplexity":
        return None
    if name in ("spearman", "pearson"):
        correlation = _imported("regression", f"{name}_corrcoef")
        return lambda outputs, y: correlation(outputs.reshape(len(y)).float(), y.float())
    return _CLASSES[name](_imported("classification", f"multiclass_{_FUNCTIONS[name]}"))


def _imported(module: str, function: str) -> Callable[..., Any]:
    try:
        return getattr(importlib.import_module(f"{FOLDER}.{module}"), function)  # type: ignore[no-any-return]
    except ImportError as error:
        raise ImportError(
            "metrics by name are those of torchmetrics, which is not installed: pip install 'metapeft[metrics]'"
        ) from error


def _classes(outputs: Tensor) -> int:
    return max(2, outputs.shape[-1])


def _accuracy(function: Callable[..., Any]) -> Metric:
    return lambda outputs, y: function(outputs.argmax(-1), y, num_classes=_classes(outputs), average="micro")


def _f1(function: Callable[..., Any]) -> Metric:
    def f1(outputs: Tensor, y: Tensor) -> Any:
        each = function(outputs.argmax(-1), y, num_classes=_classes(outputs), average="none")
        return each[1] if len(each) == 2 else each.mean()

    return f1


def _matthews(function: Callable[..., Any]) -> Metric:
    return lambda outputs, y: function(outputs.argmax(-1), y, num_classes=_classes(outputs))


_CLASSES = {"accuracy": _accuracy, "f1": _f1, "matthews": _matthews}
_FUNCTIONS = {"accuracy": "accuracy", "f1": "f1_score", "matthews": "matthews_corrcoef"}


def counted(outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets of the rows or tokens that count, `(n, ...)`: those whose class is not -100.

    Example:
        >>> import torch
        >>> counted(torch.zeros(2, 3, 5), torch.tensor([[0, 1, -100], [2, -100, -100]]))[0].shape
        torch.Size([3, 5])
    """
    if y.is_floating_point() or outputs.shape[: y.dim()] != y.shape:
        return outputs, y
    keep = y != IGNORED
    return outputs[keep], y[keep]
