"""The families of the generation tables, and their rows: what is generated, what adapts, which control it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F

import metapeft as mp
from metapeft.generators.class_encoder import PARTS
from metapeft.generators.generator import Generator
from metapeft.updates.formats.format import Format

HIDDEN = 64
MODULATED: dict[str, Any] = {"shift": True, "gate": True, "dictionary": True}
KEPT = {"total": "those that the selection keeps", "shuffled": "as many, shuffled over layers"}
ON_PAIRS = mp.CP(16, **MODULATED)
Splits = dict[str, Any]
Shown = Literal["another kind", "same kind"]


@dataclass(frozen=True)
class Family:
    """Tasks that differ in kind, a backbone that can express the answer, and how both are trained.

    Args:
        about: one line. splits: seed -> training, validation and test episodes; that of the test was used for nothing
            before. backbone: seed -> module. targets: the parameters with an update. lr: of all outer variables.
        tasks: a step. loss: of the learner. heads: by whether anything adapts. rates: tried for the inner loop.
        episodes: of the test. clip: of each task's inner gradient.
    """

    about: str
    splits: Callable[[int], Splits]
    backbone: Callable[[int], torch.nn.Module]
    targets: str
    lr: float
    tasks: int
    rates: tuple[float, ...]
    loss: Callable[..., Any] = F.cross_entropy
    heads: Mapping[bool, str] = field(default_factory=lambda: {False: "prototypes", True: "prototype-init"})
    episodes: int = 600
    clip: float | None = None

    @property
    def regression(self) -> bool:
        """Whether its numbers are errors, not accuracies."""
        return self.loss is F.mse_loss


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Args:
        about: one line. generator: None for a constant seed. format: of the updates.
        shown: further evaluations in which the generator is shown another task's support set.
        direct: the share of outer steps that are made without an inner loop, where there is one.
        least: the smallest number of inner steps at which there is such a row.
        selection: whether terms are selected. ranks_from: the row whose selection, rounded by `rule` to half of all
            terms, gives the ranks; it has to be trained before.
        a_kind: whether there is one such model for each kind of task, an oracle.
    """

    about: str
    generator: Callable[[], Generator | None] = lambda: None
    format: Format = ON_PAIRS
    shown: tuple[Shown, ...] = ()
    direct: float = 0.0
    least: int = 0
    selection: str | None = None
    ranks_from: str | None = None
    rule: str = ""
    a_kind: bool = False


def image_splits(name: str) -> Callable[[int], Splits]:
    """5-way 5-shot episodes of which each decides the half that counts."""

    def splits(seed: int) -> Splits:
        shift = mp.Shift(["plain", "swap"])
        sizes = {"train": (10, seed), "val": (15, 100), "test": (15, 1000)}
        return {
            split: mp.EpisodeSampler(mp.load_dataset(name, split=split), 5, 5, queries, seed=own, shift=shift)
            for split, (queries, own) in sizes.items()
        }

    return splits


def function_splits(protocol: str) -> Callable[[int], Splits]:
    """10 points of a function to adapt to."""

    def splits(seed: int) -> Splits:
        sizes = {"train": (10, seed), "val": (40, 100), "test": (40, 1000)}
        return {
            split: mp.EpisodeSampler(
                mp.load_dataset("functions", split=split, protocol=protocol), 1, 10, queries, seed=own
            )
            for split, (queries, own) in sizes.items()
        }

    return splits


def places(seed: int) -> torch.nn.Module:
    """Three blocks of width 16 that keep 3x3 places, and a linear layer that can choose among them."""
    module: torch.nn.Module = mp.backbones.conv4(width=16, blocks=3, neck=64, seed=seed)
    return module


def perceptron(inputs: int) -> Callable[[int], torch.nn.Module]:
    """Two hidden layers of 40, as in MAML's and ARML's regressions."""

    def backbone(seed: int) -> torch.nn.Module:
        module: torch.nn.Module = mp.backbones.mlp(inputs, 1, hidden=(40, 40), seed=seed)
        return module

    return backbone


def _functions(protocol: str, inputs: int, about: str) -> Family:
    return Family(
        about, function_splits(protocol), perceptron(inputs), "all", 3e-3, 25, (0.003, 0.01, 0.03), F.mse_loss,
        {False: "learned", True: "learned"}, 2000, 10.0,
    )  # fmt: skip


FAMILIES = {
    "glyph-pairs": Family(
        "two glyphs, of which one carries the label", image_splits("glyph-pairs"), places, "neck.weight", 6e-3, 4,
        (0.01, 0.1),
    ),
    "omniglot-pairs": Family(
        "the same from Omniglot's drawings", image_splits("omniglot-pairs"), places, "neck.weight", 6e-3, 4, (0.01, 0.1)
    ),
    "functions": _functions("mmaml", 1, "sine, line, quadratic, abs, tanh"),
    "functions-arml": _functions("arml", 2, "ARML's six functions of two inputs"),
}  # fmt: skip


def of_classes(*parts: str) -> Callable[[], Generator]:
    """A class encoder of all of its parts, or of some."""
    return lambda: mp.generators.ClassEncoder(HIDDEN, parts or PARTS)


IMAGE_ROWS = {
    "constant": Row("a constant seed, shift and gate"),
    "blind": Row(
        "the class encoder, trained and tested on one fixed vector",
        lambda: mp.generators.Blind(mp.generators.ClassEncoder(HIDDEN)), direct=0.5,
    ),
    "mapping-net": Row("MetaLoRA's mapping net: the mean feature, no labels", lambda: mp.generators.MappingNet(HIDDEN)),
    "class-encoder": Row(
        "class statistics of the support set", of_classes(), shown=("another kind", "same kind"), direct=0.5
    ),
    "attention-encoder": Row("attention over the support set", lambda: mp.generators.AttentionEncoder(HIDDEN)),
    **{
        f"class-encoder-{part}": Row(f"its part {part} alone", of_classes(part))
        for part in ("mean", "between", "within", "ratio")
    },
    "class-encoder-seeds": Row("it writes seeds alone, no shift and gate", of_classes(), mp.CP(16)),
    "class-encoder-modulation": Row(
        "it writes shift and gate alone (FiLM)", of_classes(), mp.CP(0, shift=True, gate=True)
    ),
    "class-encoder-joint": Row("trained through the inner loop from the start", of_classes(), least=1),
    "lora-ml": Row("no generator: LoRA adapted, W0, starts and rates trained through it", format=mp.LoRA(16), least=1),
}  # fmt: skip


def pairs(inputs: int, **options: Any) -> Generator:
    """An encoder of (x, y, x y)."""
    found: Generator = mp.generators.PairEncoder(2 * HIDDEN, size=inputs, **options)
    return found


def function_rows(inputs: int) -> dict[str, Row]:
    """The rows of a regression with that many inputs."""
    both, film = mp.CP(8, **MODULATED), mp.CP(0, shift=True, gate=True)
    return {
        "constant": Row("a constant seed, shift and gate", format=both),
        "blind": Row(
            "the pair encoder, trained and tested on one fixed vector",
            lambda: mp.generators.Blind(pairs(inputs)), both, direct=0.5,
        ),
        "inputs-only": Row(
            "the mapping net on the mean of x, no y",
            lambda: mp.generators.MappingNet(HIDDEN, features="inputs", size=inputs), both,
        ),
        "pair-encoder": Row(
            "the points (x, y, x y) as a set", lambda: pairs(inputs), both, ("another kind", "same kind"), 0.5
        ),
        "pair-encoder-seeds": Row(
            "it writes seeds alone, no shift and gate", lambda: pairs(inputs), mp.CP(8, dictionary=True), direct=0.5
        ),
        "pair-encoder-modulation": Row(
            "it writes shift and gate alone (FiLM)", lambda: pairs(inputs), film, direct=0.5
        ),
        "pair-encoder-selection": Row(
            "with selection variables on its terms", lambda: pairs(inputs), both, direct=0.5, selection="softmax"
        ),
        **{
            f"pair-encoder-{rule}": Row(
                f"trained anew at half of the terms, {said}", lambda: pairs(inputs), both, direct=0.5,
                ranks_from="pair-encoder-selection", rule=rule,
            )
            for rule, said in KEPT.items()
        },
        "a-model-a-kind": Row("an oracle: a constant seed for each kind, which it is told", format=both, a_kind=True),
        "pair-encoder-joint": Row(
            "trained through the inner loop from the start", lambda: pairs(inputs), both, least=1
        ),
        "lora-ml": Row(
            "no generator: LoRA adapted, W0, starts and rates trained through it", format=mp.LoRA(8), least=1
        ),
        "maml": Row("no generator: full updates adapted, W0 and rates trained", format=mp.Full(), least=1),
    }  # fmt: skip


def rows_of(family: str) -> dict[str, Row]:
    """The rows of a family, by name."""
    if not FAMILIES[family].regression:
        return IMAGE_ROWS
    return function_rows(2 if family == "functions-arml" else 1)
