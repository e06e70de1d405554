"""Frames of predicted images, seeds in the plane, bars made of parts, and a page in two columns."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from metapeft.experiments.report import Figure, Section, Table, episode_grid, write_report
from metapeft.experiments.report.bar_plot import stacked_bars
from metapeft.experiments.report.scatter_plot import embedding

X, Y = torch.zeros(6, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1, 2])


def test_right_images_have_plain_frames_and_wrong_ones_the_number_of_the_row_said() -> None:
    svg = episode_grid(X[:3], Y[:3], X, Y, ["a", "b", "c"], predicted=torch.tensor([0, 2, 2, 0, 0, 1]))
    ElementTree.fromstring(svg)
    assert svg.count("stroke-dasharray") == 3
    assert svg.count('fill="none" stroke="var(--series-3, #0a8f68)"') == 3
    labels = re.findall(r"<text [^>]*middle[^>]*>(\d)</text>", svg)
    assert labels == ["3", "1", "2"]  # row by row
    assert ">1  a<" in svg
    assert ">1  a<" not in episode_grid(X[:3], Y[:3], X, Y, ["a", "b", "c"])


def test_predictions_of_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"predicted has shape \(2,\): must be \(6,\)"):
        episode_grid(X[:3], Y[:3], X, Y, predicted=torch.tensor([0, 1]))


def test_points_are_seen_in_the_plane_in_which_they_spread_most() -> None:
    """Two clouds along one direction of ten, at right angles to which hardly anything is."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.01 * torch.randn(2, 30, 10, generator=generator, dtype=torch.float64)
    direction = torch.randn(10, generator=generator, dtype=torch.float64)
    svg = embedding({"plain": noise[0], "swap": noise[1] + direction})
    assert "first direction, 100 % of the variance" in svg
    found = [
        np.array(re.findall(rf'<use [^>]*x="([\d.]+)"[^>]*series-{number},', svg), dtype=float)[:30]
        for number in (1, 2)
    ]
    assert all(len(one) == 30 for one in found)
    assert found[0].max() < found[1].min() or found[1].max() < found[0].min()


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ({"a": torch.zeros(1, 3)}, "2 points"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(2, 4)}, "one d"),
        ({"a": torch.tensor([[0.0], [torch.nan]])}, "not finite"),
    ],
)
def test_no_picture_of(groups: dict[str, torch.Tensor], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        embedding(groups)


def test_bars_are_as_long_as_their_parts() -> None:
    svg = stacked_bars({"x": {"a": 1.0, "b": 3.0}, "y": {"b": 2.0}}, "seconds")
    bars = re.findall(r'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [^"]*" [^>]*fill: var\(--series-(\d)', svg)
    widths = {(kind, place): float(right) - float(left) for place, (left, right, kind) in enumerate(bars[:4])}
    one = widths["1", 0]
    assert widths["2", 2] == pytest.approx(3 * one, rel=1e-3)
    assert widths["2", 3] == pytest.approx(2 * one, rel=1e-3)
    assert float(bars[2][0]) == pytest.approx(float(bars[0][1]), rel=1e-3)  # where the first part ends
    with pytest.raises(ValueError, match="at least one number"):
        stacked_bars({"x": {}}, "seconds")


def test_a_page_has_figures_at_the_right_and_the_best_in_bold(tmp_path) -> None:
    picture = Figure("<svg></svg>", "See.", large=True)
    table = Table(["m", "a"], [["x", "1"], ["y", "2"]], best={(1, 1)})
    sections = [Section("both", "Text.", [table], [picture]), Section("one", figures=[picture])]
    page = write_report(
        tmp_path, "T", sections, {"seed": "0"}, "It <helps>.", "metapeft train --seed 1"
    ).read_text()
    assert page.count('<section class="columns">') == 1
    assert page.count('class="figures large"') == 2
    assert '<td class="best">2</td>' in page
    assert "<td>1</td>" in page
    assert '<p class="verdict">It &lt;helps&gt;.</p>\n<pre>metapeft train --seed 1</pre>' in page
    plain = write_report(tmp_path, "T", sections).read_text()
    assert "<pre>" not in plain
    assert 'class="verdict"' not in plain
