"""The table of episodes: adding one is its file and its line here."""

from __future__ import annotations

from metapeft.base.registry import Registry

registry = Registry(
    "metapeft.episodes",
    "episode tool",
    attributes={
        "Episode": "episode",
        "EpisodeBatch": "episode",
        "EpisodeSampler": "sampler",
        "MixedSampler": "mixed",
        "EpisodeStream": "stream",
        "MetaBatches": "views",
        "TaskPairs": "views",
        "Protocol": "protocol",
        "dump": "listing",
        "verify": "listing",
        "Shift": "shift",
        "Augment": "augment",
    },
    names={},
)
