"""`metapeft episodes`: index lists of a protocol, written and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import App

from metapeft.base.arguments import whole
from metapeft.base.whole_numbers import Whole, WholeOrRest
from metapeft.datasets.shell_options import reader_options
from metapeft.experiments.config import Small

app = App(name="episodes", help="Write or check the index lists of a protocol.", help_format="plaintext")


@app.command
def dump(
    path: Path,
    *,
    data: str = "glyphs",
    root: Path | None = None,
    data_options: tuple[str, ...] = (),
    split: str = "test",
    ways: tuple[Whole, ...] = (5,),
    shots: tuple[Whole, ...] = (1,),
    queries: WholeOrRest = 15,
    rotations: bool = False,
    imbalanced: bool = False,
    small: Small = "refuse",
    episodes: Whole = 600,
    seed: Whole = 0,
) -> int:
    """Write the classes and images of the first episodes as JSON.

    Parameters
    ----------
    path
        The file to write.
    data
        Data set: glyphs, glyph-pairs, coloured-glyphs, omniglot, omniglot-pairs, miniimagenet or folder.
    root
        Where the data lies; default $METAPEFT_DATA.
    data_options
        What its reader takes beside that, as name=value: split_by=characters, size=40.
    split
        train, val or test.
    ways
        Classes an episode; two of them, --ways 3,7, for a number that varies between them.
    shots
        Support images a class; two numbers for one that varies.
    queries
        Query images a class; rest for all that are not in the support set.
    rotations
        Rotated images are further classes.
    imbalanced
        Each class of an episode has a number of shots of its own.
    small
        Classes with too few images: refuse; skip leaves them out; cap takes as many queries as there are.
    episodes
        How many episodes.
    seed
        Of the sampler.
    """
    from metapeft.datasets.by_name import load_dataset
    from metapeft.episodes.listing import dump as write
    from metapeft.episodes.sampler import EpisodeSampler

    whole(episodes=episodes)
    sizes: dict[str, Any] = {}
    for name, size in (("ways", ways), ("shots", shots)):
        if not 1 <= len(size) <= 2:
            raise ValueError(f"{name} is given {len(size)} times: once, or twice for the least and the most")
        sizes[name] = size if len(size) == 2 else size[0]
    options = reader_options(data_options, root)
    sampler = EpisodeSampler(
        load_dataset(data, split=split, **options), queries=queries, seed=seed, rotations=rotations,
        imbalanced=imbalanced, small=small, **sizes,
    )  # fmt: skip
    print(f"{path}: {write(sampler, episodes, path)}")
    return 0


@app.command
def verify(
    path: Path,
    *,
    data: str = "glyphs",
    root: Path | None = None,
    data_options: tuple[str, ...] = (),
    split: str = "test",
) -> int:
    """Check a file of `dump` against a data set and against the sampler itself.

    Parameters
    ----------
    path
        The file to check.
    data
        Data set: glyphs, glyph-pairs, coloured-glyphs, omniglot, omniglot-pairs, miniimagenet or folder.
    root
        Where the data lies; default $METAPEFT_DATA.
    data_options
        What its reader takes beside that, as name=value: split_by=characters, size=40.
    split
        train, val or test.
    """
    from metapeft.datasets.by_name import load_dataset
    from metapeft.episodes.listing import verify as check

    options = reader_options(data_options, root)
    print(f"{path} holds what it says: {check(path, load_dataset(data, split=split, **options))}")
    return 0
