"""Table and figure of docs/hypergradients.md, from the result file of benchmarks/hypergradients.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metapeft.report.drawing import series_colour

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
    """Time and peak memory of each engine at each K, the growth of memory, and cosines with the exact one."""
    engines = by_engine(found)
    counts = sorted({row["steps"] for row in found["rows"]})
    first, last = counts[0], counts[-1]
    heads = [*(f"s, K = {k}" for k in counts), *(f"MiB, K = {k}" for k in counts)]
    lines = [
        f"| engine | {' | '.join(heads)} | MiB, K = {last} over {first} | cosine, K = {first} | K = {last} |",
        f"| --- |{' ---: |' * (2 * len(counts) + 3)}",
    ]
    for name, rows in engines.items():
        seconds = [f"{rows[k]['seconds']:.2f}" if k in rows else "" for k in counts]
        memory = [f"{rows[k]['bytes'] / 2**20:.1f}" if k in rows else "" for k in counts]
        both = first in rows and last in rows
        growth = f"{rows[last]['bytes'] / rows[first]['bytes']:.2f}" if both else ""
        cosine = [f"{rows[k]['cosine']:.4f}" if "cosine" in rows.get(k, {}) else "" for k in (first, last)]
        lines.append(f"| `{name}` | {' | '.join([*seconds, *memory, growth, *cosine])} |")
    where = found["environment"]
    note = (
        f"{found['problem']}. Memory: {found['memory']}. Cosine: with the gradient of `unroll` at the same K. "
        f"Commit {str(where['commit'])[:9]}, {where['cpu']}, one thread, torch {where['torch']}; "
        f"from `benchmarks/results/{RESULT.name}`, by `python -m benchmarks.hypergradients run`."
    )
    return "\n".join([*lines, "", note])


def figure(found: dict[str, Any], path: Path) -> None:
    """Four panels against K: time, memory, cosine with the exact gradient, norm relative to it."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "hypergradients"  # the same file for the same numbers
    panels = {
        "seconds": ("time of one gradient, s", 1.0),
        "bytes": ("peak memory, MiB", 2.0**20),
        "cosine": ("cosine with the exact gradient", 1.0),
        "relative_norm": ("norm over that of the exact one", 1.0),
    }
    engines = {name: rows for name, rows in by_engine(found).items() if len(rows) > 1}
    drawing, grid = pyplot.subplots(2, 2, figsize=(9.5, 7.2), layout="constrained")
    for axes, (key, (label, unit)) in zip(grid.flat, panels.items()):
        for index, (name, rows) in enumerate(engines.items()):
            points = [(k, row[key] / unit) for k, row in sorted(rows.items()) if key in row]
            if points and not (
                key in ("cosine", "relative_norm") and name.startswith(("unroll", "recompute"))
            ):
                style = ("o-", "s--", "^:", "D-.")[index // 4 % 4]
                axes.plot(
                    *zip(*points), style, color=series_colour(index), markersize=4, linewidth=1.4, label=name
                )
        axes.set(xscale="log", xlabel="inner steps K", ylabel=label)
        counts = sorted({row["steps"] for row in found["rows"]})
        axes.set_xticks(counts, [str(k) for k in counts])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        if key != "cosine":
            axes.set_yscale("log")
        if key in ("cosine", "relative_norm"):
            axes.axhline(1.0, color="0.6", linewidth=0.8)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
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
