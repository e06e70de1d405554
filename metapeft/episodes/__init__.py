"""Episodes: tasks drawn from data, each a pure function of a seed and its number, and the protocol of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metapeft.episodes.table import registry

if TYPE_CHECKING:
    from metapeft.episodes.augment import Augment
    from metapeft.episodes.episode import Episode, EpisodeBatch
    from metapeft.episodes.listing import dump, verify
    from metapeft.episodes.mixed import MixedSampler
    from metapeft.episodes.protocol import Protocol
    from metapeft.episodes.sampler import EpisodeSampler
    from metapeft.episodes.shift import Shift
    from metapeft.episodes.stream import EpisodeStream
    from metapeft.episodes.views import MetaBatches, TaskPairs
else:

    def __getattr__(name: str) -> Any:
        return registry.attribute(name)


def __dir__() -> list[str]:
    return sorted(registry)


__all__ = [
    "Augment",
    "Episode",
    "EpisodeBatch",
    "EpisodeSampler",
    "EpisodeStream",
    "MetaBatches",
    "MixedSampler",
    "Protocol",
    "Shift",
    "TaskPairs",
    "dump",
    "registry",
    "verify",
]
