"""The search for one rank a layer: of any backbone, by three methods."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from metapeft.base.files import write_atomically
from metapeft.base.machine.devices import usable
from metapeft.training.finetuning.settings import FineTuning
from metapeft.training.finetuning.to_train import to_train
from metapeft.training.rank_search.autolora import SelectionSearch, warn_if_still
from metapeft.training.rank_search.budget import Budget
from metapeft.training.rank_search.fitting import Fitting, cut, singular_terms, stage
from metapeft.training.rank_search.found import RankSearch
from metapeft.training.rank_search.methods import (
    AutoLoRARanks,
    FisherRanks,
    Method,
    PruneRanks,
    resolved_method,
)
from metapeft.training.rank_search.pruning import pruned
from metapeft.updates.attached import AttachedModel
from metapeft.updates.formats.ranking import ranks as rounded
from metapeft.updates.formats.scores import Scores
from metapeft.updates.formats.selection import costs
from metapeft.updates.targets import Formats, Targets


def search_ranks(
    model: nn.Module | AttachedModel,
    train: Any,
    validation: Any,
    *,
    format: Formats = None,
    targets: Targets = "all",
    full: Sequence[str] = (),
    method: str | Method = "fisher",
    total: int | None = None,
    parameters: int | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 32,
    micro_batch: int | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    lr: float = 1e-3,
    schedule: Any = None,
    warmup: float = 0.0,
    options: Mapping[str, Any] | None = None,
    clip: float | None = None,
    loss: Callable[..., Any] = F.cross_entropy,
    bucket: bool = True,
    pad_id: int = 0,
    autocast: torch.dtype | None = None,
    device: torch.device | str | None = None,
    run_dir: str | Path | None = None,
    progress: bool = False,
    seed: int = 0,
) -> RankSearch:
    """Choose a rank for every layer: train at one rank everywhere, and find out which terms are worth it.

    Args:
        model, train, validation, format, targets, full: as `mp.finetune` takes them; the format's rank is the largest
            that a layer can get. The backbone is not changed.
        method: `"fisher"` (one training; needs a budget), `"prune"` (about two; chooses the budget where none is
            given), `"autolora"` (the paper's), or `mp.FisherRanks(...)`, `mp.PruneRanks(...)`, `mp.AutoLoRARanks(...)`.
        total: sum of all ranks, met exactly. parameters: budget of parameters, never exceeded.
        steps, epochs, batch_size, micro_batch, optimizer, lr, schedule, warmup, options, clip, loss, bucket, pad_id,
            autocast, device, seed: of the training, as `mp.finetune` takes them.
        run_dir: a folder for the search's trainings; a search that is there goes on, to the same end, bit for bit.
        progress: a bar of each training.

    Returns: a `RankSearch`: `.ranks .scores .curve .factors .seconds .formats() .lora_config() .export_peft(folder)`.

    Raises:
        ValueError: an unknown method, a budget that is missing or too large, and what `mp.finetune` refuses.

    Warns:
        UserWarning: AutoLoRA's selection variables have not moved.

    Example:
        >>> import metapeft as mp
        >>> x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        >>> net = nn.Linear(4, 4, bias=False)
        >>> y = net(x).detach() + x[:, :1] @ torch.ones(1, 4) + 0.1 * x.flip(0, 1)  # an update of rank 1, and noise
        >>> train, validation = (x[:48], y[:48]), (x[48:], y[48:])
        >>> found = search_ranks(
        ...     net, train, validation, format=mp.LoRA(3), method="prune", steps=100, lr=0.05, loss=F.mse_loss
        ... )
        >>> found.ranks
        {'weight': 1}
    """
    began, chosen, budget = time.monotonic(), resolved_method(method), Budget(total, parameters)
    given: dict[str, Any] = {
        "steps": steps, "epochs": epochs, "batch_size": batch_size, "micro_batch": micro_batch, "optimizer": optimizer,
        "lr": lr, "schedule": schedule, "warmup": warmup, "options": options, "clip": clip, "loss": loss,
        "bucket": bucket, "pad_id": pad_id, "autocast": autocast, "seed": seed,
    }  # fmt: skip
    settings = FineTuning(**given)
    if validation is None:
        raise ValueError("validation=None: ranks are chosen on data that the update was not trained on")
    attached = to_train(model, format, targets, full, seed, None if device is None else usable(device))
    terms = {name: site.format.terms for name, site in attached.sites.items() if site.format.terms}
    if not terms:
        raise ValueError("the model has no update with terms: search with LoRA, CP or TensorRing")
    budget.check(terms)
    if isinstance(chosen, FisherRanks) and not budget.given:
        raise ValueError('method="fisher" needs total= or parameters=; method="prune" chooses how many terms')
    folder = None if run_dir is None else Path(run_dir)
    before = _seconds_before(folder)
    fitting = Fitting(attached, train, validation, {**given, "progress": progress}, folder)
    if isinstance(chosen, AutoLoRARanks):
        found = _autolora(fitting, chosen, budget, settings)
    elif isinstance(chosen, PruneRanks):
        found = _prune(fitting, chosen, budget)
    else:
        found = _fisher(fitting, chosen, budget)
    found.seconds = before + time.monotonic() - began
    if folder is not None:
        said = {"ranks": found.ranks, "curve": found.curve, "seconds": found.seconds}
        write_atomically(folder / "ranks.json", f"{json.dumps(said, indent=2)}\n".encode())
    return found


def _fisher(fitting: Fitting, method: FisherRanks, budget: Budget) -> RankSearch:
    model = fitting.model
    factors = singular_terms(model, fitting.fit("fit").factors)
    scores = fitting.scored(factors, method.kind, method.examples)
    ranks = budget.ranks(scores)
    terms = scores.kept(ranks)
    curve = [stage(fitting.validated(factors), sum(map(len, scores.values.values())))]
    curve.append(stage(fitting.validated(cut(model, factors, terms)), sum(ranks.values())))
    return RankSearch(model, ranks, terms, factors, scores, curve, 0.0)


def _prune(fitting: Fitting, method: PruneRanks, budget: Budget) -> RankSearch:
    steps = fitting.steps
    (terms, factors, scores), curve = pruned(fitting, method, budget, steps)
    ranks = {name: len(own) for name, own in terms.items()}
    return RankSearch(fitting.model, ranks, terms, factors, scores, curve, 0.0)


def _autolora(fitting: Fitting, method: AutoLoRARanks, budget: Budget, settings: FineTuning) -> RankSearch:
    model = fitting.model
    search = SelectionSearch(model, fitting.read("train"), fitting.read("validation"), settings, method)
    if fitting.run_dir is None:
        search.run()
    else:
        search.run_in(fitting.run_dir / "autolora")
    logits = {name: value.detach() for name, value in search.logits.items()}
    if not budget.given:
        warn_if_still(logits)
        ranks = rounded(logits)
    elif budget.parameters is not None:
        ranks = rounded(logits, "parameters", total=budget.parameters, costs=costs(model))
    else:
        ranks = rounded(logits, "total", total=budget.total)
    factors = search.selection(model.sites, search.lower.chosen(), logits)
    terms = Scores(logits, costs(model)).kept(ranks)
    return RankSearch(model, ranks, terms, factors, None, search.log, 0.0, logits)


def _seconds_before(folder: Path | None) -> float:
    """What a search that is at its end already says of its time."""
    if folder is None or not (folder / "ranks.json").exists():
        return 0.0
    return float(json.loads((folder / "ranks.json").read_text(encoding="utf-8"))["seconds"])
