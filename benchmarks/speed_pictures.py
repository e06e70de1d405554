"""Pictures of the speed benchmark's result file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metapeft.report.drawing import series_colour


def draw(result: dict[str, Any], path: Path) -> None:
    """Time of every library over metapeft's, by workload, and against the number of tasks; peak memory a task."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    found = result["workloads"]
    libraries = list(dict.fromkeys(who for measured in found.values() for who in measured["rows"]))
    figure, (left, middle, right) = pyplot.subplots(
        1, 3, figsize=(15, 0.45 * len(found) + 2.5), layout="constrained", width_ratios=(2, 1, 2)
    )
    height = 0.8 / len(libraries)
    for i, who in enumerate(libraries):
        rows = [measured["rows"].get(who, {}) for measured in found.values()]
        where = [k + i * height for k in range(len(rows))]
        left.barh(
            where, [row.get("times_metapeft", 0.0) for row in rows], height, color=series_colour(i), label=who
        )
        memory = [
            row.get("peak_bytes", 0)
            / 2**20
            / (measured["workload"]["tasks"] if who in ("metapeft", "vmap") else 1)
            for row, measured in zip(rows, found.values())
        ]
        right.barh(where, memory, height, color=series_colour(i))
        points = sorted(
            (measured["workload"]["tasks"], measured["rows"][who]["median_s"] / measured["workload"]["tasks"])
            for name, measured in found.items()
            if name == "W1" or name.startswith("W1, T")
            if "median_s" in measured["rows"].get(who, {})
        )
        middle.plot(
            [t for t, _ in points], [1e3 * s for _, s in points], "o-", color=series_colour(i), markersize=4
        )
    middle_of = [k + 0.4 - height / 2 for k in range(len(found))]
    for axes, label in ((left, "time over metapeft's"), (right, "peak memory a task in flight, MiB")):
        axes.set_yticks(middle_of, list(found))
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    left.axvline(1.0, color="0.4", linewidth=0.8)
    middle.set(xscale="log", yscale="log", xlabel="tasks, W1", ylabel="ms a task")
    middle.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=len(libraries), frameon=False
    )
    figure.savefig(path, dpi=110)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    pyplot.close(figure)
