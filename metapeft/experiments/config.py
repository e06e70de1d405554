"""The settings of the main job, as the shell and a configuration file give them. Loads no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from metapeft.base.arguments import number, whole
from metapeft.base.machine.byte_units import parse_bytes
from metapeft.base.whole_numbers import Whole
from metapeft.datasets.shell_options import reader_options
from metapeft.datasets.table import registry as datasets

BackboneName = Literal["conv4", "resnet12", "mixer", "vit", "minilm"]
DtypeName = Literal["float32", "float64"]
AutocastName = Literal["bfloat16"]
Small = Literal["refuse", "skip", "cap"]
AutocastOrOff = Literal["bfloat16", "off"]  # off: not that of the run
PAIRS = ("glyph-pairs", "omniglot-pairs")  # the episode decides which half of an image counts
TEXTS = ("banking77", "clinc150", "text")  # which minilm reads, and nothing else
REGRESSIONS = {
    "sinusoid": "metapeft trains such tasks from Python",
    "functions": "the main job fits them by itself, at its end",
}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that the outcome of `metapeft train` depends on.

    Parameters
    ----------
    data
        Data set: glyph-pairs, glyphs and coloured-glyphs (embedded, no download), omniglot-pairs, omniglot,
        miniimagenet, folder; or texts: banking77, clinc150 and text (a folder of train, val and test.jsonl). On pairs
        the episode decides which half counts, and methods are evaluated at the numbers of inner steps of --inner-steps;
        pairs and texts have other defaults than other data.
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
        Backbone, with random weights; of texts minilm, a sentence encoder with its own.
    width
        Its width.
    blocks
        Blocks of a conv4; default 4.
    neck
        Features of a linear layer behind the blocks of a conv4; default no such layer.
    trained_layers
        The last layers of a minilm whose weights are trained.
    rank
        Rank of the updates.
    targets
        Parameters with updates of low rank, as a pattern; default all.
    modulated
        The whole method also generates shifts and gates of a layer's output.
    pretrain_steps
        Steps of standard retraining, 128 images each, that all methods start from.
    steps
        Outer steps of every method, the continued retraining of the baselines included.
    direct
        The share of them that the whole method and its variants make at the start without the inner loop.
    tasks_per_step
        Episodes an outer step.
    lr
        Outer rate of factors, generator, selection and inner rates.
    weights_lr
        Outer rate of the backbone's weights.
    inner_lrs
        Inner rates to choose from on validation classes.
    inner_steps
        Numbers of inner steps to choose from on validation classes, or on pairs those to evaluate at; training takes
        the one nearest to 5.
    episodes
        Test episodes of each column.
    validation_episodes
        Validation episodes for every choice.
    function_steps
        Outer steps of the regression of functions; 0 leaves it out.
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
    small
        Classes with too few images: refuse; skip leaves them out; cap takes as many queries as there are.
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
    blocks: Whole | None = None
    neck: Whole | None = None
    trained_layers: Whole = 2
    rank: Whole = 4
    targets: str | None = None
    modulated: bool = False
    pretrain_steps: Whole = 250
    steps: Whole = 80
    direct: float = 0.0
    tasks_per_step: Whole = 4
    lr: float = 1e-3
    weights_lr: float = 3e-4
    inner_lrs: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    inner_steps: tuple[Whole, ...] = (1, 3, 5, 10)
    episodes: Whole = 120
    validation_episodes: Whole = 24
    function_steps: Whole = 0
    seed: Whole = 0
    threads: Whole = 0
    memory: str | None = None
    device: str | None = None
    dtype: DtypeName | None = None
    autocast: AutocastName | None = None
    compiled: bool = False
    small: Small = "refuse"

    def __post_init__(self) -> None:
        datasets.check(self.data)
        reader_options(self.data_options)
        if self.data in REGRESSIONS:
            raise ValueError(f"data={self.data!r} has no classes: {REGRESSIONS[self.data]}")
        positive = (
            "trained_layers", "ways", "shots", "queries", "width", "rank", "pretrain_steps", "steps", "tasks_per_step",
            "episodes", "validation_episodes",
        )  # fmt: skip
        whole(**{name: getattr(self, name) for name in positive})
        whole(0, function_steps=self.function_steps, seed=self.seed, threads=self.threads)
        sizes: dict[str, Any] = {"blocks": self.blocks, "neck": self.neck}
        whole(**{name: value for name, value in sizes.items() if value is not None})
        number(0, 1, direct=self.direct)
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
class PairsConfig(TrainConfig):
    """The settings of the main job on pairs, where one has to read the support set."""

    data: str = "glyph-pairs"
    methods: tuple[str, ...] = (
        "metapeft", "constant", "blind", "other-kind", "lora-ml", "sr+lora", "centroids",
    )  # fmt: skip
    shots: Whole = 5
    width: Whole = 16
    blocks: Whole | None = 3
    neck: Whole | None = 64
    rank: Whole = 16
    targets: str | None = "neck.weight"
    modulated: bool = True
    steps: Whole = 300
    direct: float = 0.5
    lr: float = 6e-3
    weights_lr: float = 6e-3
    inner_lrs: tuple[float, ...] = (0.01, 0.1)
    inner_steps: tuple[Whole, ...] = (0, 1, 5)
    function_steps: Whole = 1000


@dataclass(frozen=True)
class TextsConfig(TrainConfig):
    """The settings of the main job on texts."""

    data: str = "banking77"
    methods: tuple[str, ...] = ("metapeft", "constant", "blind", "lora-ml", "sr+lora", "centroids")
    shots: Whole = 5
    queries: Whole = 5
    backbone: BackboneName = "minilm"
    targets: str | None = "*layer.[45].attention.self.[qv]*.weight"
    pretrain_steps: Whole = 60
    steps: Whole = 60
    tasks_per_step: Whole = 2
    weights_lr: float = 3e-5
    inner_steps: tuple[Whole, ...] = (1, 3)


@dataclass(frozen=True)
class BenchConfig(TrainConfig):
    """The settings of the job on plain and shifted episodes, with ablations and controls as further methods."""

    methods: tuple[str, ...] = (
        "metapeft", "constant", "blind", "other-task", "selection-off", "inner-off", "retrained-threshold",
        "retrained-total", "retrained-uniform", "retrained-shuffled", "retrained-random", "lora-ml", "metalora-cp",
        "sr+lora", "centroids",
    )  # fmt: skip


def following_data(config: TrainConfig, given: frozenset[str]) -> TrainConfig:
    """The settings of a call in which those that it does not name follow the data, and the backbone.

    Args:
        config: with the defaults of its class, which keeps those that are its own. given: the names of those named.

    Raises:
        ValueError: sizes of a conv4 for another backbone.

    Example:
        >>> following_data(PairsConfig(data="glyphs"), frozenset({"data"})).shots
        1
        >>> following_data(TrainConfig(data="glyph-pairs", shots=2), frozenset({"data", "shots"})).rank
        16
    """
    plain, own = TrainConfig(), type(config)()
    kinds = (PairsConfig(), TextsConfig())
    texts = config.data in TEXTS
    wanted = kinds[0] if config.data in PAIRS else kinds[1] if texts else plain
    names = {
        one.name
        for one in fields(plain)
        if any(getattr(plain, one.name) != getattr(kind, one.name) for kind in kinds)
    }
    if not isinstance(own, PairsConfig):
        names = {name for name in names if getattr(own, name) == getattr(plain, name)} - {"function_steps"}
    values = {name: getattr(wanted, name) for name in names - given - {"data"}}
    backbone = values.get("backbone", config.backbone)
    if texts != (backbone == "minilm"):
        reads = "images" if texts else "texts"
        raise ValueError(
            f"backbone={backbone!r} reads {reads}, and data={config.data!r} has none: leave it out"
        )
    if backbone != "conv4":
        for name in ("blocks", "neck"):
            if name in given:
                raise ValueError(f"{name} has no effect on backbone={backbone!r}: it is of a conv4")
        own_to_conv4 = ("blocks", "neck") if texts else ("blocks", "neck", "targets")
        values |= {name: None for name in own_to_conv4 if name not in given}
    return replace(config, **values)


def usual(config: TrainConfig) -> dict[str, Any]:
    """What the same command would have where only the data is named, as JSON can say it."""
    return plain_config(following_data(type(config)(data=config.data), frozenset({"data"})))


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
