"""What the speed benchmark holds metapeft to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: workload -> library -> how many times metapeft's time it has to take at least
FASTER = {
    "W1": {"higher": 5.0, "learn2learn": 3.0, "torchopt": 3.0},
    "W1 frozen": {"higher": 8.0},
    "MAML": {"higher": 1.3},
    "MAML batch statistics": {"higher": 1.3},
}
#: nowhere slower than these, within 5 %
NEVER_SLOWER = ("loop", "vmap")
SAME = 0.95
#: (workload, another, what of metapeft's, the first has at most so many times the other's)
AT_MOST = (
    ("W1 cp", "W1", "median_s", 1.5),
    ("W1 tr", "W1", "median_s", 1.5),
    ("W1, T = 64", "W1", "median_s", 4.2),
    ("W1, recompute, K = 100", "W1, recompute, K = 1", "peak_bytes", 1.5),
)
#: relative distance of gradients, in float64
GRADIENT = 1e-8


def failed(found: dict[str, Any]) -> list[str]:
    """A sentence for each bar that measured workloads fall short of.

    Example:
        >>> row = lambda times: {"times_metapeft": times, "gradient_difference": 0.0, "median_s": 1.0}
        >>> failed({"MAML": {"rows": {"metapeft": row(1.0), "higher": row(1.2), "loop": row(1.0)}}})
        ['MAML: higher takes 1.20 times the time of metapeft, at least 1.3 is wanted']
    """
    return list(_sentences(found))


def _limit(row: dict[str, Any], own: dict[str, Any]) -> str:
    """What metapeft's operations would come to if all of them ran at the machine's matrix-product rate.

    Example:
        >>> _limit({"times_metapeft": 4.0}, {"rate": 0.5})
        ' (8.0 if all its operations ran at the matrix rate)'
    """
    if "rate" not in own:
        return ""
    return f" ({row['times_metapeft'] / own['rate']:.1f} if all its operations ran at the matrix rate)"


def _sentences(found: dict[str, Any]) -> Iterator[str]:
    for name, measured in found.items():
        rows = {who: row for who, row in measured["rows"].items() if "absent" not in row}
        for who, row in rows.items():
            if row["gradient_difference"] > GRADIENT:  # a peer that computes another gradient is no peer here
                if who == "loop":
                    yield f"{name}: the gradient of the loop differs by {row['gradient_difference']:.1e}, relative"
                continue
            bar = FASTER.get(name, {}).get(who, SAME if who in NEVER_SLOWER else None)
            if bar is not None and row["times_metapeft"] < bar:
                times = f"{row['times_metapeft']:.2f} times the time of metapeft"
                yield f"{name}: {who} takes {times}, at least {bar:g} is wanted{_limit(row, rows['metapeft'])}"
        if "higher" in rows and "peak_bytes" in rows["higher"]:
            own, other = (
                rows["metapeft"]["peak_bytes"],
                rows["higher"]["peak_bytes"] * measured["workload"]["tasks"],
            )
            if own > other:
                yield f"{name}: peak memory a task is {own / other:.2f} times that of higher, at most 1 is wanted"
    for name, other, quantity, most in AT_MOST:
        values = [
            found[which]["rows"].get("metapeft", {}).get(quantity)
            for which in (name, other)
            if which in found
        ]
        if len(values) == 2 and None not in values and values[0] > most * values[1]:
            what = {"median_s": "time", "peak_bytes": "memory"}[quantity]
            times = f"{values[0] / values[1]:.2f} times the {what} of {other}"
            yield f"{name} takes {times}, at most {most:g} is wanted"
