"""The sentence that a main job opens with says what its intervals allow, and no more."""

from __future__ import annotations

from typing import Any

import pytest

from metapeft.episodes.protocol import Protocol
from metapeft.experiments.results import Cell, Interval, Results, Row
from metapeft.experiments.tables import tables
from metapeft.experiments.verdict import verdict

COLUMNS = ("0 steps", "5 steps")
AHEAD, LEVEL, BEHIND = (-0.08, 0.01), (-0.005, 0.01), (0.03, 0.01)  # a control minus the whole


def found(constant: tuple[Interval, Interval], blind: tuple[Interval, Interval], **more: Any) -> Results:
    """Results with these differences to the whole at 0 and 5 steps."""
    apart = {"constant": dict(zip(COLUMNS, constant)), "blind": dict(zip(COLUMNS, blind))}
    rows = {
        "metapeft": Row(columns={name: Cell(0.95, 0.01) for name in COLUMNS}),
        **{
            name: Row(columns={column: Cell(0.95 + mean, 0.01) for column, (mean, _) in cells.items()})
            for name, cells in apart.items()
        },
    }
    return Results(config={"data": "glyph-pairs"}, rows=rows, differences={"metapeft": apart}, **more)


def test_it_helps_where_both_intervals_are_off_zero() -> None:
    said = verdict(found((AHEAD, AHEAD), (AHEAD, LEVEL)))
    assert said == (
        "Generating the update from the support set helps on glyph-pairs (at 0 steps, not at 5 steps): at 0 steps "
        "95.0 % of the queries are right, with a constant update 87.0 % (paired difference +8.0 ± 1.0 points), with a "
        "generator that is shown the same whatever the task 87.0 % (+8.0 ± 1.0)."
    )
    assert "(at 0 steps and 5 steps)" in str(verdict(found((AHEAD, AHEAD), (AHEAD, AHEAD))))


@pytest.mark.parametrize(
    ("constant", "blind"), [(AHEAD, LEVEL), (LEVEL, AHEAD), (AHEAD, BEHIND), (BEHIND, AHEAD), (LEVEL, LEVEL)]
)
def test_one_control_that_does_as_well_is_enough(constant: Interval, blind: Interval) -> None:
    said = str(verdict(found((constant, constant), (blind, blind))))
    assert said.startswith(
        "Generating the update from the support set does not help on glyph-pairs (at 0 steps and 5"
    )


def test_the_numbers_are_those_of_the_column_with_the_largest_lead() -> None:
    far = (-0.2, 0.01)
    assert "): at 5 steps " in str(verdict(found((AHEAD, far), (AHEAD, far))))


def test_without_controls_there_is_no_sentence() -> None:
    whole = found((AHEAD, AHEAD), (AHEAD, AHEAD))
    for name in ("constant", "blind"):
        left = {other: cells for other, cells in whole.differences["metapeft"].items() if other != name}
        assert verdict(Results(rows=whole.rows, differences={"metapeft": left})) is None
    assert verdict(Results(rows=whole.rows)) is None


def test_a_method_may_lack_columns() -> None:
    """Nearest centroids have no inner steps; no number is made up for them."""
    protocol = Protocol("glyph-pairs", "test", "0f", 5, 5, 10, 2, 0).as_dict()
    cells = {column: Cell(0.95, 0.01, protocol={**protocol, "inner_steps": 5}) for column in COLUMNS}
    rows = {"centroids": Row(columns={"0 steps": cells["0 steps"]}), "metapeft": Row(columns=cells)}
    own = Results(rows=rows, differences={"metapeft": {"centroids": {"0 steps": AHEAD}}})
    shown = tables(own)
    assert [[*column.cells] for column in shown[0].columns[1:3]] == [
        ["95.00 ± 1.00"] * 2,
        ["-", "95.00 ± 1.00"],
    ]
    assert [column.header for column in shown[0].columns] == ["method", *COLUMNS, "numbers a task"]
    assert [[*column.cells] for column in shown[1].columns] == [["centroids"], ["-8.00 ± 1.00"], ["-"]]
