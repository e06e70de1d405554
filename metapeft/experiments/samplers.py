"""The episodes of the main job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metapeft.datasets.by_name import load_dataset
from metapeft.datasets.shell_options import reader_options
from metapeft.episodes.sampler import EpisodeSampler
from metapeft.episodes.shift import Shift, training_styles
from metapeft.experiments.config import PAIRS, TEXTS, TrainConfig


@dataclass(frozen=True)
class Column:
    """What stands in one column of the table.

    Attributes:
        name: its title. validation, test: episodes.
        steps: of the inner loop; None for as many as validation chooses.
    """

    name: str
    validation: EpisodeSampler
    test: EpisodeSampler
    steps: int | None = None


@dataclass(frozen=True)
class Samplers:
    """Training, validation and test episodes, the same for all methods.

    Attributes:
        data: split -> images or texts. train: episodes of training.
        columns: plain episodes, and of images shifted ones in the styles of their split; on pairs the same episodes
            at several numbers of inner steps.
    """

    data: dict[str, Any]
    train: EpisodeSampler
    columns: tuple[Column, ...]

    @property
    def validation(self) -> EpisodeSampler:
        """The episodes on which training settings are chosen."""
        return self.columns[-1].validation

    @property
    def tests(self) -> dict[str, EpisodeSampler]:
        """Name -> different test episodes."""
        if self.columns[0].steps is None:
            return {column.name: column.test for column in self.columns}
        return {str(self.columns[0].test.shift.name): self.columns[0].test}


def samplers(config: TrainConfig) -> Samplers:
    """The episodes that a configuration names.

    Raises:
        ValueError: episodes that the data cannot give. DataError: data that is missing or damaged.
    """
    options = reader_options(config.data_options, config.root)
    data = {split: load_dataset(config.data, split=split, **options) for split in ("train", "val", "test")}
    sizes = (config.ways, config.shots, config.queries)
    pairs, texts = swaps(config.data), config.data in TEXTS
    shift = False if texts else pairs or training_styles()
    train = EpisodeSampler(data["train"], *sizes, seed=config.seed, shift=shift, small=config.small)

    def column(name: str, shift: Any, steps: int | None = None) -> Column:
        validation, test = (
            EpisodeSampler(data[split], *sizes, seed=config.seed + offset, shift=shift, small=config.small)
            for offset, split in enumerate(("val", "test"), 1)
        )
        return Column(name, validation, test, steps)

    if texts:
        columns = [column("plain", False)]
    elif pairs is None:
        columns = [column("plain", False), column("shifted", True)]
    else:
        # none among them always: what has no inner loop stands there
        counts = dict.fromkeys([0, *config.inner_steps])
        columns = [column(f"{steps} step{'s' * (steps != 1)}", pairs, steps) for steps in counts]
    return Samplers(data, train, tuple(columns))


def swaps(data: str) -> Shift | None:
    """What decides for each episode of pairs which half counts; None for other data.

    Example:
        >>> swaps("omniglot-pairs"), swaps("glyphs")
        (Shift(['plain', 'swap']), None)
    """
    return Shift(["plain", "swap"]) if data in PAIRS else None
