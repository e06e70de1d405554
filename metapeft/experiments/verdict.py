"""What a main job with its controls says, in one sentence that its intervals allow. Loads no torch."""

from __future__ import annotations

from metapeft.experiments.results import Interval, Results

OWN, CONTROLS = "metapeft", ("constant", "blind")


def verdict(found: Results) -> str | None:
    """Whether generating from the support set helps, with the numbers; None where the whole or a control is missing.

    It helps where the whole is ahead of the constant seed and of the blind generator over the same episodes, with both
    95 % intervals off zero; the numbers are those of the column where the smaller lead is largest.

    Example:
        >>> from metapeft.experiments.results import Cell, Row
        >>> rows = {name: Row(columns={"0 steps": Cell(0.9, 0.01)}) for name in ("metapeft", "constant", "blind")}
        >>> apart = {"metapeft": {"constant": {"0 steps": (-0.1, 0.01)}, "blind": {"0 steps": (0.0, 0.01)}}}
        >>> verdict(Results(rows=rows, differences=apart))[:48]
        'Generating the update from the support set does '
    """
    apart = found.differences.get(OWN, {})
    if OWN not in found.rows or any(name not in apart for name in CONTROLS):
        return None
    leads = {
        column: [ahead(apart[name][column]) for name in CONTROLS]
        for column in found.columns
        if all(column in apart[name] for name in CONTROLS)
    }
    if not leads:
        return None
    helps = {column: all(mean > half for mean, half in both) for column, both in leads.items()}
    best = max(leads, key=lambda column: (helps[column], min(mean for mean, _ in leads[column])))
    yes, no = ([column for column in leads if helps[column] is says] for says in (True, False))
    where = (
        f"at {together(yes)}" + (f", not at {together(no)}" if no else "") if yes else f"at {together(no)}"
    )
    accuracy = {name: 100 * found.rows[name].columns[best].accuracy for name in (OWN, *CONTROLS)}
    (constant, blind), data = leads[best], found.config.get("data", "these tasks")
    return (
        f"Generating the update from the support set {'helps' if yes else 'does not help'} on {data} ({where}): at "
        f"{best} {accuracy[OWN]:.1f} % of the queries are right, with a constant update {accuracy['constant']:.1f} % "
        f"(paired difference {points(constant)} points), with a generator that is shown the same whatever the task "
        f"{accuracy['blind']:.1f} % ({points(blind)})."
    )


def headline(found: Results) -> str | None:
    """What a report opens with: the verdict on generation, else where the first row stands to each reference.

    Example:
        >>> from metapeft.experiments.results import Cell, Row
        >>> rows = {name: Row(columns={"plain": Cell(0.9, 0.01)}) for name in ("maml", "centroids")}
        >>> apart = {"centroids": {"maml": {"plain": (0.02, 0.01)}}}
        >>> headline(Results(config={"data": "glyphs"}, rows=rows, differences=apart))
        'On glyphs maml is ahead of centroids at plain (+2.0 ± 1.0 points); 90.0 % of its queries are right at plain.'
    """
    if (said := verdict(found)) is not None or not found.columns:
        return said
    name = OWN if OWN in found.rows else max(found.rows, key=lambda name: _highest(found, name))
    data, column = found.config.get("data", "these tasks"), found.columns[0]
    sentences = []
    for reference, rows in found.differences.items():
        groups: dict[str, list[str]] = {}
        for where, (mean, half) in rows.get(name, {}).items():
            word = "level with" if abs(mean) <= half else "ahead of" if mean > 0 else "behind"
            groups.setdefault(word, []).append(f"{where} ({points((mean, half))} points)")
        sentences += [f"{word} {reference} at {together(places)}" for word, places in groups.items()]
    cell = found.rows[name].columns.get(column)
    right = "" if cell is None else f"{100 * cell.accuracy:.1f} % of its queries are right at {column}."
    if sentences:
        return f"On {data} {name} is {', '.join(sentences)}; {right}".rstrip("; ")
    return f"On {data} {name} has the highest mean of what was compared: {right}" if right else None


def _highest(found: Results, name: str) -> float:
    cell = found.rows[name].columns.get(found.columns[0])
    return -1.0 if cell is None else cell.accuracy


def ahead(difference: Interval) -> tuple[float, float]:
    """By how much the whole is ahead of a row of which the difference to it is known."""
    mean, half = difference
    return 0.0 - mean, half


def points(lead: Interval) -> str:
    """A difference in points, with the half-width of its interval.

    Example:
        >>> points((0.071, 0.0083))
        '+7.1 ± 0.8'
    """
    mean, half = lead
    return f"{100 * mean:+.1f} ± {100 * half:.1f}"


def together(names: list[str]) -> str:
    """Several columns in one sentence.

    Example:
        >>> together(["0 steps", "1 step", "5 steps"])
        '0 steps, 1 step and 5 steps'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
