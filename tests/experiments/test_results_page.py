"""The page of a run: verdict and command first, predictions as the table has them, the best in bold."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from metapeft.cli.train import configured
from metapeft.episodes.protocol import Protocol
from metapeft.experiments import results_page
from metapeft.experiments.accuracy_section import accuracy_section
from metapeft.experiments.learner_sections import kept, seeds_section
from metapeft.experiments.results import Cell, Regression, Results, Row, read, with_costs_before, write
from metapeft.experiments.samplers import Samplers, samplers
from metapeft.experiments.verdict import headline
from metapeft.training.runs.run import Run

PROTOCOL = Protocol("glyphs", "test", "0f", 5, 1, 10, 2, 0).as_dict()
STORED = Path(__file__).parents[1] / "fixtures" / "runs" / "train"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results, Samplers, str]:
    folder = shutil.copytree(STORED, tmp_path_factory.mktemp("page") / "train")
    found = read(folder / "results.json")
    found = replace(found, costs={"metapeft": {"training": (2.0, 2**20), "choosing": (1.0, None)}})
    with Run.open(folder, writable=False) as run:
        config = configured(run.config["train"])
        episodes = samplers(config)
        page = results_page.write(folder, config, run.environment, found, episodes)
    return folder, found, episodes, page.read_text(encoding="utf-8")


def test_it_opens_with_the_verdict_and_the_command(made: tuple[Path, Results, Samplers, str]) -> None:
    folder, found, _, page = made
    said = headline(found)
    assert said is not None
    assert said.startswith("On glyphs metapeft is level with sr+lora at ")
    assert (
        page.index("<h1>")
        < page.index(said[:40])
        < page.index("<pre>metapeft train --data glyphs ")
        < page.index("<h2>")
    )
    assert f"--out {folder}" in page


def test_frames_are_what_the_table_counts(made: tuple[Path, Results, Samplers, str]) -> None:
    """The learner of the fixture is the one that was measured; its cell says how many of an episode are right."""
    _, found, _, page = made
    for column in ("plain", "shifted"):
        right = re.search(
            rf"Test episode 0, {column}: metapeft names (\d+) of (\d+) query images right", page
        )
        assert right is not None
        value = found.rows["metapeft"].columns[column].values[0]
        assert int(right.group(1)) == round(value * int(right.group(2)))
    pictures = [part for part in page.split("<figure>") if "an episode of 5 classes" in part]
    frames = [picture.count("<rect") - 2 * picture.count("stroke-dasharray") for picture in pictures]
    counts = [round(found.rows["metapeft"].columns[c].values[0] * 10) for c in ("plain", "shifted")]
    assert frames == counts  # a wrong one has a frame and a ground for its number


def test_sections(made: tuple[Path, Results, Samplers, str]) -> None:
    *_, page = made
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings[:3] == ["Accuracy", "Episodes", "Training"]
    assert {"Seeds by task", "Ranks by layer", "Time and memory"} <= set(headings)
    assert "minus sr+lora" in page
    assert "The weights have not moved" in page
    assert "<td>3.0 s</td><td>1 MiB</td>" in page
    assert page.count('class="best"') >= 3


def test_without_learners_the_numbers_are_there(
    made: tuple[Path, Results, Samplers, str], tmp_path: Path
) -> None:
    _, found, episodes, _ = made
    assert kept(tmp_path, found) is None
    assert seeds_section(episodes, None) == []
    page = results_page.write(tmp_path, configured(found.config | {"methods": ["maml"]}), {}, found, episodes)
    assert "Test episode 0, plain." in page.read_text(encoding="utf-8")


def test_differences_stand_around_zero_and_in_words() -> None:
    rows = {
        name: Row(columns={"plain": Cell(0.5, 0.1, protocol=PROTOCOL)})
        for name in ("own", "worse", "level", "better")
    }
    apart = {
        name: {"plain": (mean, 0.1)} for name, mean in (("worse", -0.3), ("level", 0.05), ("better", 0.2))
    }
    section = accuracy_section(Results(rows=rows, differences={"own": apart}))
    assert len(section.figures) == 2
    assert section.figures[1].caption.endswith(
        "Behind in every column: worse; ahead in every column: better; nowhere told apart from it: level."
    )
    assert "stroke-dasharray" in section.figures[1].svg  # the line at zero


def test_costs_of_what_was_not_done_again_stay(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    now = {"maml": {"evaluating": (1.0, 5)}}
    assert with_costs_before(path, now) == now
    before = {"sr": {"retraining": (3.0, 7)}, "maml": {"training": (9.0, 8), "evaluating": (2.0, 5)}}
    write(path, Results(rows={"maml": Row()}, costs=before))
    merged = with_costs_before(path, now)
    assert {stage: {kind: tuple(cost) for kind, cost in kinds.items()} for stage, kinds in merged.items()} == {
        "sr": {"retraining": (3.0, 7)}, "maml": {"training": (9.0, 8), "evaluating": (1.0, 5)},
    }  # fmt: skip
    path.write_text("{")
    assert with_costs_before(path, now) == now


def test_the_lowest_error_is_the_best() -> None:
    rows = {"a": {"0": (2.0, 0.1), "1": (0.5, 0.1)}, "b": {"0": (1.0, 0.1)}}
    assert results_page._lowest(Regression(rows, "", [])) == {(1, 1), (0, 2)}
