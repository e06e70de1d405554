"""`metapeft bench`: plain and shifted episodes, with the ablations of the whole method and its controls as rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from metapeft.cli import named_options as named
from metapeft.cli.train import start
from metapeft.experiments.config import BenchConfig

_DEFAULT = BenchConfig()


def bench(
    *,
    config: Annotated[BenchConfig, Parameter(name="*")] = _DEFAULT,
    out: Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> int:
    """Compare methods, ablations and controls on plain and shifted glyphs, and retrain at rounded ranks.

    Parameters
    ----------
    config
        Settings, as for train.
    out
        Run folder; default runs/ and the time.
    resume
        Go on with the run in --out.
    quiet
        No progress bars.
    """
    return start(config, out, resume, quiet, named.options())
