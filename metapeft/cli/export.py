"""`metapeft export`: one adapted task as an adapter that PEFT loads."""

from __future__ import annotations

from pathlib import Path

from metapeft.base.arguments import whole
from metapeft.base.whole_numbers import Whole
from metapeft.experiments.config import AutocastOrOff, DtypeName


def export(
    run: Path,
    folder: Path,
    *,
    data: str | None = None,
    root: Path | None = None,
    split: str = "test",
    ways: Whole | None = None,
    shots: Whole | None = None,
    episode: Whole = 0,
    seed: Whole = 1,
    steps: Whole | None = None,
    checkpoint: str | None = None,
    device: str | None = None,
    dtype: DtypeName | None = None,
    autocast: AutocastOrOff | None = None,
) -> int:
    """Adapt a run to one episode's support set and write it as an adapter that PEFT loads.

    Parameters
    ----------
    run
        Folder of one learner, such as runs/x/lora-ml.
    folder
        Where the adapter goes.
    data
        Data set; default that of the run.
    root
        Where the data lies; default that of the run, or $METAPEFT_DATA.
    split
        train, val or test.
    ways
        Classes of the episode; default those of the run.
    shots
        Support images a class; default those of the run.
    episode
        Its number.
    seed
        Of the sampler.
    steps
        Inner steps; default those that the main job chose on validation episodes, else those of the learner.
    checkpoint
        best (on validation episodes) or latest; default best where there is one.
    device
        Where the task is adapted: cpu, cuda or cuda:1; default the CPU.
    dtype
        Type of weights and factors; default that of the run.
    autocast
        Type of the forwards that adapt; default that of the run.
    """
    from metapeft.cli.trained_run import chosen_steps, data_and_sizes, loaded
    from metapeft.episodes.sampler import EpisodeSampler
    from metapeft.experiments.samplers import swaps
    from metapeft.updates.peft_export import new_folder

    whole(0, episode=episode)
    new_folder(folder)  # before anything is loaded
    learner = loaded(run, checkpoint, device, dtype, autocast)
    found, sizes = data_and_sizes(run, data, root, split, ways, shots)
    task = EpisodeSampler(found, queries=1, seed=seed, shift=swaps(found.name), **sizes)[episode]
    if steps is None:
        steps = chosen_steps(run, shift=False)
    names = None if task.classes is None else [str(found.classes[i]) for i in task.classes.tolist()]
    adapted = learner.adapt(task.support_x, task.support_y, steps, mask=task.support_mask, classes=names)
    adapted.export_peft(folder)
    print(f"{folder}: the adapter of episode {episode}")
    return 0
