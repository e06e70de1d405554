"""Pictures of the speed benchmark's result file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metapeft.experiments.report.drawing import series_colour


def draw(result: dict[str, Any], path: Path) -> None:
    """Time of every library over metapeft's and peak memory by workload; time against tasks, memory against steps."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    found = result["workloads"]
    libraries = list(dict.fromkeys(who for measured in found.values() for who in measured["rows"]))
    figure, axes = pyplot.subplot_mosaic(
        [["times", "tasks", "memory"], ["times", "steps", "memory"]],
        figsize=(15, 0.45 * len(found) + 2.5),
        layout="constrained",
        width_ratios=(2, 1.2, 2),
    )
    height = 0.8 / len(libraries)
    for i, who in enumerate(libraries):
        rows = {name: (m["workload"], m["rows"].get(who, {})) for name, m in found.items()}
        where = [k + i * height for k in range(len(rows))]
        times = [row.get("times_metapeft", 0.0) for _, row in rows.values()]
        axes["times"].barh(where, times, height, color=series_colour(i), label=who)
        memory = [memory_of(who, *pair) or 0.0 for pair in rows.values()]
        axes["memory"].barh(where, memory, height, color=series_colour(i))
        by_tasks = sorted(
            (workload["tasks"], 1e3 * row["median_s"] / workload["tasks"])
            for name, (workload, row) in rows.items()
            if (name == "W1" or name.startswith("W1, T")) and "median_s" in row
            if found[name].get("run") == found["W1"].get("run")  # times of one day
        )
        style: dict[str, Any] = {"color": series_colour(i), "markersize": 4}
        axes["tasks"].plot([x for x, _ in by_tasks], [y for _, y in by_tasks], "o-", **style)
        for names, line in ((("W1", "W1, K"), "o-"), (("W1, recompute",), "o:")):
            by_steps = sorted(
                (workload["steps"], peak)
                for name, (workload, row) in rows.items()
                if (name in names or name.startswith(names[-1]))
                if (peak := memory_of(who, workload, row)) is not None
            )
            axes["steps"].plot([x for x, _ in by_steps], [y for _, y in by_steps], line, **style)
    axes["tasks"].set(xscale="log", yscale="log", xlabel="tasks, W1", ylabel="ms a task")
    axes["steps"].set(
        xscale="log",
        yscale="log",
        xlabel="inner steps, W1 (dotted: recompute; the loops unroll)",
        ylabel="MiB a task",
    )
    for name, ticks in (("tasks", (1, 4, 16, 64)), ("steps", (1, 5, 20, 100))):
        axes[name].set_xticks(ticks, [str(tick) for tick in ticks])
        axes[name].yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes[name].yaxis.set_major_formatter(ticker.ScalarFormatter())
        axes[name].minorticks_off()
    for name, label in (("times", "time over metapeft's"), ("memory", "peak memory a task in flight, MiB")):
        axes[name].set_yticks([k + 0.4 - height / 2 for k in range(len(found))], list(found))
        axes[name].invert_yaxis()
        axes[name].set_xlabel(label)
    axes["times"].axvline(1.0, color="0.4", linewidth=0.8)
    for one in axes.values():
        one.spines[["top", "right"]].set_visible(False)
    handles = axes["times"].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(libraries), frameon=False)
    figure.savefig(path, dpi=110)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    pyplot.close(figure)


def memory_of(who: str, workload: dict[str, Any], row: dict[str, Any]) -> float | None:
    """Peak memory of each task that a library has in flight at once, in MiB; None where it was not measured.

    Example:
        >>> memory_of("metapeft", {"tasks": 4}, {"peak_bytes": 8 * 2**20})
        2.0
    """
    if "peak_bytes" not in row:
        return None
    together = workload["tasks"] if who in ("metapeft", "uncompiled", "vmap") else 1
    return float(row["peak_bytes"]) / 2**20 / together
