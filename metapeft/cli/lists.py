"""Options that are lists take their entries with spaces, with commas, or one option for each."""

from __future__ import annotations

from typing import get_args, get_origin

from cyclopts import App, ArgumentCollection, Token

_WITH_COMMAS = ("--data-options",)  # `name=value`, where the value may have some


def split(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """To be a `config` of an `App`: reads `--methods maml,anil` as `--methods maml anil`.

    Lists are the options of type `tuple[..., ...]`, which no path has. What has an empty entry stays as it is, so that
    the error shows it.
    """
    for argument in arguments:
        form = argument.hint
        if get_origin(form) is tuple and get_args(form)[-1] is ... and argument.name not in _WITH_COMMAS:
            entries = [entry for token in argument.tokens for entry in _entries(token)]
            argument.tokens[:] = [entry.evolve(index=place) for place, entry in enumerate(entries)]


def _entries(token: Token) -> list[Token]:
    values = [value.strip() for value in token.value.split(",")]
    return [token.evolve(value=value) for value in values] if all(values) else [token]
