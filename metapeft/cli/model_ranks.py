"""The search for ranks of a transformers model on a file of texts, as the shell runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from metapeft.base.machine.torchvision_operators import help_torchvision
from metapeft.datasets.text_rows import class_names, read_text_rows
from metapeft.datasets.texts import TextData
from metapeft.experiments.report.bar_plot import rank_bars
from metapeft.experiments.report.page import Figure, Section, write_report
from metapeft.experiments.report.scores_plot import score_dots
from metapeft.training.rank_search.found import RankSearch
from metapeft.training.rank_search.search import search_ranks
from metapeft.updates.formats.lora import LoRA


def searched(
    model: Path,
    data: Path,
    validation: Path,
    out: Path,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    max_length: int,
    seed: int,
    settings: Mapping[str, Any],
) -> RankSearch:
    """Search, and write `ranks.json`, the trainings, `adapter/` and `report.html` into `out`; see `metapeft ranks`.

    Raises:
        ValueError: a folder that holds no model, data that cannot be read, what `search_ranks` refuses.
    """
    texts, judged = read_text_rows(data), read_text_rows(validation)
    classes = class_names([*texts, *judged])
    backbone, tokenizer = loaded(model, len(classes), seed)
    rows = [TextData(own, tokenizer, max_length, classes) for own in (texts, judged)]
    pad = getattr(tokenizer, "pad_token_id", None)
    found = search_ranks(
        backbone, *rows, format=LoRA(rank, alpha), targets=[f"*{name}" for name in targets], full=("classifier*",),
        run_dir=out, seed=seed, pad_id=0 if pad is None else pad, progress=True, **settings,
    )  # fmt: skip
    if not (out / "adapter").exists():
        found.export_peft(out / "adapter")
    facts = {"model": str(model), "data": f"{len(texts)} texts for training, {len(judged)} for validation"}
    facts |= {"method": str(settings["method"]), "time": f"{found.seconds:.0f} s"}
    write_report(out, f"Ranks of {len(found.ranks)} layers", sections(found, rank), facts)
    return found


def sections(found: RankSearch, largest: int) -> list[Section]:
    """Ranks by layer as bars, and what they were chosen by, a dot a term: scores, or AutoLoRA's weights.

    Args:
        found: of a search. largest: the rank that a layer could get.
    """
    total = sum(found.ranks.values())
    made = [
        Figure(
            rank_bars({"ranks": found.ranks}, largest), f"{total} terms in all, at most {largest} a layer."
        )
    ]
    parts = [Section("Ranks by layer", figures=made)]
    if found.scores is not None and any(bool((own > 0).any()) for own in found.scores.values.values()):
        said = "What the loss would miss if a term were not there; the largest stay."
        parts.append(Section("Scores by layer", figures=[Figure(score_dots(found.scores.values), said)]))
    elif found.logits is not None:
        weights = {name: own.softmax(0) for name, own in found.logits.items()}
        said = f"The softmax of AutoLoRA's selection variables; 1 / {largest} is where all of them began."
        parts.append(Section("Weights by layer", figures=[Figure(score_dots(weights), said)]))
    return parts


def loaded(folder: Path, classes: int, seed: int) -> tuple[torch.nn.Module, Any]:
    """A classifier and its tokenizer from a folder of transformers, nothing of which is run or downloaded."""
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"--model {folder}: a folder that save_pretrained() wrote is needed, with a config.json"
        )
    help_torchvision()
    try:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
    except ImportError as error:
        raise ImportError("--model wants transformers: pip install 'metapeft[transformers]'") from error
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of a classifier that the folder does not hold, or for other classes
        backbone = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=classes,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
        )
    return backbone.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def show(found: RankSearch, out: Path) -> None:
    """Print the ranks by layer."""
    table = Table(title=f"ranks by layer, {sum(found.ranks.values())} in all")
    table.add_column("layer")
    table.add_column("rank", justify="right")
    for name, rank in found.ranks.items():
        table.add_row(name, str(rank))
    Console().print(table)
    print(f"{out}: ranks.json, adapter/ for PEFT, report.html; {found.seconds:.0f} s")
