"""The tables of docs/reliability.md, from benchmarks/results/reliability.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ABOUT = {
    "train": "meta-training, a checkpoint a step",
    "pretrain": "standard retraining",
    "search": "search for ranks by pruning",
    "import": "a data set into a store",
    "figures": "a figure of the theory",
    "export": "adapters for PEFT",
}


def of_reliability(results: Path) -> str:
    """What stands between the markers of the page, as Markdown."""
    found = json.loads((results / "reliability.json").read_text(encoding="utf-8"))
    where = found["environment"]
    note = (
        f"`{found['command']}`, commit {str(where['commit'])[:9]}, {where['cpu']}; from "
        "`benchmarks/results/reliability.json`."
    )
    parts = [_kills(found["kills"]), _faults(found["faults"]), _soak(found["soak"]), note]
    return "\n\n".join(part for part in parts if part)


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _kills(found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    rows = [
        [
            ABOUT[name], str(row["kills"]), str(row["whole_runs"]), str(row["most_lost_steps"]),
            str(len(row["unreadable"])), str(len(row["differing"])), str(len(row["leftovers"])),
        ]
        for name, row in sorted(found.items(), key=lambda item: list(ABOUT).index(item[0]))
    ]  # fmt: skip
    total = sum(row["kills"] for row in found.values())
    titles = [
        "work", "kills", "brought to their end and compared", "most steps lost", "unreadable", "files that differ",
        "left behind",
    ]  # fmt: skip
    return f"### {total} kills\n\n{_table(titles, rows)}"


def _faults(found: Mapping[str, Any]) -> str:
    rows = []
    for name in ABOUT:
        for row in found.get(name, ()):
            if "not_tried" in row:
                rows.append([ABOUT[name], row["fault"], f"not tried: {row['not_tried']}", "", ""])
                continue
            ended = (
                f"exit code {row['exit_code']}"
                if row["error"] is None
                else f"{row['error']}: {row['message']}"
            )
            same = row.get("went_on_to_the_same_end", row.get("same_end"))
            rows.append(
                [ABOUT[name], row["fault"], ended.replace("|", "/"), _said(row["readable"]), _said(same)]
            )
    if not rows:
        return ""
    return f"### Other faults\n\n{_table(['work', 'fault', 'how it ended', 'readable', 'same end'], rows)}"


def _soak(found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    files = "to".join(
        f" {count} " for count in sorted({found["open_files"][0], found["open_files"][-1]})
    ).strip()
    before, after = found["mib_second_quarter"], found["mib_last_quarter"]
    return (
        f"### A soak\n\n{found['seconds'] / 60:.0f} minutes in one process: {found['steps']:,} outer steps and "
        f"{found['episodes']:,} episodes in {len(found['rounds'])} rounds, each of which goes on from disk, evaluates, "
        f"adapts, exports and reads the adapter again. Memory {before:.0f} MiB in the second quarter of the rounds and "
        f"{after:.0f} MiB in the last ({100 * found['growth']:+.1f} %); open files {files}."
    )


def _said(value: bool | None) -> str:
    return {True: "yes", False: "no", None: ""}[value]
