"""The command on the report makes the same settings again."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from metapeft.cli import run
from metapeft.experiments.command_line import command_of
from metapeft.experiments.config import BenchConfig, PairsConfig, TrainConfig, following_data

SETTINGS: dict[str, TrainConfig] = {
    "main": TrainConfig(**PairsConfig().__dict__),
    "glyphs": replace(TrainConfig(), seed=3, inner_lrs=(0.1, 0.5), compiled=True),
    "pairs": replace(PairsConfig(), data="omniglot-pairs", modulated=False, data_options=("size=20",)),
    "bench": TrainConfig(**BenchConfig(memory="2GiB").__dict__),
    "vit": following_data(TrainConfig(backbone="vit", width=32), frozenset({"backbone", "width"})),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_command_makes_the_settings_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainConfig] = []

    def start(config: TrainConfig, out: object, resume: bool, quiet: bool, given: frozenset[str]) -> int:
        seen.append(following_data(config, given))
        return 0

    monkeypatch.setattr("metapeft.cli.train.start", start)
    words = shlex.split(command_of(SETTINGS[name], "a folder"))
    assert words[0] == "metapeft"
    assert run(words[1:]) == 0
    assert seen[0].__dict__ == SETTINGS[name].__dict__
