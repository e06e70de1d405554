"""What the speed benchmark holds metapeft to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: workload -> library -> how many times metapeft's time it has to take at least
FASTER = {
    "W1": {"higher": 5.0, "learn2learn": 3.0, "torchopt": 3.0, "uncompiled": 1.5},
    "W1 frozen": {"higher": 8.0},
    "MAML": {"higher": 1.3},
    "MAML batch statistics": {"higher": 1.3},
    "MAML 84": {"higher": 1.3},
}
#: likewise with compiled kernels, and with those where the processor has products of tiles (AMX)
COMPILED = {
    "MAML batch statistics": {"higher": 4.0},
    "SR 84": {"loop": 1.5},
    "ProtoNet 84": {"loop": 1.5},
    "SR 84 bfloat16": {"loop": 1.5, "loop bfloat16": 1.0},
}
WITH_AMX = {"SR 84 bfloat16": {"loop": 4.0, "loop bfloat16": 2.0}}
#: how many times as far from float64 metapeft's gradient is as that of the plain loop in the same precision, at most
BRIEF = 1.2
#: nowhere slower than these, within 5 %
NEVER_SLOWER = ("loop", "vmap")
SAME = 0.95
#: (workload, another, what of metapeft's, the first has at most so many times the other's)
AT_MOST = (
    ("W1 cp", "W1", "median_s", 1.5),
    ("W1 tr", "W1", "median_s", 1.5),
    ("W1, T = 64", "W1", "median_s", 4.2),
    ("W1, recompute, K = 100", "W1, recompute, K = 1", "peak_bytes", 1.5),
    ("W1, implicit, K = 100", "W1, implicit, K = 1", "peak_bytes", 1.5),
)
#: backbone -> the part of the machine's matrix-product rate that metapeft's operations have to come to
RATES = {"conv4": 0.3, "resnet12": 0.4}
#: relative distance of the loop's gradient from metapeft's in float64
GRADIENT = 1e-8
#: a library that is further away computes another gradient, and has no bar
OTHER_GRADIENT = 1e-4
MEASURES = {"median_s": "time", "peak_bytes": "memory"}


def bars(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was measured, a row a comparison: `workload`, `against`, `measure`, `ratio`, `bar`, `limit`, `passed`.

    `limit` says whether `ratio` has to be `"at least"` or `"at most"` the bar; `bar` and `passed` are None where
    none is set. Of a library that is absent or computes another gradient, `why` says so. Two workloads are compared
    where one run measured both: a machine is not as fast on every day.

    Example:
        >>> row = lambda times: {"times_metapeft": times, "gradient_difference": 0.0, "median_s": 1.0}
        >>> near, row = bars({"MAML": {"rows": {"metapeft": row(1.0), "higher": row(1.2)}}})
        >>> row["against"], row["ratio"], row["bar"], row["passed"]
        ('higher', 1.2, 1.3, False)
        >>> near["measure"], near["passed"]
        ('distance of gradients', True)
    """
    rows = [row for name, measured in found.items() for row in _of_workload(name, measured)]
    for name, other, quantity, most in AT_MOST:
        pair = [found[which] for which in (name, other) if which in found]
        values = [measured["rows"].get("metapeft", {}).get(quantity) for measured in pair]
        together = len({measured.get("run") for measured in pair}) == 1
        if len(values) == 2 and None not in values and together:
            rows.append(_row(name, other, MEASURES[quantity], values[0] / values[1], most, "at most"))
    return rows


def _of_workload(name: str, measured: dict[str, Any]) -> Iterator[dict[str, Any]]:
    own = measured["rows"].get("metapeft", {})
    for who, row in measured["rows"].items():
        if who == "metapeft":
            continue
        if "absent" in row:
            yield _row(name, who, "time", None, None) | {"why": row["absent"]}
            continue
        apart, bar = row["gradient_difference"], _bars_of(name, measured).get(who)
        bar = bar or (SAME if who in NEVER_SLOWER else None)
        if bar is not None:
            nearest = GRADIENT if who == "loop" else OTHER_GRADIENT
            yield _row(name, who, "distance of gradients", apart, nearest, "at most")
        if not apart <= OTHER_GRADIENT:
            why = {"why": f"another gradient, by {apart:.1e} relative"}
            yield _row(name, who, "time", row["times_metapeft"], None) | why
            continue
        limit = {} if measured.get("compiled") else _limit(row, own)  # compiled kernels need fewer operations
        yield _row(name, who, "time", row["times_metapeft"], bar) | limit
    if "autocast" in measured["workload"]:
        yield from _of_training(name, measured)
        return
    if "rate" in own:
        yield _row(name, "matrix rate", "rate", own["rate"], RATES.get(measured["workload"]["backbone"]))
    other = measured["rows"].get("higher", {})
    comparable = "peak_bytes" in other and "peak_bytes" in own
    if comparable and measured["workload"].get("engine", "unroll") == "unroll":  # it has no other
        ratio = own["peak_bytes"] / (other["peak_bytes"] * measured["workload"]["tasks"])
        yield _row(name, "higher", "memory a task", ratio, 1.0, "at most")


def _bars_of(name: str, measured: dict[str, Any]) -> dict[str, float]:
    """What the peers of a workload have to take at least, on the machine where it was measured."""
    kernels = COMPILED.get(name, {}) if measured.get("compiled") else {}
    tiles = WITH_AMX.get(name, {}) if kernels and measured.get("amx") else {}
    return {**FASTER.get(name, {}), **kernels, **tiles}


def _of_training(name: str, measured: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """In bfloat16 the largest of a window is often another one, for everybody: nobody may be much further away."""
    peer = "loop bfloat16"
    if measured["workload"]["autocast"] and peer in measured["rows"]:
        own, other = (measured["rows"][who]["float64_difference"] for who in ("metapeft", peer))
        yield _row(name, peer, "distance from float64, over its", own / other, BRIEF, "at most")


def _limit(row: dict[str, Any], own: dict[str, Any]) -> dict[str, float]:
    """What the ratio would be if all of metapeft's operations ran at the machine's matrix-product rate.

    Example:
        >>> _limit({"times_metapeft": 4.0}, {"rate": 0.5})
        {'at_matrix_rate': 8.0}
    """
    return {"at_matrix_rate": row["times_metapeft"] / own["rate"]} if "rate" in own else {}


def _row(
    name: str, against: str, measure: str, ratio: float | None, bar: float | None, limit: str = "at least"
) -> dict[str, Any]:
    passed = None
    if ratio is not None and bar is not None:
        passed = ratio >= bar if limit == "at least" else ratio <= bar
    return {
        "workload": name, "against": against, "measure": measure, "ratio": ratio, "bar": bar, "limit": limit,
        "passed": passed,
    }  # fmt: skip


def unchecked(found: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """A sentence for each bar that nothing was held against: an absent library, workloads that one run did not measure.

    Example:
        >>> unchecked({"W1": {}, "W1 cp": {}}, [_row("W1", "higher", "time", None, None) | {"why": "not installed"}])
        ['W1 against higher: not installed', 'W1 cp against W1: not measured in this run']
    """
    sentences = [
        f"{row['workload']} against {row['against']}: {row['why']}"
        for row in rows
        if "why" in row
        and (row["against"] in FASTER.get(row["workload"], {}) or row["against"] in NEVER_SLOWER)
    ]
    held = {(row["workload"], row["against"], row["measure"]) for row in rows if row["bar"] is not None}
    for name, other, quantity, _ in AT_MOST:
        if name in found and (name, other, MEASURES[quantity]) not in held:
            sentences.append(f"{name} against {other}: not measured in this run")
    return sentences


def short(rows: list[dict[str, Any]]) -> list[str]:
    """A sentence for each row that falls short of its bar.

    Example:
        >>> short([_row("MAML", "higher", "time", 1.2, 1.3), _row("W1 cp", "W1", "time", 1.4, 1.5, "at most")])
        ['MAML: higher takes 1.20 times the time of metapeft, at least 1.3 is wanted']
    """
    return [_sentence(row) for row in rows if row["passed"] is False]


def _sentence(row: dict[str, Any]) -> str:
    ratio = f"{row['ratio']:.1e}" if row["ratio"] < 1e-3 else f"{row['ratio']:.2f}"
    what = f"{row['measure']} {ratio} against {row['against']}"
    if row["measure"] in MEASURES.values():
        slow, fast = (
            ("metapeft", row["against"]) if row["limit"] == "at most" else (row["against"], "metapeft")
        )
        what = f"{slow} takes {ratio} times the {row['measure']} of {fast}"
    sentence = f"{row['workload']}: {what}, {row['limit']} {row['bar']:g} is wanted"
    if "at_matrix_rate" in row:
        sentence += f" ({row['at_matrix_rate']:.1f} if all its operations ran at the matrix rate)"
    return sentence
