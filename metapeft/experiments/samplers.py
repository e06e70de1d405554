"""The episodes of the main job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metapeft.datasets.by_name import load_dataset
from metapeft.datasets.shell_options import reader_options
from metapeft.episodes.sampler import EpisodeSampler
from metapeft.episodes.shift import training_styles
from metapeft.experiments.config import TrainConfig
from metapeft.experiments.results import COLUMNS


@dataclass(frozen=True)
class Samplers:
    """Training, validation and test episodes, the same for all methods.

    Attributes:
        data: split -> image data set. train: episodes, plain or in a training style.
        validation, test: column -> episodes, plain ones, and shifted ones in the styles of their split.
    """

    data: dict[str, Any]
    train: EpisodeSampler
    validation: dict[str, EpisodeSampler]
    test: dict[str, EpisodeSampler]


def samplers(config: TrainConfig) -> Samplers:
    """The episodes that a configuration names.

    Raises:
        ValueError: episodes that the data cannot give. DataError: data that is missing or damaged.
    """
    options = reader_options(config.data_options, config.root)
    data = {split: load_dataset(config.data, split=split, **options) for split in ("train", "val", "test")}
    sizes = (config.ways, config.shots, config.queries)
    train = EpisodeSampler(data["train"], *sizes, seed=config.seed, shift=training_styles())
    validation, test = (
        {
            column: EpisodeSampler(data[split], *sizes, seed=config.seed + offset, shift=shift)
            for column, shift in zip(COLUMNS, (False, True))
        }
        for offset, split in enumerate(("val", "test"), 1)
    )
    return Samplers(data, train, validation, test)
