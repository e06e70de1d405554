"""What a search for ranks comes to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from metapeft.updates.attach_model import attach
from metapeft.updates.attached import AttachedModel
from metapeft.updates.factors import by_parameter
from metapeft.updates.formats.format import Format
from metapeft.updates.formats.lora import LoRA
from metapeft.updates.formats.scores import Scores
from metapeft.updates.formats.selection import at_ranks
from metapeft.updates.peft_export import export_peft
from metapeft.updates.peft_ranks import lora_config


class RankSearch:
    """One rank a layer, made by `mp.search_ranks`.

    Attributes:
        ranks: parameter -> rank.
        scores: of the terms that were chosen from; None for AutoLoRA, which has none.
        logits: parameter -> `(k,)`, AutoLoRA's selection variables; None else.
        curve: a dict a stage or logged step: of stages `terms`, validation `loss` and its standard `error`.
        factors: of the chosen ranks, `name -> (1, ...)`, as a model attached with `formats()` takes them: what is left
            of the search's own update, to go on from or to export.
        seconds: that it took, here and in the runs before that it went on from.

    Example:
        >>> import torch
        >>> import metapeft as mp
        >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        >>> data = (x, x @ torch.tensor([[1.0], [0.0], [0.0]]))
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
        >>> loss = torch.nn.functional.mse_loss
        >>> found = mp.search_ranks(net, data, data, format=mp.LoRA(1), total=1, steps=30, loss=loss)
        >>> sum(found.ranks.values()), list(found.formats()) == ["0.weight", "1.weight"]
        (1, True)
    """

    def __init__(
        self,
        model: AttachedModel,
        ranks: Mapping[str, int],
        terms: Mapping[str, list[int]],
        factors: Mapping[str, Tensor],
        scores: Scores | None,
        curve: list[dict[str, Any]],
        seconds: float,
        logits: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model, self.ranks, self.scores = model, dict(ranks), scores
        self.curve, self.seconds = curve, seconds
        self.logits = None if logits is None else dict(logits)
        self.factors = kept(model, factors, terms)

    def formats(self) -> dict[str, Format]:
        """Formats for training at these ranks: parameter -> format, for `mp.attach`; what is full stays so."""
        return at_ranks(self.model, self.ranks)

    def attached(self) -> AttachedModel:
        """The backbone with updates of these ranks, which `.factors` belong to."""
        formats: Mapping[Any, Format] = self.formats()
        return attach(self.model.module, formats, classifier=self._classifier(), seed=self.model.seed)

    def lora_config(self, **options: Any) -> Any:
        """`peft.LoraConfig` of these ranks, see `mp.lora_config`; raises ValueError where alphas differ by layer."""
        formats = [self.model.sites[name].format for name in self.ranks]
        alphas = {format.alpha for format in formats if isinstance(format, LoRA)}
        if len(alphas) != 1:
            raise ValueError(
                f"the layers have alphas {sorted(map(str, alphas))}: call mp.lora_config(ranks, alpha=)"
            )
        return lora_config(self.ranks, alphas.pop(), **options)

    def export_peft(self, folder: str | Path) -> None:
        """Write `.factors` as an adapter folder that PEFT loads, layers of rank 0 listed beside it."""
        export_peft(self.attached(), {name: value[0] for name, value in self.factors.items()}, folder)

    def _classifier(self) -> str | None:
        return self.model.classifier if self.model.classifier_is_certain else "auto"


def kept(
    model: AttachedModel, factors: Mapping[str, Tensor], terms: Mapping[str, list[int]]
) -> dict[str, Tensor]:
    """Factors of an update with some of its terms, in the formats of that many.

    Args:
        factors: `name -> (1, ...)`. terms: parameter -> numbers of the terms that stay.

    Example:
        >>> import torch
        >>> import metapeft as mp
        >>> model = mp.attach(torch.nn.Linear(4, 3), mp.LoRA(2))
        >>> kept(model, model.factors(), {"weight": [1]})["weight.A"].shape
        torch.Size([1, 1, 4])
    """
    result = {name: value.detach() for name, value in factors.items()}
    for name, own in by_parameter(model.sites, factors).items():
        if name in terms:
            chosen = model.sites[name].format.keep(own, terms[name])
            result.update({f"{name}.{key}": value.detach() for key, value in chosen.items()})
    return result
