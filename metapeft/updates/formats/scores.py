"""What each term of each update is worth: the input of `mp.ranks`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Scores of terms, made by `mp.scores`; what is left out first has the smallest.

    Attributes:
        values: parameter -> `(terms,)`, in the order of the factors' terms.
        costs: parameter -> parameters a term.
        kind: `"fisher"` or `"ablation"`.
        examples: how many they were measured on.

    Example:
        >>> import torch
        >>> import metapeft as mp
        >>> found = Scores({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0])}, {"a": 5, "b": 9})
        >>> mp.ranks(found, "total", total=2)
        {'a': 1, 'b': 1}
    """

    values: Mapping[str, Tensor]
    costs: Mapping[str, int]
    kind: str = "fisher"
    examples: int = 0

    def kept(self, ranks: Mapping[str, int]) -> dict[str, list[int]]:
        """The terms that stay at chosen ranks: of each layer those of the largest scores, in the order of terms.

        Example:
            >>> import torch
            >>> Scores({"a": torch.tensor([1.0, 3.0, 2.0])}, {"a": 5}).kept({"a": 2})
            {'a': [1, 2]}
        """
        return {
            name: sorted(value.argsort(descending=True, stable=True)[: ranks[name]].tolist())
            for name, value in self.values.items()
        }
