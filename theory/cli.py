"""The commands of the theory suite, also mounted as `metapeft theory`; heavy imports wait for a command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

app = App(name="theory", help="The linear and the shallow model: theorem checks and figures.")


@app.command
def verify(*, json: Path | None = None, seed: int = 0) -> None:
    """Check the seven theorems and what goes beyond them; exit 1 if a bound is violated.

    Parameters
    ----------
    json
        File for the result: checks (theorem, statement, instances, measured, bound, passed) and seconds.
    seed
        Of the random instances.
    """
    from theory.verify import verify as run

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
    seed: int = 0,
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
    """
    from theory.figures import draw

    draw(out, protocol, only, seed)
