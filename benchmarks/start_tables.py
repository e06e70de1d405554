"""The table of starts in docs/few-shot.md, from benchmarks/results/starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metapeft.episodes.protocol import Protocol
from metapeft.experiments.tables import percent


def of_starts(results: Path) -> str:
    """What stands between the markers of the page: a line a start and number of shots, as Markdown."""
    found = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((results / "starts").glob("*-[0-9].json"))
    ]
    if not found:
        return "No start has been evaluated yet."
    lines = [
        "| start | shots | as they are | of length one | centred, of length one | images seen | commit |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    said = []
    for start in found:
        for shots in dict.fromkeys(row["shots"] for row in start["rows"]):
            own = {row["normalize"]: row for row in start["rows"] if row["shots"] == shots}
            cells = [percent(own[kind]["accuracy"], own[kind]["ci95"]) for kind in (None, "l2", "center+l2")]
            lines.append(
                f"| {start['start']}: {start['setting']['about']} | {shots} | {' | '.join(cells)} | "
                f"{start['images']:,} | {str(start['environment']['commit'])[:9]} |"
            )
            said.append(protocol(own[None]))
    where = found[0]["environment"]
    note = (
        "Accuracy in % of nearest centroids on the features of Conv-4-64, mean ± half-width of the 95 % t-interval, "
        f"over the same episodes in a row: {'; '.join(dict.fromkeys(said))}. Nothing was chosen on test classes. "
        f"Measured on {where['cpu']}; from `benchmarks/results/starts/`, one file a start."
    )
    return "\n".join([*lines, "", note])


def protocol(row: dict[str, Any]) -> str:
    """The episodes of a row, in words."""
    return str(Protocol.from_dict({**row["protocol"], "head": None}))
