"""A sample episode of texts as a table: a row a class, its support texts and some of its queries."""

from __future__ import annotations

from metapeft.datasets.texts import TextData
from metapeft.episodes.episode import Episode


def episode_texts(episode: Episode, data: TextData, shown: int = 2) -> tuple[list[str], list[list[str]]]:
    """Titles and cells: class, support texts, query texts, at most `shown` of each.

    Raises:
        ValueError: an episode of which it is not known where its texts stand.
    """
    if episode.classes is None or episode.support_index is None or episode.query_index is None:
        raise ValueError("episode has no places in a data set: an EpisodeSampler's own is needed")
    rows = []
    for way, number in enumerate(episode.classes.tolist()):
        parts = (
            (episode.support_index, episode.support_y),
            (episode.query_index, episode.query_y),
        )
        texts = ["; ".join(data.texts[i] for i in index[y == way].tolist()[:shown]) for index, y in parts]
        rows.append([data.classes[number], *texts])
    return ["class", "support", "query"], rows
