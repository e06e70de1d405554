"""The command that makes a run with these settings, to be typed again. Loads no torch."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from metapeft.experiments.config import PairsConfig, TrainConfig, following_data, plain_config


def command_of(config: TrainConfig, out: str | Path | None = None) -> str:
    """`metapeft train` with those of the settings that it would not have by itself.

    Args:
        config: the settings of a run, of `metapeft bench` too, whose defaults are written out. out: its folder.

    Example:
        >>> from dataclasses import replace
        >>> command_of(replace(PairsConfig(), seed=3, methods=("maml", "anil")), "runs/x")
        'metapeft train --methods maml anil --seed 3 --out runs/x'
        >>> command_of(TrainConfig(compiled=True))
        'metapeft train --data glyphs --compiled'
    """
    named = {"data", "backbone"}
    usual = following_data(PairsConfig(data=config.data, backbone=config.backbone), frozenset(named))
    default, words = plain_config(PairsConfig()), ["metapeft", "train"]
    for name, value in plain_config(config).items():
        compared = default[name] if name in named else plain_config(usual)[name]
        if value != compared and value is not None:
            words += _option(name, value)
    return shlex.join([*words, *([] if out is None else ["--out", str(out)])])


def _option(name: str, value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [option if value else f"--no-{option[2:]}"]
    if isinstance(value, list):
        return [option, *map(str, value)] if value else [f"--empty-{option[2:]}"]
    return [option, str(value)]
