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
#: (workload, another, the first takes at most so many times the other's time)
AT_MOST = (("W1 cp", "W1", 1.5), ("W1 tr", "W1", 1.5), ("W1, T = 64", "W1", 4.2))
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
                yield f"{name}: {who} takes {times}, at least {bar:g} is wanted"
        if "higher" in rows and "peak_bytes" in rows["higher"]:
            own, other = (
                rows["metapeft"]["peak_bytes"],
                rows["higher"]["peak_bytes"] * measured["workload"]["tasks"],
            )
            if own > other:
                yield f"{name}: peak memory a task is {own / other:.2f} times that of higher, at most 1 is wanted"
    for name, other, most in AT_MOST:
        if name in found and other in found:
            ratio = found[name]["rows"]["metapeft"]["median_s"] / found[other]["rows"]["metapeft"]["median_s"]
            if ratio > most:
                yield f"{name} takes {ratio:.2f} times the time of {other}, at most {most:g} is wanted"
