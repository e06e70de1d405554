"""The tables of docs/speed.md, from the result files of the speed benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.speed_bars import short as sentences
from metapeft.experiments.tables import percent


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _where(environment: dict[str, Any], path: Path) -> str:
    commit = str(environment["commit"])[:9]
    return f"Commit {commit}, {environment['cpu']}; from `benchmarks/results/{path.name}`."


def spread(median: float, seconds: list[float]) -> str:
    """A median of seconds with the least and the most.

    Example:
        >>> spread(1.0, [0.9, 1.0, 1.25])
        '1.00 s (0.90 to 1.25)'
    """
    return f"{median:.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def _range(values: set[int]) -> str:
    """The least and the most of several numbers.

    Example:
        >>> _range({3}), _range({3, 2, 7})
        ('3', '2 to 7')
    """
    least, most = min(values), max(values)
    return str(least) if least == most else f"{least} to {most}"


def unlike_w1(name: str, workload: dict[str, Any]) -> str:
    """Tasks T, inner steps K and queries of a workload where they are not those of W1 and its name does not say them.

    Example:
        >>> unlike_w1("W1, K = 20", {"tasks": 4, "steps": 20, "queries": 25})
        ' (T = 4)'
    """
    numbers = {"T": ("tasks", 16), "K": ("steps", 5), "queries": ("queries", 25)}
    unlike = [
        f"{letter} = {workload[field]}"
        for letter, (field, usual) in numbers.items()
        if workload.get(field, usual) != usual and f"{letter} = " not in name
    ]
    return f" ({', '.join(unlike)})" if unlike else ""


def speed(path: Path) -> str:
    """Each library's time over metapeft's, a line a workload, as Markdown."""
    found = _read(path)
    libraries = list(
        dict.fromkeys(who for measured in found["workloads"].values() for who in measured["rows"])
    )
    others = [who for who in libraries if who != "metapeft"]
    lines = [
        f"| meta-step | metapeft | {' | '.join(others)} | matrix rate |",
        f"| --- |{' ---: |' * (len(others) + 2)}",
    ]
    for name, measured in found["workloads"].items():
        rows = measured["rows"]
        times = [
            f"{rows[who]['times_metapeft']:.2f} x" if "median_s" in rows.get(who, {}) else "-"
            for who in others
        ]
        own = rows["metapeft"]
        time = spread(own["median_s"], own["seconds"])
        title = f"{name}{unlike_w1(name, measured['workload'])}"
        lines.append(f"| {title} | {time} | {' | '.join(times)} | {100 * own['rate']:.0f} % |")
    measured = list(found["workloads"].values())
    compiled = any(each.get("compiled") for each in measured)
    kernels = (
        "metapeft with compiled kernels, where a column says uncompiled: it in plain torch. "
        if compiled
        else ""
    )
    rounds, threads = ({each[key] for each in measured} for key in ("repeats", "threads"))
    commits, machines = (sorted({each["environment"][key] for each in measured}) for key in ("commit", "cpu"))
    note = (
        f"{kernels}Time of one meta-step, and how many times as long the others take for the same gradient; medians "
        f"(least to most) of {_range(rounds)} alternating repeats in one process that keeps freed memory, as training "
        f"does, threads: {_range(threads)}. Matrix rate: "
        "metapeft's floating-point operations a second, counted where it is uncompiled, over those of a float32 "
        "matrix product: compiled kernels do the same with fewer, so that it may exceed what the machine does. W1: "
        "LoRA rank 4 on Conv-4-64, 28x28, T = 16 tasks of 5-way 1-shot, 25 queries, K = 5 second-order steps; "
        "where a line says no other numbers, they are these. Commit "
        f"{', '.join(commit[:9] for commit in commits)}, {', '.join(machines)}; from "
        f"`benchmarks/results/{path.name}`, by `python -m benchmarks.speed`."
    )
    short = [f"- {sentence}" for sentence in sentences(found["rows"])]
    missed = ["", "Short of what we set ourselves (`--check`):", "", *short] if short else []
    return "\n".join([*lines, "", note, *missed])


def before_after(path: Path) -> str:
    """One line a change and a workload."""
    lines = [
        "| change | meta-step | threads | before | after | ratio | memory |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for entry in _read(path):
        times = [spread(entry["median_s"][which], entry["seconds"][which]) for which in ("before", "after")]
        commits = " to ".join(entry["commits"][which][:9] for which in ("before", "after"))
        lines.append(
            f"| {entry['about']} ({commits}) | {entry['workload']} | {entry['threads']} | {' | '.join(times)} "
            f"| {entry['ratio']:.2f} x | {_process_memory(entry)} |"
        )
    note = (
        "Medians (least to most) over alternating processes; memory: the most that such a process held, torch and all, "
        "where it was measured; by `python -m benchmarks.before_after`; from "
        f"`benchmarks/results/{path.name}`."
    )
    return "\n".join([*lines, "", note])


def _process_memory(entry: dict[str, Any]) -> str:
    peaks = entry.get("process_bytes")
    return (
        ""
        if peaks is None
        else " to ".join(f"{peaks[which] / 2**20:,.0f}" for which in ("before", "after")) + " MiB"
    )


def profile(path: Path) -> str:
    """Shares of a step's time by kind of operation."""
    found = _read(path)
    names = list(found["workloads"])
    times = " | ".join(f"{found['workloads'][name]['median_s']:.2f} s" for name in names)
    kinds = list(dict.fromkeys(kind for name in names for kind in found["workloads"][name]["shares"]))
    lines = [f"| | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}", f"| a step | {times} |"]
    for kind in kinds:
        shares = [found["workloads"][name]["shares"].get(kind, 0.0) for name in names]
        lines.append(f"| {kind} | {' | '.join(f'{100 * share:.0f} %' for share in shares)} |")
    rates = [found["workloads"][name].get("convolution_rate") for name in names]
    if any(rates):
        shown = " | ".join("-" if rate is None else f"{100 * rate:.0f} %" for rate in rates)
        lines.append(f"| rate of the convolutions | {shown} |")
    updates = [found["workloads"][name].get("updates_share") for name in names]
    if all(updates):
        shown = " | ".join(f"{100 * share:.1f} %" for share in updates)
        lines.append(f"| updates of the inner variables | {shown} |")
    where = _where(found["environment"], path)
    note = (
        "Own time of the operations, one thread; the updates `w - rate * gradient` are timed in a step of their own; "
        "the rate is that of counted floating-point operations over a float32 "
        f"matrix product's; by `python -m benchmarks.speed_profile`. {where}"
    )
    return "\n".join([*lines, "", note])


def processes(path: Path) -> str:
    """One process against two, and what keeps them from being twice as fast."""
    found = _read(path)
    shown = {kind: spread(found["median_s"][kind], found["seconds"][kind]) for kind in found["median_s"]}
    return (
        f"16 tasks of W1 an outer step: {shown['one']} by one single-threaded process, {shown['two']} by two "
        f"({found['ratio']:.2f} times as fast; {found['bar']:g} was wanted). A step of 8 tasks takes one process "
        f"{shown['half']} alone, and {shown['half beside another']} while another, sharing nothing but the "
        f"machine, does the same. {_where(found['environment'], path)}"
    )


def allocator(path: Path) -> str:
    """Steps with and without reuse of freed memory."""
    found = _read(path)
    lines = ["| step | given back | kept | ratio |", "| --- | ---: | ---: | ---: |"]
    for name, row in found["steps"].items():
        times = [spread(row["median_s"][kind], row["seconds"][kind]) for kind in ("leave", "keep")]
        lines.append(f"| {name} | {' | '.join(times)} | {row['ratio']:.2f} x |")
    note = (
        "Processor seconds of one thread, medians (least to most) over alternating processes, by `python -m "
        f"benchmarks.allocator`. {_where(found['environment'], path)}"
    )
    return "\n".join([*lines, "", note])


def bfloat16(path: Path) -> str:
    """What forwards in bfloat16 change."""
    found = _read(path)
    step, accuracy = found["step"], found["accuracy"]
    times = {name: spread(step["median_s"][name], step["seconds"][name]) for name in step["seconds"]}
    apart, half = accuracy["difference"]
    own = {True: "has", False: "has no", None: "does not say whether it has"}[found["arithmetic"]]
    return (
        f"`--autocast bfloat16` on a machine that {own} bfloat16 arithmetic: W1 takes {times['bfloat16']} in place of "
        f"{times['float32']} (threads: {found['threads']}), its gradient has a cosine of {step['cosine']:.4f} with "
        f"float32's and {step['norm_ratio']:.3f} times its norm. SR + LoRA on Omniglot: "
        f"{percent(*accuracy['bfloat16'])} % in place of {percent(*accuracy['float32'])} %, paired difference "
        f"{percent(apart, half, sign=True)} points ({accuracy['protocol']}). "
        f"{_where(found['environment'], path)}"
    )


def start(path: Path) -> str:
    """What one waits for before anything is learned."""
    found = _read(path)
    lines, bars = ["| | median | wanted |", "| --- | ---: | ---: |"], found.get("bars", {})
    for name, value in found["medians"].items():
        shown = [
            f"{number:,.0f}" if number > 100 else f"{number:.3f}" for number in (value, bars.get(name, 0.0))
        ]
        bound = "at least" if name.endswith("a second") else "at most"
        lines.append(f"| {name} | {shown[0]} | {f'{bound} {shown[1]}' if name in bars else ''} |")
    return "\n".join([*lines, "", _where(found["environment"], path)])


def all_workloads(path: Path) -> str:
    """The table of every workload, and its picture."""
    about = "Time over metapeft's by workload, time a task against tasks, and peak memory"
    return f"{speed(path)}\n\n![{about}](../benchmarks/results/{path.with_suffix('.png').name})"


def of_speed(results: Path) -> str:
    """What stands between the markers of docs/speed.md."""
    parts = {
        "speed_all.json": ("All workloads", all_workloads),
        "profile.json": ("Where the time goes", profile),
        "before-after.json": ("What changes of the engine brought", before_after),
        "allocator.json": ("Freed memory that stays with the process", allocator),
        "processes.json": ("A second process", processes),
        "bfloat16.json": ("Forwards in bfloat16", bfloat16),
        "start.json": ("Waiting for the start", start),
    }
    shown = [
        (title, made(results / name)) for name, (title, made) in parts.items() if (results / name).exists()
    ]
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in shown)
