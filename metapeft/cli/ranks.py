"""`metapeft ranks`: what the selection variables of a run say, or a search for the ranks of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from metapeft.base.whole_numbers import Whole
from metapeft.cli import named_options

_OF_RUNS = ("run", "checkpoint")


def ranks(
    run: Path | None = None,
    *,
    total: Whole | None = None,
    checkpoint: str | None = None,
    model: Path | None = None,
    data: Path | None = None,
    validation: Path | None = None,
    out: Path | None = None,
    method: Literal["fisher", "prune", "autolora"] = "fisher",
    parameters: Whole | None = None,
    rank: Whole = 8,
    alpha: float = 16.0,
    targets: tuple[str, ...] = ("query", "value"),
    epochs: Whole = 3,
    batch_size: Whole = 32,
    lr: float = 5e-4,
    max_length: Whole = 128,
    seed: Whole = 0,
) -> int:
    """Round a run's selection variables to ranks by every rule, or search the ranks of a transformers model.

    To train anew at the ranks of a run: metapeft bench --methods metapeft,retrained-total.

    Parameters
    ----------
    run
        Folder of a training run with selection variables, such as runs/x/metapeft.
    total
        Budget of terms; of a run default half of all.
    checkpoint
        Of a run: best (on validation episodes) or latest; default best where there is one.
    model
        Folder of a transformers model and its tokenizer, in place of a run.
    data
        Its training texts: .jsonl or .csv with text, label and perhaps text_pair.
    validation
        Its validation texts.
    out
        Folder of the search; one that was stopped goes on.
    method
        How ranks are found: fisher and its budget, prune, or autolora.
    parameters
        Budget of parameters in place of terms.
    rank
        Largest rank of a layer.
    alpha
        Numerator of the scale, alpha / rank.
    targets
        Ends of the names of the layers, such as query.
    epochs
        Of the training.
    batch_size
        Texts a step.
    lr
        Rate of AdamW, falling to 0.
    max_length
        Tokens of a text at most.
    seed
        Of the order, the start and a new classifier.
    """
    given = named_options.options()
    if model is not None:
        return _searched(
            model, data, validation, out, rank, alpha, targets, max_length, seed, given,
            {
                "method": method, "total": total, "parameters": parameters, "epochs": epochs, "batch_size": batch_size,
                "lr": lr, "schedule": "linear",
            },
        )  # fmt: skip
    odd = sorted(given - {*_OF_RUNS, "total", "config"})
    if odd:
        raise ValueError(f"--{odd[0].replace('_', '-')} belongs to a search: name a --model")
    if run is None:
        raise ValueError(
            "RUN is missing: metapeft ranks runs/x/metapeft; or give a --model and its --data, to search ranks for it"
        )
    return _rounded(run, total, checkpoint)


def _searched(
    model: Path,
    data: Path | None,
    validation: Path | None,
    out: Path | None,
    rank: int,
    alpha: float,
    targets: tuple[str, ...],
    max_length: int,
    seed: int,
    given: frozenset[str],
    settings: dict[str, object],
) -> int:
    from metapeft.cli.model_ranks import searched, show

    odd = sorted(given & {*_OF_RUNS})
    if odd:
        raise ValueError(f"--{odd[0]} belongs to a run, not to --model")
    if data is None or validation is None or out is None:
        raise ValueError("--model needs --data and --validation, files of texts, and --out, a folder")
    show(searched(model, data, validation, out, rank, alpha, targets, max_length, seed, settings), out)
    return 0


def _rounded(run: Path, total: int | None, checkpoint: str | None) -> int:
    from rich.console import Console
    from rich.table import Table

    from metapeft.cli.right_folder import run_wanted
    from metapeft.training.runs.learner_in_run import load
    from metapeft.updates.formats.moved_weights import unmoved
    from metapeft.updates.formats.ranking import ranks as rounded_to

    with run_wanted(run, "learner"):
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
    if said := unmoved(logits):
        Console(stderr=True, soft_wrap=True).print(said, markup=False, highlight=False)
    return 0
