"""`metapeft ranks`: what the selection variables of a run say."""

from __future__ import annotations

from pathlib import Path

from metapeft.base.whole_numbers import Whole


def ranks(run: Path, *, total: Whole | None = None, checkpoint: str | None = None) -> int:
    """Round a run's selection variables to ranks, by every rule that needs nothing else.

    To train anew at such ranks: metapeft bench --methods metapeft --methods retrained-total.

    Parameters
    ----------
    run
        Folder of a training run with selection variables, such as runs/x/metapeft.
    total
        Budget of terms; default half of all.
    checkpoint
        best (on validation episodes) or latest; default best where there is one.
    """
    from rich.console import Console
    from rich.table import Table

    from metapeft.training.runs.learner_in_run import load
    from metapeft.updates.formats.ranking import ranks as rounded_to

    learner = load(run, checkpoint=checkpoint)
    logits = {name: learner.variables[f"selection.{name}"] for name in learner.selected}
    if not logits:
        raise ValueError(
            f"{run} has no selection variables: train with selection, such as the method metapeft"
        )
    budget = sum(len(value) for value in logits.values()) // 2 if total is None else total
    found = {
        "threshold": rounded_to(logits, "threshold"),
        f"total {budget}": rounded_to(logits, "total", total=budget),
        "uniform": rounded_to(logits, "uniform", total=budget),
    }
    table = Table(title="ranks by layer")
    table.add_column("layer")
    table.add_column("weights", justify="right")
    for rule in found:
        table.add_column(rule, justify="right")
    for name, value in logits.items():
        weights = " ".join(f"{weight:.2f}" for weight in value.softmax(0).tolist())
        table.add_row(name, weights, *[str(rounded[name]) for rounded in found.values()])
    Console().print(table)
    return 0
