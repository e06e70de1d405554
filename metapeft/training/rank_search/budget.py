"""From scores to the terms that stay, under a budget of terms or of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from metapeft.base.arguments import whole
from metapeft.updates.formats.ranking import ranks
from metapeft.updates.formats.scores import Scores


@dataclass(frozen=True)
class Budget:
    """A number of terms, or of parameters; none of them where the method chooses how many.

    Example:
        >>> Budget(total=3, parameters=5)
        Traceback (most recent call last):
        ValueError: total=3, parameters=5: one of them is the budget
    """

    total: int | None = None
    parameters: int | None = None

    def __post_init__(self) -> None:
        if self.total is not None and self.parameters is not None:
            raise ValueError(f"total={self.total}, parameters={self.parameters}: one of them is the budget")
        for name in ("total", "parameters"):
            if getattr(self, name) is not None:
                whole(0, **{name: getattr(self, name)})

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return self.total is not None or self.parameters is not None

    def check(self, terms: Mapping[str, int]) -> None:
        """Raise ValueError for more terms than there are."""
        most = sum(terms.values())
        if self.total is not None and self.total > most:
            raise ValueError(
                f"total={self.total}: the updates have {most} terms in all, that is the largest budget"
            )

    def ranks(self, scores: Scores) -> dict[str, int]:
        """One rank a layer within the budget."""
        if self.parameters is not None:
            return ranks(scores, "parameters", total=self.parameters)
        return ranks(scores, "total", total=self.total)
