"""The side of a data set's images, in pixels."""

from __future__ import annotations

from metapeft.base.arguments import whole

MOST_SIDE = 2048


def check_side(size: object) -> None:
    """Raise ValueError for what is no side of images that a data set holds.

    Example:
        >>> check_side(100_000)
        Traceback (most recent call last):
        ValueError: size=100000: allowed is a whole number from 8 to 2048
    """
    whole(8, MOST_SIDE, size=size)
