"""Episodes of a run as settings that a program can read, and the way back."""

from __future__ import annotations

from typing import Any

from metapeft.base.stored_settings import as_json, custom, refuse_difference
from metapeft.datasets.by_name import load_dataset
from metapeft.datasets.rotated import Rotated
from metapeft.episodes.augment import Augment
from metapeft.episodes.mixed import MixedSampler
from metapeft.episodes.sampler import EpisodeSampler
from metapeft.episodes.shift import Shift


def of_episodes(episodes: Any) -> Any:
    """What identifies the episodes of a run.

    An `EpisodeSampler` is described by its arguments and its data, a `MixedSampler` by its parts; anything else by its
    own `settings()`, or by the name of its class.

    Example:
        >>> of_episodes(None), of_episodes([1])
        (None, {'custom': 'list'})
    """
    if episodes is None:
        return None
    if type(episodes) is MixedSampler:
        parts = [[name, of_episodes(one)] for name, one in episodes.samplers.items()]
        return {"mixed": {"samplers": parts, "weights": list(episodes.weights), "seed": episodes.seed}}
    if type(episodes) is not EpisodeSampler:
        settings = getattr(episodes, "settings", None)
        return as_json(settings()) if callable(settings) else custom(episodes)
    data = episodes.dataset
    found = {
        "data": of_data(data.data if episodes.rotations and isinstance(data, Rotated) else data),
        "shift": of_change(episodes.shift),
        "augment": of_change(episodes.augment),
        "rotations": episodes.rotations,
        "imbalanced": episodes.imbalanced,
        "episodes": episodes.episodes,
    }
    if episodes.small != "refuse":  # as runs of before there was any say it
        found["small"] = episodes.small
    numbers = {name: getattr(episodes, name) for name in ("ways", "shots", "queries", "seed")}
    return {"sampler": as_json({**numbers, **found})}


def of_data(data: Any) -> dict[str, Any]:
    """Name, split, class list and size of a data set, and how `load_dataset` reads it again."""
    images = getattr(data, "images", None)
    return {
        "name": getattr(data, "name", type(data).__qualname__),
        "split": getattr(data, "split", None),
        "split_hash": getattr(data, "split_hash", None),
        "images": None if images is None else list(images.shape),
        "loaded": as_json(getattr(data, "loaded", None)),
    }


def of_change(change: Any) -> Any:
    """A shift or an augmentation by its settings; one of the user's own by its name."""
    if type(change) is Shift:
        return {"kinds": list(change.kinds)}
    if type(change) is Augment:
        return change.settings()
    return None if change is None else custom(change)


def built_episodes(spec: Any, part: str) -> Any:
    """Episodes from what `of_episodes` said.

    Args:
        spec: of an `EpisodeSampler` on data that `load_dataset` reads, or of a mixture of such.
        part: name of the argument.

    Raises:
        ValueError: episodes or data of the user's own, which that argument has to give.
    """
    if spec is None:
        return None
    if mixed := spec.get("mixed"):
        samplers = {name: built_episodes(one, part) for name, one in mixed["samplers"]}
        return MixedSampler(samplers, mixed["weights"], mixed["seed"])
    own = spec.get("sampler")
    loaded = None if own is None else own["data"]["loaded"]
    changes = () if own is None else (own["shift"], own["augment"])
    if own is None or loaded is None or any(change and "custom" in change for change in changes):
        raise ValueError(
            f"{part}= is missing: the run had {part} that cannot be built from its settings, for the "
            "sampler, its data or what changes the images is of your own"
        )
    data = load_dataset(**loaded)
    refuse_difference(f"{part}.data", own["data"], of_data(data))
    shift = None if own["shift"] is None else Shift(own["shift"]["kinds"])
    augment = None if own["augment"] is None else Augment(**own["augment"])
    ways, shots = (tuple(v) if isinstance(v, list) else v for v in (own["ways"], own["shots"]))
    more = {name: own[name] for name in ("rotations", "imbalanced", "episodes", "small") if name in own}
    return EpisodeSampler(data, ways, shots, own["queries"], own["seed"], shift, augment=augment, **more)
