"""What a run of the main job keeps in its `results.json`: the one place that knows how that is laid out.

Loads no torch. Whatever an older version left out has a default here, what a later one adds is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from metapeft.base.errors import RunError, stored_in
from metapeft.base.files import write_atomically
from metapeft.base.reading import read_json, sealed

Interval = Sequence[float]  # a mean, and the half-width of its 95 % t-interval
Costs = dict[str, dict[str, tuple[float, int | None]]]


@dataclass(frozen=True)
class Cell:
    """One method on the test episodes of one column.

    Attributes:
        accuracy: the mean in [0, 1]. ci95: half-width of its interval. values: of each episode.
        diverged: episodes in which adaptation diverged, which count as wrong.
        protocol: what was measured on what, as `Protocol.as_dict` says it.
    """

    accuracy: float
    ci95: float
    diverged: int = 0
    protocol: dict[str, Any] | None = None
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        about: a line about it. parameters: numbers that a task has of its own, beside a head.
        chosen: what validation chose: `"scale"` of the logits, settings for `"train"`, inner steps by column.
        ranks: rule -> parameter -> rank. log: of its training, a row a logged step. columns: column -> cell.
    """

    about: str = ""
    parameters: int = 0
    chosen: dict[str, Any] = field(default_factory=dict)
    ranks: dict[str, dict[str, int]] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    columns: dict[str, Cell] = field(default_factory=dict)

    def steps(self, column: str) -> int | None:
        """The number of inner steps that validation chose for a column; None where there was no choice.

        Example:
            >>> Row(chosen={"scale": 1.0, "plain": {"steps": 5}}).steps("plain")
            5
        """
        found = self.chosen.get(column)
        return None if found is None else int(found["steps"])


@dataclass(frozen=True)
class Regression:
    """A regression: method -> number of inner steps -> mean squared error, and some fits to look at.

    Attributes:
        name: of the data set; earlier versions knew one alone.
        differences: method -> number of inner steps -> its error minus that of the whole method, paired.
    """

    rows: dict[str, dict[str, Interval]]
    protocol: str
    fits: list[dict[str, list[float]]]
    name: str = "sinusoid"
    differences: dict[str, dict[str, Interval]] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """Everything that tables and the report need.

    Attributes:
        config: the settings of the run. rows: method -> what came out for it.
        differences: reference -> method -> column -> paired difference over the same episodes.
        sr_log: of the standard retraining that all methods start from. regression: the functions.
        seconds: that the last call took. environment: what it ran on.
        costs: stage or method -> what it did -> seconds, and bytes held at most (None where nobody tells).

    Example:
        >>> stored = {"rows": {"maml": {"columns": {"plain": {"accuracy": 0.9, "ci95": 0.01}}}}}
        >>> Results.from_json(stored).rows["maml"].columns["plain"].accuracy
        0.9
    """

    config: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    differences: dict[str, dict[str, dict[str, Interval]]] = field(default_factory=dict)
    sr_log: list[dict[str, Any]] = field(default_factory=list)
    regression: Regression | None = None
    seconds: float = 0.0
    environment: dict[str, Any] = field(default_factory=dict)
    costs: Costs = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """The names of all columns; a method may lack some."""
        return list(dict.fromkeys(column for row in self.rows.values() for column in row.columns))

    def as_json(self) -> dict[str, Any]:
        """The content of `results.json`."""
        found = asdict(self)
        if self.regression is None:
            del found["regression"]
        return found

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Results:
        """The results that a file holds; AttributeError, KeyError or TypeError for something else."""
        rows = {name: _row(row) for name, row in stored["rows"].items()}
        kept = stored.get("regression", stored.get("sinusoid"))  # as earlier versions named it
        regression = None if kept is None else Regression(**_known(Regression, kept))
        return cls(**{**_known(cls, stored), "rows": rows, "regression": regression})


def read(path: Path) -> Results:
    """The results in a file.

    Raises:
        RunError: a file that is no JSON or holds something else; the message says how to write it again.
    """
    again = f"metapeft train --out {path.parent} --resume"
    try:
        stored = read_json(path)
        stored["rows"].items()
    except (RunError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged ({error}): {again}") from error
    with stored_in(path):
        return Results.from_json(stored)


def with_costs_before(path: Path, costs: Costs) -> Costs:
    """The costs of a call, with those that an earlier one wrote of what this one did not do again."""
    try:
        before = read(path).costs
        return {stage: before.get(stage, {}) | costs.get(stage, {}) for stage in {**before, **costs}}
    except (RunError, TypeError, AttributeError):
        return costs


def write(path: Path, results: Results) -> None:
    """Write what `read` reads."""
    write_atomically(path, (json.dumps(sealed(results.as_json()), indent=1) + "\n").encode())


def _row(stored: Mapping[str, Any]) -> Row:
    columns = {column: Cell(**_known(Cell, cell)) for column, cell in stored.get("columns", {}).items()}
    return Row(**{**_known(Row, stored), "columns": columns})


def _known(kind: Any, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Those entries of an object of JSON that a class has a field for."""
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in stored.items() if name in names}
