"""`metapeft predict`: what images of one's own are, by a trained run and a few labelled examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from metapeft.base.whole_numbers import Whole

if TYPE_CHECKING:
    from metapeft.learner.adapted_tasks import Predictions


def predict(
    run: Path,
    images: list[Path],
    *,
    support: Path,
    steps: Whole | None = None,
    picture: Path | None = None,
    json: Path | None = None,
    checkpoint: str | None = None,
    device: str | None = None,
) -> int:
    """Adapt a run to a folder of labelled images, and say what other images are.

    Parameters
    ----------
    run
        Folder of one learner, such as runs/x/metapeft.
    images
        Image files to be told apart.
    support
        A folder with one folder of example images a class; a few a class are enough.
    steps
        Inner steps; default those that the main job chose on validation episodes, else those of the learner.
    picture
        Draw the images with what they are taken for, as PNG, SVG or PDF.
    json
        Write names and probabilities.
    checkpoint
        best (on validation episodes) or latest; default best where there is one.
    device
        cpu, cuda or cuda:1; default the CPU.
    """
    from rich.console import Console
    from rich.table import Table

    from metapeft.cli.trained_run import chosen_steps, image_size, loaded
    from metapeft.datasets.reading import read_images, read_support

    learner = loaded(run, checkpoint, device)
    shape: dict[str, Any] = {} if learner.image_shape else image_size(run)
    shown = read_support(support, learner, **shape)
    asked = read_images(images, learner, **shape)
    if steps is None and learner.inner is not None:
        steps = chosen_steps(run, shift=False)
    adapted = learner.adapt(shown.images, shown.labels, steps, classes=shown.classes)
    found = adapted.predict(asked)
    table = Table(title=f"{len(shown.labels)} examples of {len(shown.classes)} classes")
    for column in ("image", "is", "probability", "else"):
        table.add_column(column, justify="right" if column == "probability" else "left", overflow="fold")
    for file, name, row in zip(images, found.names, found.probabilities):
        first, second = row.topk(2).values.tolist()
        other = shown.classes[int(row.topk(2).indices[1])]
        table.add_row(str(file), name, f"{100 * first:.1f} %", f"{other} {100 * second:.1f} %")
    Console().print(table)
    if json is not None:
        _write(json, images, shown.classes, found)
    if picture is not None:
        _draw(picture, asked, found)
    return 0


def _write(path: Path, images: list[Path], classes: tuple[str, ...], found: Predictions) -> None:
    import json

    from metapeft.base.files import write_atomically

    rows = [
        {"image": str(file), "class": name, "probabilities": dict(zip(classes, row))}
        for file, name, row in zip(images, found.names, found.probabilities.tolist())
    ]
    write_atomically(path, (json.dumps(rows, indent=1) + "\n").encode())


def _draw(path: Path, images: Any, found: Predictions) -> None:
    """The images in rows of six, each with its name and probability above it."""
    import textwrap

    from matplotlib.figure import Figure

    columns = min(6, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.7 * columns, 2.2 * rows), layout="constrained")
    for place, (image, name, row) in enumerate(zip(images, found.names, found.probabilities)):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
        title = "\n".join([*textwrap.wrap(name, 22)[:2], f"{100 * float(row.max()):.0f} %"])
        axes.set_title(title, fontsize=8, parse_math=False)
        axes.set_axis_off()
    figure.savefig(path, dpi=150)
