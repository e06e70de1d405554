"""The figures themselves, from rows to matplotlib; nothing is computed here but means and bands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from theory.figures.rows import Row, curves, exact
from theory.figures.style import (
    COLOURS,
    MARKERS,
    NAMES,
    TEST_LOSS,
    band,
    finish_ranks,
    floor,
    label_caveats,
    logarithmic,
    panels,
    points,
    share_y,
)
from theory.figures.sweeps import settings
from theory.models.problems import LinearSetting
from theory.models.tuning_error import parameters

SWEPT = {"d": "width d", "T": "tasks T", "N": "samples a task N", "n": "test samples n", "k": "rank k"}
ROUNDING = 1e-30  # below it a relative loss is 0


def sweep(name: str, rows: Sequence[Row], note: str = "") -> Figure:
    """One linear sweep: a panel a value, mean curve with min-max band, dashed exact end points."""
    triples = settings(name)
    figure, axes = panels(len(triples), f"Test loss while fine-tuning: {SWEPT[name]}", note)
    for axis, (value, setting, rank) in zip(axes, triples, strict=True):
        for method in ("sr+lora", "lora-ml"):
            band(axis, curves(rows, method, value), method)
            end = float(exact(rows, method)[value].mean())
            axis.axhline(end, color=COLOURS[method], linestyle="--", linewidth=1)
        axis.set_title(f"{name} = {value}, test rank {rank}", fontsize=10)
        axis.set_xlabel("fine-tuning step")
        if note:
            label_caveats(axis, setting)
        logarithmic(axis)
        axis.xaxis.set_major_locator(MaxNLocator(4))
    share_y(axes)
    axes[0].set_ylabel(TEST_LOSS)
    axes[-1].plot([], [], color="0.3", linestyle="--", linewidth=1, label="exact end point")
    axes[-1].legend(fontsize=8, frameon=False)
    return figure


def shallow_sweep(name: str, rows: Sequence[Row], note: str = "") -> Figure:
    """One shallow sweep: a panel a value, median fine-tuning curve and the range of the trials."""
    from theory.figures.shallow_sweeps import settings as shallow_settings  # imports torch
    from theory.models.shallow import METHODS

    found = shallow_settings(name)
    title = f"Shallow net, error while fine-tuning: {SWEPT[name.removeprefix('shallow-')]}"
    figure, axes = panels(len(found), title, note, width=3.2)
    for axis, (value, setting) in zip(axes, found.items(), strict=True):
        for method in METHODS:
            band(axis, curves(rows, method, value), method, np.median)
        axis.set_title(
            f"{name.removeprefix('shallow-')} = {value}, test rank {setting.test_rank}", fontsize=10
        )
        axis.set_xlabel("fine-tuning epoch")
        if note:
            label_caveats(axis, setting)
        logarithmic(axis)
        axis.xaxis.set_major_locator(MaxNLocator(3))
    share_y(axes)
    axes[0].set_ylabel("mean squared error, clean targets")
    free = [axis for axis, setting in zip(axes, found.values(), strict=True) if not setting.caveats()]
    free[-1].legend(fontsize=8, frameon=False)
    return figure


def rank(name: str, rows: Sequence[Row], note: str = "", noise: float | None = None) -> Figure:
    """Exact test loss against the test rank: SR's staircase down to k(T+1), LoRA-ML's to its own rank.

    `noise`: its standard deviation where it is not the setting's sigma.
    """
    one = LinearSetting(T=2) if name == "tie" else LinearSetting()
    title = "T = 2: the two methods meet at rank 3k" if name == "tie" else "Test loss by test rank"
    figure, (axis,) = panels(1, title, note, width=6)
    for method in ("sr+lora", "lora-ml"):
        points(axis, exact(rows, method), method, drawstyle="steps-mid", linewidth=1.8)
    floor(axis, sorted(exact(rows, "lora-ml")), one.sigma if noise is None else noise, one.d)
    needed = {one.retraining_rank: "k(T+1)", one.test_rank: "3k = k(T+1)" if one.T == 2 else "k"}
    for where, label in needed.items():
        axis.axvline(where, color="0.6", linewidth=0.8, linestyle=":")
        axis.text(
            where, 1.0, f" {label}", transform=axis.get_xaxis_transform(), fontsize=8, color="0.35", va="top"
        )
    finish_ranks(axis)
    return figure


def meta_learners(name: str, rows: Sequence[Row], note: str = "") -> Figure:
    """All initialisation-based meta-learners lie on SR's line."""
    figure, (axis,) = panels(1, "Initialisation-based meta-learners lie on SR's line", note, width=6)
    points(axis, exact(rows, "sr+lora"), "sr+lora", linewidth=1.8)
    points(axis, exact(rows, "lora-ml"), "lora-ml", linewidth=1.8)
    for offset, (method, marker) in zip((-0.15, -0.05, 0.05, 0.15), MARKERS.items(), strict=True):
        found = exact(rows, method)
        means = [values.mean() for values in found.values()]
        where = [value + offset for value in found]
        axis.plot(where, means, marker, color=COLOURS[method], label=NAMES[method], markersize=5)
    floor(axis, sorted(exact(rows, "lora-ml")), LinearSetting().sigma, LinearSetting().d)
    finish_ranks(axis)
    return figure


def tuning_error(name: str, rows: Sequence[Row], note: str = "") -> Figure:
    """Population error against n, with the lines `sigma^2 r(2d - r)/n`."""
    one = LinearSetting()
    figure, (axis,) = panels(1, "Test error against test samples", note, width=6)
    for method, r in (("sr+lora", one.retraining_rank), ("lora-ml", one.k)):
        found = exact(rows, method, "population")
        axis.plot(
            list(found), [v.mean() for v in found.values()], "o", color=COLOURS[method], label=NAMES[method]
        )
        n = np.array(sorted(found))
        line = one.sigma**2 * parameters(r, one.d) / n
        axis.plot(n, line, color=COLOURS[method], linewidth=1, label=rf"$\sigma^2 r(2d-r)/n$, r = {r}")
    axis.set_xscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    logarithmic(axis)
    axis.set_xlabel("test samples n")
    axis.set_ylabel(r"$\|W^* - A - UV^\top\|_F^2$")
    axis.legend(fontsize=8, frameon=False)
    return figure


def retraining_error(name: str, rows: Sequence[Row], note: str = "") -> Figure:
    """Error of A against N T, with lines of slope -1."""
    figure, (axis,) = panels(1, "Error of A against retraining samples", note, width=6)
    for method in ("sr", "lora-ml"):
        found = exact(rows, method, "population")
        sizes, means = np.array(list(found)), np.array([values.mean() for values in found.values()])
        axis.plot(sizes, means, "o", color=COLOURS[method], label=NAMES[method])
        height = np.exp(np.log(means * sizes).mean())
        axis.plot(sizes, height / sizes, color=COLOURS[method], linewidth=1, label="slope -1")
    axis.set_xscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    logarithmic(axis)
    axis.set_xlabel("retraining samples N T")
    axis.set_ylabel(r"$\|A - A_\infty\|_F^2$")
    axis.legend(fontsize=8, frameon=False)
    return figure


def covariance(name: str, rows: Sequence[Row], note: str = "") -> Figure:
    """How far unequal covariances move each meta-learner from SR's solution."""
    figure, (axis,) = panels(1, "Where theorem 6 stops: task covariances that differ", note, width=6)
    for method, marker in MARKERS.items():
        found = exact(rows, method, "population")
        shown = {spread: np.median(values) for spread, values in found.items()}
        axis.plot(list(shown), list(shown.values()), f"-{marker}", color=COLOURS[method], label=NAMES[method])
    axis.set_xlabel(r"spread s: eigenvalues of $\Sigma_t$ in $[e^{-s}, e^{s}]$")
    axis.set_ylabel(r"median $\|A - A_{SR}\|_F^2$")
    axis.set_yscale("symlog", linthresh=1e-3)
    axis.legend(fontsize=8, frameon=False)
    return figure


def landscape(name: str, rows: Sequence[Row], note: str = "") -> Figure:
    """Losses at which descents end, from the lowest: all 0 at T = 2, some at a spurious minimum at T = 3."""
    figure, (axis,) = panels(1, "Where descents of LoRA-ML end", note, width=6)
    for (T, losses), marker in zip(exact(rows, "lora-ml").items(), ("s", "o"), strict=True):
        shares = 100 * (np.arange(len(losses)) + 1) / len(losses)
        label = f"T = {T:g}, {len(losses)} descents"
        axis.plot(shares, np.sort(np.maximum(losses, ROUNDING)), marker, markersize=3, label=label)
    (level,) = exact(rows, "spurious").values()
    axis.axhline(level[0], color="0.3", linestyle="--", linewidth=1, label="the spurious minimum, T = 3")
    axis.set_yscale("log")
    axis.set_xlabel("share of the descents, %")
    axis.set_ylabel("loss above the global minimum, relative")
    axis.legend(fontsize=8, frameon=False)
    return figure


PLOTS: dict[str, Callable[..., Figure]] = {
    **dict.fromkeys(SWEPT, sweep),
    "shallow-d": shallow_sweep,
    "shallow-T": shallow_sweep,
    "rank": rank,
    "tie": rank,
    "meta-learners": meta_learners,
    "test-error": tuning_error,
    "retraining-error": retraining_error,
    "covariance": covariance,
    "landscape": landscape,
}
