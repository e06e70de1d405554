"""Errors that metapeft raises beside ValueError."""

from __future__ import annotations


class NumericalError(ArithmeticError):
    """A number that cannot be trusted: a non-finite objective or gradient, or a linear solve that failed."""


class DataError(ValueError):
    """Data on disk that is missing, incomplete or not what it claims to be; the message says what to put where."""


class RunError(ValueError):
    """A run folder that cannot be used: foreign, damaged, unwritable, or in use by another process."""
