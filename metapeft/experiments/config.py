"""The settings of the main job, as the shell and a configuration file give them. Loads no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from metapeft.base.arguments import number, whole
from metapeft.base.machine.byte_units import parse_bytes
from metapeft.base.whole_numbers import Whole
from metapeft.datasets.shell_options import reader_options
from metapeft.datasets.table import registry as datasets

BackboneName = Literal["conv4", "resnet12", "mixer", "vit"]
DtypeName = Literal["float32", "float64"]
AutocastName = Literal["bfloat16"]
AutocastOrOff = Literal["bfloat16", "off"]  # off: not that of the run


@dataclass(frozen=True)
class TrainConfig:
    """Everything that the outcome of `metapeft train` depends on.

    Parameters
    ----------
    data
        Data set: glyphs and glyph-pairs (embedded, no download), omniglot, miniimagenet or folder.
    root
        Where the data lies; default $METAPEFT_DATA.
    data_options
        What its reader takes beside that, as name=value: split_by=characters, size=40.
    methods
        Which methods to compare; see `metapeft train --list`.
    ways
        Classes an episode, N.
    shots
        Support images a class, K.
    queries
        Query images a class, Q.
    backbone
        Backbone, with random weights.
    width
        Its width.
    rank
        Rank of the updates.
    pretrain_steps
        Steps of standard retraining, 128 images each, that all methods start from.
    steps
        Outer steps of every method, the continued retraining of the baselines included.
    tasks_per_step
        Episodes an outer step.
    lr
        Outer rate of factors, generator, selection and inner rates.
    weights_lr
        Outer rate of the backbone's weights.
    inner_lrs
        Inner rates to choose from on validation classes.
    inner_steps
        Numbers of inner steps to choose from on validation classes; training takes the one nearest to 5.
    episodes
        Test episodes of each column.
    validation_episodes
        Validation episodes for every choice.
    sinusoid_steps
        Outer steps of the sinusoid regression; 0 leaves it out.
    seed
        Seed of everything.
    threads
        Threads of torch; 0 leaves torch's own choice.
    memory
        What a process may hold, such as 8GiB; default what is free. Tasks go through in chunks that fit.
    device
        Where models are run: cpu, cuda (under torchrun the GPU of the local rank) or cuda:1; default the CPU.
    dtype
        Type of weights, inner variables and losses; default float32.
    autocast
        Forwards in bfloat16, with all else in float32; default none.
    compiled
        Compute with compiled kernels where they fit: about twice as fast, needs a C++ compiler.
    """

    data: str = "glyphs"
    root: Path | None = None
    data_options: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("metapeft", "lora-ml", "sr+lora", "metalora-cp", "centroids")
    ways: Whole = 5
    shots: Whole = 1
    queries: Whole = 10
    backbone: BackboneName = "conv4"
    width: Whole = 32
    rank: Whole = 4
    pretrain_steps: Whole = 250
    steps: Whole = 80
    tasks_per_step: Whole = 4
    lr: float = 1e-3
    weights_lr: float = 3e-4
    inner_lrs: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    inner_steps: tuple[Whole, ...] = (1, 3, 5, 10)
    episodes: Whole = 120
    validation_episodes: Whole = 24
    sinusoid_steps: Whole = 800
    seed: Whole = 0
    threads: Whole = 0
    memory: str | None = None
    device: str | None = None
    dtype: DtypeName | None = None
    autocast: AutocastName | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        datasets.check(self.data)
        reader_options(self.data_options)
        if self.data == "sinusoid":
            raise ValueError(
                "data='sinusoid' has no classes: the main job fits sinusoids by itself, at its end"
            )
        positive = (
            "ways", "shots", "queries", "width", "rank", "pretrain_steps", "steps", "tasks_per_step", "episodes",
            "validation_episodes",
        )  # fmt: skip
        whole(**{name: getattr(self, name) for name in positive})
        whole(0, sinusoid_steps=self.sinusoid_steps, seed=self.seed, threads=self.threads)
        number(lr=self.lr, weights_lr=self.weights_lr, above=True)
        if self.episodes < 2:
            raise ValueError("episodes=1: an interval needs 2 at least")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods={self.methods} names one twice")
        if not self.methods or not self.inner_lrs or not self.inner_steps:
            raise ValueError("methods, inner_lrs and inner_steps each need at least one entry")
        rates: dict[str, Any] = {f"inner_lrs[{place}]": rate for place, rate in enumerate(self.inner_lrs)}
        number(above=True, **rates)
        steps: dict[str, Any] = {
            f"inner_steps[{place}]": count for place, count in enumerate(self.inner_steps)
        }
        whole(0, **steps)
        if self.memory is not None:
            parse_bytes(self.memory)
        if self.autocast is not None and self.dtype == "float64":
            raise ValueError(
                f"autocast={self.autocast!r} goes with dtype='float32', not {self.dtype!r}: leave one of them out"
            )


@dataclass(frozen=True)
class BenchConfig(TrainConfig):
    """The settings of the main job, with the ablations as methods and without sinusoids."""

    methods: tuple[str, ...] = (
        "metapeft", "generator-off", "other-task", "selection-off", "inner-off", "retrained-threshold",
        "retrained-total", "retrained-uniform", "retrained-shuffled", "retrained-random", "sr+lora", "centroids",
    )  # fmt: skip
    sinusoid_steps: Whole = 0


@dataclass(frozen=True)
class SweepConfig(TrainConfig):
    """The settings of the main job without sinusoids."""

    sinusoid_steps: Whole = 0


def plain_config(config: TrainConfig) -> dict[str, Any]:
    """The settings as JSON can say them.

    Example:
        >>> plain_config(TrainConfig(methods=("maml",)))["methods"]
        ['maml']
    """
    return {
        name: str(value) if isinstance(value, Path) else [*value] if isinstance(value, tuple) else value
        for name, value in asdict(config).items()
    }
