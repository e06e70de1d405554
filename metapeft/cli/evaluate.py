"""`metapeft evaluate`: a trained learner on episodes of a data set."""

from __future__ import annotations

from pathlib import Path

from metapeft.config import DataName


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
    checkpoint: str = "latest",
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
        latest or best.
    """
    import metapeft as mp

    options = {} if root is None else {"root": root}
    learner = mp.load(run, checkpoint=checkpoint)
    sampler = mp.EpisodeSampler(
        mp.load_dataset(data, split=split, **options), ways, shots, queries, seed=seed, shift=shift
    )
    print(mp.evaluate(learner, sampler, episodes, steps=steps))
    return 0
