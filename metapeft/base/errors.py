"""Errors that metapeft raises beside ValueError."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager


class NumericalError(ArithmeticError):
    """A number that cannot be trusted: a non-finite objective or gradient, or a linear solve that failed."""


class NoSecondDerivative(ValueError):
    """A function of torch stands in an objective that is to be differentiated twice, and can be once.

    Args:
        function: as torch calls it. layers: that call such functions, where that is known.
    """

    def __init__(self, function: str, layers: str = "") -> None:
        of = f"; {layers}" if layers else ""
        super().__init__(
            f"torch has no second derivative of {function}{of}: the hypergradients 'first-order' and "
            "'finite-difference' need none, and a layer without it may take its place"
        )
        self.function = function


@contextmanager
def second_derivatives() -> Iterator[None]:
    """Where torch lacks a derivative of a derivative, raise `NoSecondDerivative` in place of its own error.

    Example:
        >>> try:
        ...     with second_derivatives():
        ...         raise NotImplementedError("derivative for aten::_pdist_backward is not implemented")
        ... except NoSecondDerivative as error:
        ...     error.function
        '_pdist'
    """
    try:
        yield
    except RuntimeError as error:
        found = re.search(
            r"derivative for '?(?:aten::)?(\w+?)(?:_backward)?'? is not implemented", str(error)
        )
        if found is None:
            raise
        raise NoSecondDerivative(found.group(1)) from error


class NotFiniteInput(NumericalError, ValueError):
    """NaN or infinity in what a batch of tasks holds.

    Args:
        name: of the argument, such as `support_x`. task, item: where in it. episode: of that task, if it is known.

    Example:
        >>> print(NotFiniteInput("query_x", task=1, item=4).among(2).of_episode(19))
        query_x has NaN or infinity in item 4 of task 3, episode 19 (a damaged file, or a division by 0?)
    """

    def __init__(self, name: str, task: int, item: int, episode: int | None = None) -> None:
        known = "" if episode is None else f", episode {episode}"
        super().__init__(
            f"{name} has NaN or infinity in item {item} of task {task}{known} (a damaged file, or a division by 0?)"
        )
        self.name, self.task, self.item, self.episode = name, task, item, episode

    def among(self, before: int) -> NotFiniteInput:
        """The same in a batch that has `before` tasks more in front."""
        return NotFiniteInput(self.name, self.task + before, self.item, self.episode)

    def of_episode(self, number: int) -> NotFiniteInput:
        """The same with the number of its episode."""
        return NotFiniteInput(self.name, self.task, self.item, number)


class DataError(ValueError):
    """Data on disk that is missing, incomplete or not what it claims to be; the message says what to put where."""


class RunError(ValueError):
    """A run folder that cannot be used: foreign, damaged, unwritable, or in use by another process."""


@contextmanager
def stored_in(path: str | os.PathLike[str]) -> Iterator[None]:
    """What is done inside takes apart what a file stores; a part that is missing or of another kind is a RunError.

    Example:
        >>> with stored_in("run/config.json"):
        ...     {"steps": 3}["learner"]
        Traceback (most recent call last):
        metapeft.base.errors.RunError: run/config.json holds something else than a run stores there (there is no ...
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        what = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(
            f"{os.fspath(path)} holds something else than a run stores there ({what}): was it changed, copied in from "
            "elsewhere, or written by another version?"
        ) from error
