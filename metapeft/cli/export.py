"""`metapeft export`: one adapted task as an adapter that PEFT loads."""

from __future__ import annotations

from pathlib import Path

from metapeft.config import DataName, DtypeName


def export(
    run: Path,
    folder: Path,
    *,
    data: DataName = "glyphs",
    root: Path | None = None,
    split: str = "test",
    ways: int = 5,
    shots: int = 1,
    episode: int = 0,
    seed: int = 1,
    steps: int | None = None,
    checkpoint: str | None = None,
    device: str | None = None,
    dtype: DtypeName | None = None,
) -> int:
    """Adapt a run to one episode's support set and write it as an adapter that PEFT loads.

    Parameters
    ----------
    run
        Folder of one training run, such as runs/x/lora-ml.
    folder
        Where the adapter goes.
    data
        Data set.
    root
        Where the data lies; default $METAPEFT_DATA.
    split
        train, val or test.
    ways
        Classes of the episode.
    shots
        Support images a class.
    episode
        Its number.
    seed
        Of the sampler.
    steps
        Inner steps; default those of the learner.
    checkpoint
        best (on validation episodes) or latest; default best where there is one.
    device
        Where the task is adapted: cpu, cuda or cuda:1; default the CPU.
    dtype
        Type of weights and factors; default that of the run.
    """
    import metapeft as mp
    from metapeft.cli.loading import loaded

    if episode < 0:
        raise ValueError(f"episode={episode}: episodes are counted from 0")
    if (folder / "config.json").exists() or folder.is_file():
        raise ValueError(
            f"folder={str(folder)!r} is a run folder or a file: name a new folder for the adapter"
        )
    options = {} if root is None else {"root": root}
    learner = loaded(run, checkpoint, device, dtype)
    sampler = mp.EpisodeSampler(mp.load_dataset(data, split=split, **options), ways, shots, 1, seed=seed)
    task = sampler[episode]
    learner.adapt(task.support_x, task.support_y, steps, ways=ways).export_peft(folder)
    print(f"{folder}: the adapter of episode {episode}")
    return 0
