"""Trainings within a search: with the same settings, in folders of their own, from one update to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metapeft.training.finetuning.fit import finetune
from metapeft.training.finetuning.fitted import Fitted
from metapeft.training.finetuning.items import read_rows
from metapeft.training.finetuning.order import epoch_of_batches
from metapeft.training.finetuning.rows import Rows
from metapeft.training.rank_search.scoring import Gated, scores
from metapeft.updates.attached import AttachedModel
from metapeft.updates.formats.scores import Scores
from metapeft.updates.singular_terms import canonical


@dataclass
class Fitting:
    """What all trainings of a search share.

    Args:
        model: attached. train, validation: data as `mp.finetune` takes it. options: of `mp.finetune`.
        run_dir: where each training has a folder; None to keep nothing.
    """

    model: AttachedModel
    train: Any
    validation: Any
    options: Mapping[str, Any]
    run_dir: Path | None = None
    rows: dict[str, Rows] = field(default_factory=dict)

    def fit(self, name: str, steps: int | None = None, start: Mapping[str, Tensor] | None = None) -> Fitted:
        """Train an update, or go on with the folder of that name.

        Args:
            steps: None for those of the search. start: where from; None for the model's own start.
        """
        own: dict[str, Any] = dict(self.options)
        if steps is not None:
            own.update(steps=steps, epochs=None)
        if self.run_dir is not None:
            own.update(run_dir=self.run_dir / name, resume=True)
        found: Fitted = finetune(self.model, self.train, start=start, **own)
        return found

    @property
    def steps(self) -> int:
        """Steps of the first training."""
        rows = self.read("train")
        size = rows.batch_size or self.options["batch_size"]
        return int(self.options["steps"] or self.options["epochs"] * -(-len(rows) // size))

    def read(self, name: str) -> Rows:
        """The rows of `"train"` or `"validation"`."""
        if name not in self.rows:
            self.rows[name] = read_rows(
                getattr(self, name), self.model.module, self.options.get("pad_id", 0), name
            )
        return self.rows[name]

    def batches(self, name: str, examples: int | None = None) -> list[list[int]]:
        """Numbers of rows in batches, of the first `examples` or of all, rows of one length together."""
        rows = self.read(name)
        order = range(min(len(rows), examples or len(rows)))
        lengths = rows.lengths
        chosen = list(order) if lengths is None else sorted(order, key=lambda row: lengths[row])
        size = rows.batch_size or self.options["batch_size"]
        return [
            [chosen[i] for i in batch] for batch in epoch_of_batches(len(chosen), size, 0, 0, shuffled=False)
        ]

    def scored(self, factors: Mapping[str, Tensor], kind: str, examples: int | None) -> Scores:
        """Scores of an update's terms on training rows."""
        rows = self.read("train")
        found = (rows.batch(batch) for batch in self.batches("train", examples))
        return scores(self.model, factors, found, self.options["loss"], kind, self.options["autocast"])

    @torch.no_grad()
    def validated(self, factors: Mapping[str, Tensor]) -> Tensor:
        """The loss of every validation row, `(n,)`, in the order of `batches("validation")`."""
        gated = Gated(self.model, factors, self.options["loss"], self.options["autocast"])
        rows = self.read("validation")
        return (
            torch.cat([gated.losses(rows.batch(batch)) for batch in self.batches("validation")])
            .double()
            .cpu()
        )


def singular_terms(model: AttachedModel, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The canonical form of an update that was trained, without its graph."""
    return {name: value.detach() for name, value in canonical(model, factors).items()}


def stage(losses: Tensor, terms: int) -> dict[str, Any]:
    """A row of a curve: terms, mean validation loss and its standard error.

    Example:
        >>> stage(torch.tensor([1.0, 3.0], dtype=torch.float64), 4)
        {'terms': 4, 'loss': 2.0, 'error': 1.0}
    """
    return {"terms": terms, "loss": float(losses.mean()), "error": float(losses.std()) / len(losses) ** 0.5}


def cut(
    model: AttachedModel, factors: Mapping[str, Tensor], terms: Mapping[str, list[int]]
) -> dict[str, Tensor]:
    """The update without all terms but these, of the same shapes: what is left out is 0, and stays so in training.

    Where A's and B's part of a term are both 0, so are their gradients.
    """
    result = dict(factors)
    for name, kept in terms.items():
        format = model.sites[name].format
        local = {key: factors[f"{name}.{key}"] for key in format.shapes(model.sites[name].geometry)}
        result.update({f"{name}.{key}": value for key, value in format.silenced(local, kept).items()})
    return result
