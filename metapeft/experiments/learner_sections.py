"""What the report shows of the learners that a run kept: predictions of an episode, seeds by task, ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from metapeft.base.errors import NumericalError, RunError
from metapeft.datasets.texts import TextData
from metapeft.episodes.sampler import EpisodeSampler
from metapeft.experiments.compared_methods import OWN
from metapeft.experiments.report.bar_plot import rank_bars
from metapeft.experiments.report.page import Figure, Section, Table
from metapeft.experiments.report.pictures import episode_grid
from metapeft.experiments.report.scatter_plot import embedding
from metapeft.experiments.report.sentences import episode_texts
from metapeft.experiments.results import Results
from metapeft.experiments.samplers import Column, Samplers
from metapeft.learner.learner import Learner
from metapeft.training.runs.learner_in_run import load
from metapeft.updates.formats.moved_weights import largest_move, unmoved

TASKS, AT_ONCE = 96, 8  # of the picture of seeds


@dataclass(frozen=True)
class Kept:
    """A method whose learner lies in the run's folder."""

    name: str
    learner: Learner


def kept(folder: Path, found: Results) -> Kept | None:
    """The whole method, or the first of the table whose learner can be read; None for none."""
    for name in sorted(found.rows, key=lambda name: name != OWN):
        if (learner := read(folder / name)) is not None:
            return Kept(name, learner)
    return None


def read(folder: Path) -> Learner | None:
    """A learner, None where none was kept or it is of another version."""
    try:
        return load(folder)
    except (RunError, ValueError, OSError):
        return None


def episodes_section(samplers: Samplers, found: Results, method: Kept | None) -> Section:
    """The first test episode of each kind or column, its query images framed by what the method says of them."""
    figures: list[Figure] = []
    tables: list[Table] = []
    for column, number, name in _first_of_each(samplers):
        sampler = column.test
        episode = sampler[number]
        if isinstance(sampler.dataset, TextData):
            titles, rows = episode_texts(episode, sampler.dataset)
            tables.append(Table(titles, rows, f"Test episode {number}, {name}."))
            continue
        names = None
        if episode.classes is not None:
            names = [sampler.dataset.classes[place] for place in episode.classes.tolist()]
        there = slice(None) if episode.query_mask is None else episode.query_mask
        query_y = episode.query_y[there]
        parts = (episode.support_x, episode.support_y, episode.query_x[there], query_y, names)
        said = None if method is None else predicted(method, found, column, number)
        if method is None or said is None:
            figures.append(Figure(episode_grid(*parts), f"Test episode {number}, {name}."))
            continue
        said = said[there]
        right = int((said == query_y).sum())
        steps = "" if column.steps is None else f", {column.name}"
        caption = (
            f"Test episode {number}, {name}: {method.name}{steps} names {right} of {len(said)} query images right "
            "(whole frames); the number in a dashed frame is the row that it took the image for."
        )
        if others := _others(found, method.name, column.name, number, len(said)):
            caption += f" On the same images {others}."
        figures.append(Figure(episode_grid(*parts, queries=10, predicted=said), caption, large=True))
    return Section("Episodes", tables=tables, figures=figures)


def _first_of_each(samplers: Samplers) -> Iterator[tuple[Column, int, str]]:
    """A column, the number of an episode in it, and the episode's name."""
    if samplers.columns[0].steps is None:
        yield from ((column, 0, column.name) for column in samplers.columns)
        return
    column = samplers.columns[-1]
    kinds = column.test.kind_of(torch.arange(64)).tolist()
    for kind in sorted(set(kinds), key=kinds.index):
        yield column, kinds.index(kind), f"kind {column.test.kinds[kind]}"


def predicted(method: Kept, found: Results, column: Column, number: int) -> Tensor | None:
    """Labels `(N*Q,)` of the query images of a test episode, as the table's cell has them; None where it diverges."""
    episode = column.test[number]
    steps = found.rows[method.name].steps(column.name) if column.steps is None else column.steps
    if method.learner.inner is None:
        steps = None
    try:
        adapted = method.learner.adapt(episode.support_x, episode.support_y, steps=steps)
    except NumericalError:
        return None
    with torch.no_grad():
        return adapted(episode.query_x).argmax(-1).cpu()


def _others(found: Results, own: str, column: str, number: int, queries: int) -> str:
    """How many the other methods have right in that episode."""
    cells = {name: row.columns.get(column) for name, row in found.rows.items() if name != own}
    counts = [
        f"{name} {round(cell.values[number] * queries)}"
        for name, cell in cells.items()
        if cell is not None and number < len(cell.values)
    ]
    return ", ".join(counts)


def seeds_section(samplers: Samplers, method: Kept | None) -> list[Section]:
    """The generated seeds of many test tasks, by kind; none without a generator or without kinds."""
    sampler = next((column.test for column in reversed(samplers.columns) if column.test.kinds), None)
    if method is None or method.learner.generator is None or sampler is None:
        return []
    points = generated(method.learner, sampler)
    kinds = torch.as_tensor(sampler.kind_of(torch.arange(TASKS)))
    if not bool(points.isfinite().all()):
        return []
    groups = {
        name: points[kinds == place]
        for place, name in enumerate(sampler.kinds)
        if bool((kinds == place).any())
    }
    near = torch.cdist(points, points).fill_diagonal_(torch.inf).argmin(1)
    same = float((kinds[near] == kinds).double().mean())
    chance = sum((len(own) / TASKS) * (len(own) - 1) / (TASKS - 1) for own in groups.values())
    text = (
        f"What {method.name} generates from the support sets of {TASKS} test tasks, {points.shape[1]} numbers each, "
        f"before any inner step. The nearest other task is of the same kind for {100 * same:.0f} % of them; by chance "
        f"it were {100 * chance:.0f} %."
    )
    caption = (
        "A dot a task, in the two directions in which the seeds spread most. Clouds apart by colour: the generator "
        "sees from the support set what kind of task it is. Mixed clouds: it does not, or kinds differ in smaller "
        "directions."
    )
    return [Section("Seeds by task", text, figures=[Figure(embedding(groups), caption)])]


def generated(learner: Learner, sampler: EpisodeSampler) -> Tensor:
    """The seeds of the first test tasks, `(TASKS, numbers)`."""
    rows = []
    for start in range(0, TASKS, AT_ONCE):
        batch = sampler.batch(start, AT_ONCE)
        many = learner.adapt_many(batch.support_x, batch.support_y, steps=0)
        rows.append(torch.cat([many.factors[name].flatten(1) for name in learner.seeds], 1).detach().cpu())
    return torch.cat(rows).double()


def ranks_section(folder: Path, found: Results, largest: int) -> list[Section]:
    """Selection variables rounded to ranks, and how far their weights have moved."""
    figures = []
    for name, row in found.rows.items():
        if not row.ranks:
            continue
        learner, moved = read(folder / name), ""
        if learner is not None and learner.selected:
            logits = {key: learner.variables[f"selection.{key}"] for key in learner.selected}
            far = f"The weights have moved by up to {100 * largest_move(logits):.0f} % of 1/k."
            moved = f" {unmoved(logits) or far}"
        caption = f"{name}: bars are ranks by rule, the dashed line the rank before rounding.{moved}"
        figures.append(Figure(rank_bars(row.ranks, largest), caption))
    text = (
        "Rounded by the rule of AutoLoRA, a term stays where its weight is at least 1/k, and by a total budget of half "
        "of all terms. Short searches move the weights little, so ranks near k/2 may be noise."
    )
    return [Section("Ranks by layer", text, figures=figures)] if figures else []
