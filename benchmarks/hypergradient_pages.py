"""Table and figure of docs/hypergradients.md, from the result file of benchmarks/hypergradients.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metapeft.experiments.report.drawing import series_colour

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "hypergradients.json"
PAGE = ROOT / "docs" / "hypergradients.md"
FIGURE = ROOT / "docs" / "hypergradients.svg"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"


def by_engine(found: dict[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
    """Engine -> K -> row.

    Example:
        >>> by_engine({"rows": [{"engine": "cg", "steps": 5, "bytes": 1}]})["cg"][5]["bytes"]
        1
    """
    table: dict[str, dict[int, dict[str, Any]]] = {}
    for row in found["rows"]:
        table.setdefault(row["engine"], {})[row["steps"]] = row
    return table


def table(found: dict[str, Any]) -> str:
    """Time, then peak memory and its growth, of each engine at each K."""
    engines = by_engine(found)
    counts = sorted({row["steps"] for row in found["rows"]})
    first, last = counts[0], counts[-1]
    times = [f"| seconds | {' | '.join(f'K = {k}' for k in counts)} |", f"| --- |{' ---: |' * len(counts)}"]
    peaks = [
        f"| MiB | {' | '.join(f'K = {k}' for k in counts)} | K = {last} over {first} |",
        f"| --- |{' ---: |' * (len(counts) + 1)}",
    ]
    for name, rows in engines.items():
        seconds = [f"{rows[k]['seconds']:.2f}" if k in rows else "" for k in counts]
        memory = [f"{rows[k]['bytes'] / 2**20:.1f}" if k in rows else "" for k in counts]
        both = first in rows and last in rows
        growth = f"{rows[last]['bytes'] / rows[first]['bytes']:.2f}" if both else ""
        times.append(f"| `{name}` | {' | '.join(seconds)} |")
        peaks.append(f"| `{name}` | {' | '.join([*memory, growth])} |")
    where = found["environment"]
    note = (
        f"{found['problem']}. Time: of the processor, one thread. Memory: {found['memory']}. Commit "
        f"{str(where['commit'])[:9]}, {where['cpu']}, torch {where['torch']}; from "
        f"`benchmarks/results/{RESULT.name}`, by `python -m benchmarks.hypergradients run`. `finite-difference` is "
        "defined for one inner step, `direct` for none."
    )
    return "\n".join([*times, "", *peaks, "", note, "", distances(found)])


def distances(found: dict[str, Any]) -> str:
    """Cosine with the exact gradient, and its norm relative to that, on both problems."""
    counts = sorted({row["steps"] for row in found["distances"]})
    lines = [
        f"| problem | cosine (norm) | {' | '.join(f'K = {k}' for k in counts)} |",
        f"| --- | --- |{' ---: |' * len(counts)}",
    ]
    for setting, values in found["settings"].items():
        said = ", ".join(f"{name} {value:g}" for name, value in values.items())
        rows = [row for row in found["distances"] if row["setting"] == setting]
        for name in dict.fromkeys(row["engine"] for row in rows):
            own = {row["steps"]: row for row in rows if row["engine"] == name}
            cells = [
                "fails" if "failed" in own[k] else f"{own[k]['cosine']:.4f} ({own[k]['relative_norm']:.2f})"
                for k in counts
            ]
            lines.append(f"| {said} | `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(found: dict[str, Any], path: Path) -> None:
    """Panels against K: time, memory; distance from the exact gradient and its norm, on both problems."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.fonttype"] = "none"  # words stay words
    matplotlib.rcParams["svg.hashsalt"] = "hypergradients"  # the same file for the same numbers
    names = [name for name, rows in by_engine(found).items() if len(rows) > 1]
    look = {name: (("o-", "s--", "^:", "D-.")[i // 4 % 4], series_colour(i)) for i, name in enumerate(names)}
    counts = sorted({row["steps"] for row in found["rows"]})

    def draw(axes: Any, rows: list[dict[str, Any]], value: Any, label: str, title: str = "") -> None:
        for name in names:
            own = sorted((row["steps"], value(row)) for row in rows if row["engine"] == name and value(row))
            style, colour = look[name]
            axes.plot(
                [k for k, _ in own],
                [y for _, y in own],
                style,
                color=colour,
                markersize=4,
                linewidth=1.3,
                label=name,
            )
        axes.set(xscale="log", xlabel="inner steps K", ylabel=label, title=title)
        axes.set_xticks(counts, [str(k) for k in counts])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)

    drawing, grid = pyplot.subplots(3, 2, figsize=(9.5, 10.0), layout="constrained")
    draw(grid[0, 0], found["rows"], lambda row: row["seconds"], "processor time of one gradient, s")
    draw(grid[0, 1], found["rows"], lambda row: row["bytes"] / 2**20, "peak memory, MiB")
    for line, setting in zip(grid[1:], found["settings"]):
        rows = [row for row in found["distances"] if row["setting"] == setting]
        said = ", ".join(f"{name} {value:g}" for name, value in found["settings"][setting].items())
        draw(
            line[0], rows, lambda row: 1 - row.get("cosine", 1.0), "1 - cosine with the exact gradient", said
        )
        draw(line[1], rows, lambda row: row.get("relative_norm"), "norm over that of the exact one", said)
        line[1].axhline(1.0, color="0.6", linewidth=0.8)
        line[0].set_ylim(1e-6, 2.0)  # below is rounding; what covers all K steps is exact
        line[1].set_ylim(0.6, 2.0)  # one engine leaves the frame, see the table
    for axes in [*grid[:, 0].tolist(), grid[0, 1]]:
        axes.set_yscale("log")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    drawing.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(drawing)


def filled(page: str, found: dict[str, Any]) -> str:
    """The page with the table between its markers; raises ValueError where they are missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n{table(found)}\n{END}{after}"


def write_pages(check: bool = False) -> None:
    """Write table and figure; with `check` raise SystemExit where the table is not what the file says."""
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    wanted = filled(page, found)
    if check:
        if wanted != page:
            raise SystemExit(
                f"{PAGE.name} is not what {RESULT.name} says: run python -m benchmarks.hypergradients pages"
            )
        return
    PAGE.write_text(wanted, encoding="utf-8")
    figure(found, FIGURE)
