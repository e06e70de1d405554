"""`metapeft evaluate`: a trained learner on episodes of a data set."""

from __future__ import annotations

from pathlib import Path

from metapeft.config import AutocastOrOff, DataName, DtypeName


def evaluate(
    run: Path,
    *,
    data: DataName = "glyphs",
    root: Path | None = None,
    split: str = "test",
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    episodes: int = 600,
    steps: int | None = None,
    shift: bool = False,
    seed: int = 1,
    checkpoint: str | None = None,
    device: str | None = None,
    dtype: DtypeName | None = None,
    autocast: AutocastOrOff | None = None,
) -> int:
    """Evaluate a trained run on episodes.

    Parameters
    ----------
    run
        Folder of one training run, such as runs/x/metapeft.
    data
        Data set.
    root
        Where the data lies; default $METAPEFT_DATA.
    split
        train, val or test.
    ways
        Classes an episode.
    shots
        Support images a class.
    queries
        Query images a class.
    episodes
        How many episodes.
    steps
        Inner steps; default those of the learner.
    shift
        Episodes in the styles of the split.
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
    """
    import metapeft as mp
    from metapeft.cli.loading import loaded

    options = {} if root is None else {"root": root}
    learner = loaded(run, checkpoint, device, dtype, autocast)
    sampler = mp.EpisodeSampler(
        mp.load_dataset(data, split=split, **options), ways, shots, queries, seed=seed, shift=shift
    )
    print(mp.evaluate(learner, sampler, episodes, steps=steps))
    return 0
