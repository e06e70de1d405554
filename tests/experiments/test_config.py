"""Settings that are not named follow the data; what a setting decides is what the job's parts are made of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from metapeft.cli.train import configured
from metapeft.experiments.compared_methods import METHODS
from metapeft.experiments.config import BenchConfig, PairsConfig, TrainConfig, following_data, plain_config
from metapeft.experiments.main_job import checked_samplers, make_backbone, references
from metapeft.experiments.samplers import samplers

FEW = ("per_class=16",)


def test_without_options_the_job_is_on_pairs_with_its_controls() -> None:
    own = following_data(PairsConfig(), frozenset())
    assert own == PairsConfig()
    assert {"metapeft", "constant", "blind", "other-kind", "lora-ml", "sr+lora", "centroids"} == set(
        own.methods
    )
    assert references(own) == ("metapeft",)


@pytest.mark.parametrize("data", ["glyphs", "omniglot", "coloured-glyphs"])
def test_on_other_data_a_job_is_what_it_was(data: str) -> None:
    own = following_data(PairsConfig(data=data, rank=7), frozenset({"data", "rank"}))
    assert plain_config(own) == plain_config(TrainConfig(data=data, rank=7))
    assert references(own) == ("sr+lora", "centroids")


def test_bench_keeps_its_methods_on_pairs_and_fits_no_functions() -> None:
    own = following_data(BenchConfig(data="glyph-pairs"), frozenset({"data"}))
    assert own.methods == BenchConfig().methods
    assert (own.shots, own.neck, own.function_steps) == (5, 64, 0)
    assert {"metapeft", "lora-ml", "sr+lora", "metalora-cp", "centroids", "blind", "constant"} <= set(
        own.methods
    )


def test_a_run_goes_on_with_what_its_data_stands_for() -> None:
    for data in ("glyphs", "omniglot-pairs"):
        stored = plain_config(following_data(PairsConfig(data=data), frozenset({"data"})))
        again = following_data(PairsConfig(data=data), frozenset({"data"}))
        assert plain_config(configured(stored, again, frozenset({"data"}))) == stored
        with pytest.raises(ValueError, match="shots=3, but the run was started with"):
            configured(stored, replace(again, shots=3), frozenset({"data", "shots"}))


def test_settings_of_earlier_versions_are_read() -> None:
    stored = plain_config(TrainConfig(ways=3))
    for later in ("blocks", "neck", "targets", "modulated", "direct", "function_steps"):
        del stored[later]
    own = configured({**stored, "sinusoid_steps": 5})
    assert own == TrainConfig(ways=3, function_steps=5)


def test_sizes_of_a_conv4_go_with_it_alone() -> None:
    own = following_data(PairsConfig(backbone="resnet12"), frozenset({"backbone"}))
    assert (own.blocks, own.neck, own.targets) == (None, None, None)
    with pytest.raises(ValueError, match="blocks has no effect on backbone='vit'"):
        following_data(PairsConfig(backbone="vit", blocks=2), frozenset({"backbone", "blocks"}))


def test_columns_of_pairs_are_numbers_of_inner_steps_of_swapped_episodes() -> None:
    found = samplers(replace(PairsConfig(), data_options=FEW, inner_steps=(1, 5)))
    assert [(column.name, column.steps) for column in found.columns] == [
        ("0 steps", 0),
        ("1 step", 1),
        ("5 steps", 5),
    ]
    for sampler in (found.train, found.validation, *found.tests.values()):
        assert sampler.kinds == ("plain", "swap")
    assert len(found.tests) == 1
    body = make_backbone(replace(PairsConfig(), data_options=FEW), found.data["train"])
    assert body.get_parameter("neck.weight").shape == (64, 144)


def test_columns_of_other_data_are_plain_and_shifted() -> None:
    found = samplers(TrainConfig(data_options=FEW))
    assert [(column.name, column.steps) for column in found.columns] == [("plain", None), ("shifted", None)]
    assert found.validation is found.columns[1].validation
    assert "invert" in found.tests["shifted"].kinds


def test_a_task_of_another_kind_needs_kinds() -> None:
    own = TrainConfig(data_options=FEW, methods=("metapeft", "other-kind"))
    with pytest.raises(ValueError, match="the tasks of data='glyphs' are of one kind: it is for glyph-pairs"):
        checked_samplers(own)


def test_low_rank_methods_share_targets() -> None:
    own = PairsConfig()
    assert METHODS["lora-ml"].sized(own) == {"rank": 16, "targets": "neck.weight"}
    assert str(METHODS["metapeft"].sized(own)["format"]) == str(METHODS["blind"].sized(own)["format"])
    assert METHODS["maml"].sized(own) == {}
