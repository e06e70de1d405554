"""The page and its pictures: what is drawn is what was given, nothing is fetched, nothing is executed."""

from __future__ import annotations

import base64
import io
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import metapeft as mp
from metapeft.experiments.report import (
    Figure,
    Section,
    Table,
    curves,
    episode_grid,
    fits,
    intervals,
    rank_bars,
    write_report,
)
from metapeft.experiments.report.line_plot import smooth

HOSTILE = '<script>alert("x")</script> & $x_1$ {{ 7*7 }}'
TASK = {
    "x": [0, 1, 2],
    "truth": [0, 1, 0],
    "before": torch.zeros(3, 1),
    "after": [0, 0.9, 0],
    "support_x": torch.tensor([[0.5]], requires_grad=True),
    "support_y": [0.5],
}


def drawn(svg: str) -> ElementTree.Element:
    """The element, which must be well-formed XML on its own."""
    return ElementTree.fromstring(svg)


def words(svg: str) -> list[str]:
    return [text for element in drawn(svg).iter() if element.tag.endswith("text") and (text := element.text)]


def images(count: int, channels: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, 5, 4), dtype=torch.uint8, generator=generator)


X, Y = images(4, 1, 0), torch.tensor([0, 1, 0, 1])
PICTURES = {
    "curves": lambda: curves({"a": ([0, 1], [1, 2]), "b": ([0, 1], [2, None])}),
    "smoothed": lambda: curves({"a": ([0, 1, 2], [1, math.inf, 2])}, smoothing=0.5, logarithmic=True),
    "intervals": lambda: intervals(
        {"plain": {"a": (0.9, 0.01), "b": (0.8, None)}, "shifted": {"b": (0.7, 0.02)}}
    ),
    "ranks": lambda: rank_bars({"threshold": {"conv1": 2, "conv2": 0}, "budget": {"conv2": 1}}, largest=4),
    "episode": lambda: episode_grid(X[:2], Y[:2], X, Y, names=["a", "b"]),
    "fits": lambda: fits([TASK, TASK, TASK]),
}


@pytest.fixture(scope="module")
def pictures() -> dict[str, str]:
    return {name: draw() for name, draw in PICTURES.items()}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_deterministic_elements(name, pictures):
    svg = pictures[name]
    assert svg == PICTURES[name]()
    element = drawn(svg)
    assert element.tag.endswith("svg")
    assert element.get("role") == "img"
    assert element.get("aria-label")
    assert element.get("viewBox")
    identifiers = re.findall(r' id="([^"]+)"', svg)
    assert len(identifiers) == len(set(identifiers))
    assert set(re.findall(r'(?:url\(|href=")#([\w.-]+)', svg)) <= set(identifiers)
    assert not re.search(r"#(?:1b1f24|d5d9de)(?!\))", svg)  # every colour of ours follows the page
    assert not re.search(r'fill: ?#ffffff|fill="white"', svg)  # no background hides a dark page


def test_text_is_there(pictures):
    found = pictures
    assert {"a", "b", "step", "loss"} <= set(words(found["curves"]))
    assert {"plain", "shifted", "a", "b", "accuracy (%)"} <= set(words(found["intervals"]))
    assert {"threshold", "budget", "conv1", "conv2", "rank"} <= set(words(found["ranks"]))
    assert {"truth", "before", "after", "support"} <= set(words(found["fits"]))
    assert words(found["episode"]) == ["support", "query", "a", "b"]


def test_dots_stand_where_the_values_are():
    """Positions in the picture are a rising linear function of the values (1e-3: the file has six digits)."""
    values = [0.2, 0.5, 0.6, 0.95]
    svg = intervals({"g": {str(value): (value, 0.05) for value in values}})
    points = [
        (float(x), float(y)) for x, y in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*series-1', svg)
    ]
    x, y = np.array(points).T
    slope = np.diff(x) / np.diff(values)
    assert (slope > 0).all()
    np.testing.assert_allclose(slope, slope[0], rtol=1e-3)
    assert (np.diff(y) > 0).all()  # from top to bottom


def test_bars_are_as_long_as_the_ranks():
    svg = rank_bars({"rule": {"a": 1, "b": 2, "c": 4}})
    bars = re.findall(r'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [^"]*" [^>]*fill: var\(--series-1', svg)
    lengths = np.array([float(right) - float(left) for left, right in bars])
    np.testing.assert_allclose(lengths[:3] / lengths[0], [1, 2, 4], rtol=1e-4)


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(-1e3, 1e3) | st.just(math.nan), min_size=1, max_size=12),
    weight=st.floats(0, 0.99),
)
def test_smoothing_is_its_formula(values, weight):
    found = smooth(torch.tensor(values, dtype=torch.float64), weight).tolist()
    for i, value in enumerate(found):
        if math.isnan(values[i]):
            assert math.isnan(value)
            continue
        there = [j for j in range(i + 1) if not math.isnan(values[j])]
        weights = [weight ** (i - j) for j in there]
        expected = sum(w * values[j] for w, j in zip(weights, there, strict=True)) / sum(weights)
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_episode_shows_the_given_images_in_their_rows(channels):
    support, query = images(4, channels, 0), images(9, channels, 1)
    support_y, query_y = torch.tensor([1, 0, 1, 0]), torch.tensor([0, 1, 0, 1, 1, 1, 0, 0, 1])
    element = drawn(episode_grid(support, support_y, query, query_y, queries=3))
    found = [node for node in element.iter() if node.tag.endswith("image")]
    expected = []
    for way in (0, 1):
        expected += [*support[support_y == way], *query[query_y == way][:3]]
    assert len(found) == len(expected)
    for node, image in zip(found, expected, strict=True):
        data = base64.b64decode(node.get("href").partition("base64,")[2])
        pixels = np.atleast_3d(np.asarray(Image.open(io.BytesIO(data))))
        np.testing.assert_array_equal(pixels, image.permute(1, 2, 0).numpy())
    rows = {float(node.get("y")) for node in found}
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("draw", "sentence"),
    [
        (lambda: curves({}), "must hold at least one curve"),
        (lambda: curves({"a": ([0, 1], [1])}), "'a' has 2 steps and 1 values"),
        (lambda: curves({"a": ([0], [1])}, smoothing=1.0), r"smoothing=1\.0"),
        (lambda: intervals({"plain": {}}), "must hold at least one value"),
        (lambda: rank_bars({}), "must hold at least one layer"),
        (lambda: fits([]), "must hold at least one task"),
        (lambda: fits([TASK, {"x": [0]}]), "task 1 has no 'after'"),
        (
            lambda: episode_grid(images(2, 2, 0), torch.zeros(2), images(2, 2, 0), torch.zeros(2)),
            r"support_x \(2, 2",
        ),
        (
            lambda: episode_grid(images(2, 1, 0), torch.zeros(2), images(2, 1, 0), torch.zeros(3)),
            "query_y has shape",
        ),
        (lambda: Table(["a", "b"], [["1"]]), "must have 2 entries"),
    ],
)
def test_refused(draw, sentence):
    with pytest.raises(ValueError, match=sentence):
        draw()


class Reader(HTMLParser):
    """Tags, and the text of table cells, of a page; fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)
            if tag in ("td", "th"):
                self.cells.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_page(tmp_path, pictures):
    table = Table(["method", HOSTILE], [["SR + LoRA", "91.2 ± 0.6"], [HOSTILE, "<b>"]], f"5-way, {HOSTILE}")
    hostile = [
        curves({HOSTILE: ([0, 1], [1, 2]), "b": ([0, 1], [1, 2])}, xlabel=HOSTILE),
        intervals({HOSTILE: {HOSTILE: (0.5, 0.1)}, "b": {}}),
        rank_bars({HOSTILE: {HOSTILE: 1}}),
        episode_grid(images(1, 1, 0), torch.zeros(1), images(1, 1, 0), torch.zeros(1), names=[HOSTILE]),
    ]
    figures = [Figure(svg, HOSTILE) for svg in [*pictures.values(), *hostile]]
    sections = [
        Section(HOSTILE, text=f"One.\n\n{HOSTILE}", tables=[table], figures=figures),
        Section("empty"),
    ]
    path = write_report(tmp_path, HOSTILE, sections, facts={"command": HOSTILE})
    assert path == tmp_path / "report.html"
    page = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.cells == ["method", HOSTILE, "SR + LoRA", "91.2 ± 0.6", HOSTILE, "<b>"]
    tags = [tag for tag, _ in reader.tags]
    assert {"script", "link", "iframe", "b"}.isdisjoint(tags)
    assert tags.count("figure") == len(figures)
    for _, attributes in reader.tags:  # nothing is fetched
        for name, value in attributes.items():
            if name.endswith(("href", "src")):
                assert value.startswith(("#", "data:image/png;base64,")), value
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []


def test_page_is_replaced_as_a_whole(tmp_path):
    write_report(tmp_path, "first", [])
    write_report(tmp_path, "second", [])
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert "second" in (tmp_path / "report.html").read_text()
    with pytest.raises(mp.RunError, match="No such file or directory"):
        write_report(tmp_path / "none", "title", [])


def test_drawing_leaves_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    curves({"a": ([0, 1], [1, 2])})
    assert dict(matplotlib.rcParams) == before


def test_terms_are_a_list_of_their_own_and_plain_text(tmp_path):
    page = write_report(tmp_path, "T", [Section("S", terms={"inner-off": HOSTILE, "sr": "x"})]).read_text()
    assert page.count("<dt>") == 2
    assert "<dt>inner-off</dt>" in page
    assert "<script>alert" not in page
    assert "<dl>" not in write_report(tmp_path, "T", [Section("S")]).read_text()


def test_no_two_curves_of_twelve_look_alike():
    svg = curves({f"m{i}": ([0, 1], [i, i]) for i in range(12)})
    styles = [path.get("style", "") for path in drawn(svg).iter() if path.tag.endswith("path")]
    lines = [style for style in styles if "stroke-width: 1.6" in style]  # of the axes, then of the legend
    assert len(set(lines[:12])) == 12
