"""`metapeft evaluate`: a trained learner on episodes of a data set."""

from __future__ import annotations

from pathlib import Path

from metapeft.base.whole_numbers import Whole, WholeOrRest
from metapeft.experiments.config import AutocastOrOff, DtypeName, Small


def evaluate(
    run: Path,
    *,
    data: str | None = None,
    root: Path | None = None,
    split: str = "test",
    ways: Whole | None = None,
    shots: Whole | None = None,
    queries: WholeOrRest = 15,
    small: Small | None = None,
    episodes: Whole = 600,
    steps: Whole | None = None,
    shift: bool = False,
    seed: Whole = 1,
    checkpoint: str | None = None,
    device: str | None = None,
    dtype: DtypeName | None = None,
    autocast: AutocastOrOff | None = None,
    compiled: bool = False,
) -> int:
    """Evaluate a trained run on episodes.

    Parameters
    ----------
    run
        Folder of one learner, such as runs/x/metapeft.
    data
        Data set; default that of the run.
    root
        Where the data lies; default that of the run, or $METAPEFT_DATA.
    split
        train, val or test.
    ways
        Classes an episode; default those of the run.
    shots
        Support images a class; default those of the run.
    queries
        Query images a class; rest for all that are not in the support set.
    small
        Classes with too few images: refuse; skip leaves them out; cap takes as many queries as there are; default as in
        the run.
    episodes
        How many episodes.
    steps
        Inner steps; default those that the main job chose on validation episodes, else those of the learner.
    shift
        Episodes in the styles of the split; without it those of pairs swap the halves of every other episode.
    seed
        Of the episodes.
    checkpoint
        best (on validation episodes) or latest; default best where there is one.
    device
        cpu, cuda or cuda:1; default the CPU.
    dtype
        Type of weights, inner variables and losses; default that of the run.
    autocast
        Type of the forwards; default that of the run.
    compiled
        Compute with compiled kernels where they fit.
    """
    from metapeft.cli.trained_run import chosen_steps, data_and_sizes, loaded
    from metapeft.episodes.sampler import EpisodeSampler
    from metapeft.experiments.samplers import swaps
    from metapeft.training.evaluation import evaluate as measure
    from metapeft.updates.layers.compiled.switch import compiled_used

    learner = loaded(run, checkpoint, device, dtype, autocast)
    found, sizes = data_and_sizes(run, data, root, split, ways=ways, shots=shots, small=small)
    sampler = EpisodeSampler(found, queries=queries, seed=seed, shift=shift or swaps(found.name), **sizes)
    if steps is None:
        steps = chosen_steps(run, shift)
    with compiled_used(compiled):
        print(measure(learner, sampler, episodes, steps=steps))
    return 0
