"""Figures: the files, their columns, the end points, and what each protocol says of itself."""

import csv

import numpy as np
import pytest

from theory.figures import command as figures
from theory.figures import sweeps
from theory.figures.extras import EXTRAS
from theory.figures.rows import Row, curves, exact

COLUMNS = ["sweep", "value", "method", "run", "step", "loss", "population"]


def read(path):
    with path.open() as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == COLUMNS
        return list(reader)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    out = tmp_path_factory.mktemp("figures")
    return out, figures.draw(out, only="d")


def test_each_figure_is_three_files_and_a_page(drawn):
    out, written = drawn
    names = ["index.html", "sweep-d.csv", "sweep-d.png", "sweep-d.svg"]
    assert sorted(path.name for path in written) == names
    assert all(path.stat().st_size > 500 for path in written)
    page = (out / "index.html").read_text()
    assert "sweep-d.png" in page
    assert "corrected" in page


def test_rows_hold_curves_and_exact_ends(drawn):
    rows = read(drawn[0] / "sweep-d.csv")
    keys = {(row["value"], row["method"], row["run"]) for row in rows}
    assert len(keys) == 3 * 2 * 5
    for key in keys:
        mine = [row for row in rows if (row["value"], row["method"], row["run"]) == key]
        steps = [int(row["step"]) for row in mine if row["step"] != "exact"]
        assert len(mine) - len(steps) == 1
        assert len(steps) >= 10
        assert len(set(steps)) == len(steps)


def ends(rows):
    """Loss at the last step over the exact one, by curve."""
    last, best = {}, {}
    for row in rows:
        key = (row.value, row.method, row.run)
        if row.step == "exact":
            best[key] = row.loss
        elif key not in last or row.step > last[key][0]:
            last[key] = (row.step, row.loss)
    return np.array([last[key][1] / best[key] for key in best])


@pytest.mark.parametrize("name", ["d", "n"])
def test_corrected_curves_end_at_their_exact_solution(name):
    assert np.abs(ends(sweeps.linear_sweeps([name], "corrected", seed=1)[name]) - 1).max() <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["T", "N", "k", "rank"])
def test_corrected_long_curves_end_at_their_exact_solution(name):
    assert np.abs(ends(sweeps.linear_sweeps([name], "corrected", seed=1)[name]) - 1).max() <= 0.01


def test_the_methods_tie_at_two_tasks_and_rank_3k():
    rows = list(EXTRAS["tie"](np.random.default_rng(2), draws=5))
    retrained, learned = exact(rows, "sr+lora"), exact(rows, "lora-ml")
    assert retrained[3].min() <= learned[3].mean() <= retrained[3].max()
    assert retrained[2].min() > 10 * retrained[3].max()  # one rank less is not enough


@pytest.mark.slow
def test_the_paper_protocol_shows_its_faults():
    """At T = 2 SR's frozen adapters leave a gap; noise sigma^2 puts the floor 100 times lower."""
    paper = sweeps.linear_sweeps(["T"], "paper")["T"]
    corrected = sweeps.linear_sweeps(["T"], "corrected")["T"]
    assert exact(paper, "sr+lora")[2].mean() > 20 * exact(paper, "lora-ml")[2].mean()
    ratio = exact(corrected, "lora-ml")[3].mean() / exact(paper, "lora-ml")[3].mean()
    assert ratio == pytest.approx(100, rel=0.05)


def test_a_draw_is_nested_and_seeded():
    one, again = sweeps.Draw(0, 0, "corrected"), sweeps.Draw(0, 0, "corrected")
    small, large = (setting for _, setting, _ in sweeps.settings("d")[::2])
    np.testing.assert_array_equal(one.retraining(small).xx, again.retraining(small).xx)
    np.testing.assert_array_equal(one.retraining(large).xx[:, :5, :5], one.retraining(small).xx)
    np.testing.assert_array_equal(one.test(large)[1][:5, :5], one.test(small)[1])
    assert sweeps.Draw(1, 0, "corrected").base[0, 0] != one.base[0, 0]


@pytest.mark.parametrize("name", EXTRAS)
def test_extra_figures_can_be_drawn(name, tmp_path):
    rows = list(EXTRAS[name](np.random.default_rng(0), draws=2))
    shown = figures._save(tmp_path, name, rows, "corrected")
    assert {row.step for row in rows} == {"exact"}
    assert (tmp_path / f"{shown.stem}.png").stat().st_size > 5000


def test_meta_learners_at_zero_spread_are_sr():
    found = exact(EXTRAS["covariance"](np.random.default_rng(3), draws=10), "maml", "population")
    assert found[0.0].max() < 1e-20
    assert np.median(found[1.0]) > 1


def test_curves_are_in_order():
    rows = [Row("d", 5, "lora-ml", 0, step, float(step), 0.0) for step in (2, 0, 1)]
    ((steps, losses),) = curves(rows, "lora-ml", 5)
    assert steps.tolist() == losses.tolist() == [0, 1, 2]


def test_file_names_differ_by_more_than_case():
    stems = [figures.FILES.get(name, name) for name in figures.names(None, "corrected")]
    assert len({stem.lower() for stem in stems}) == len(stems)


@pytest.mark.parametrize(
    ("only", "protocol", "words"),
    [
        ("x", "corrected", "unknown figure 'x'"),
        (",", "corrected", "names no figure"),
        ("tie", "paper", "not in the paper"),
    ],
)
def test_unknown_figures_are_refused(only, protocol, words):
    with pytest.raises(ValueError, match=words):
        figures.names(only, protocol)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "here").write_text("")
    with pytest.raises(ValueError, match="give a folder"):
        figures.draw(tmp_path / "here", only="d")


def test_the_page_follows_the_reader_s_scheme_and_says_each_note_once(tmp_path):
    """The pictures are part of it, in its colours and without the notes, and no condition has its name twice."""
    rows = list(EXTRAS["tie"](np.random.default_rng(0), draws=2))
    shown = figures._save(tmp_path, "tie", rows, "corrected")
    figures._summary(tmp_path, "corrected", [shown], 0, 1.0)
    page = (tmp_path / "index.html").read_text()
    assert "prefers-color-scheme: dark" in page
    assert "<img" not in page
    assert page.count("<svg") == 1
    assert "var(--d55e00, #D55E00)" in page
    picture = page[page.index("<svg") : page.index("</svg>")]
    assert "#ffffff" not in picture  # no ground of its own
    assert page.count(shown.caption[:40].replace("'", "&#39;")) == 1
    assert [note.count("T = 2:") for note in figures._caveats("T", [])] == [1]
