"""The learner that a command of the shell runs: from a run folder, where and as exactly as asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from metapeft.config import AutocastOrOff, DtypeName

if TYPE_CHECKING:
    from metapeft.learner import Learner


def loaded(
    run: Path,
    checkpoint: str | None,
    device: str | None = None,
    dtype: DtypeName | None = None,
    autocast: AutocastOrOff | None = None,
) -> Learner:
    """The learner of a run.

    Args:
        run, checkpoint: as `mp.load` takes them.
        device: None for the CPU. dtype: None for the run's. autocast: None for the run's, `"off"` for none.

    Raises:
        ValueError: a device that is not here, an autocast that does not go with the dtype.
        RunError: no such run.
    """
    from metapeft.loading import load
    from metapeft.placement import ask, options
    from metapeft.precision import check_autocast

    given = options(device, dtype, None if autocast == "off" else autocast)
    learner = load(run, checkpoint=checkpoint, device=given["device"])
    if given["dtype"] is not None:
        learner.to(dtype=given["dtype"])
    if autocast is not None:
        learner.autocast = given["autocast"]
    check_autocast(learner.autocast, next(iter(learner.model.parameters.values())))
    ask(device, None if learner.autocast is None else "bfloat16")
    return learner
