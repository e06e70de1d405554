"""Files of options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cyclopts import App
from cyclopts.config import Dict, Json, Toml, Yaml

from metapeft.base.reading import check_file
from metapeft.base.suggestions import did_you_mean

_MOST = 2**20  # bytes
_DEEPEST = 50
_FORMATS = {".toml": Toml, ".yaml": Yaml, ".yml": Yaml, ".json": Json}


def from_file(path: Path, app: App, tokens: Sequence[str]) -> Dict:
    """The options that a file gives to the command of `tokens`.

    Raises:
        ValueError: a file that is not there, cannot be read, or says more than this command has options.
    """
    if path.suffix not in _FORMATS:
        raise ValueError(f"config={str(path)!r}: allowed are files that end in {', '.join(_FORMATS)}")
    if not path.is_file():
        raise ValueError(f"config={str(path)!r}: there is no such file")
    reader: Callable[..., Any] = _FORMATS[path.suffix]
    try:
        check_file(path, _MOST)
        if path.suffix in (".yaml", ".yml"):
            _refuse_aliases(path)
        found = reader(path, must_exist=True).config
    except Exception as error:
        if isinstance(error, RecursionError):
            error = ValueError("it nests too deep")
        cause = error.__cause__ or error
        raise ValueError(f"config={str(path)!r} cannot be read as {path.suffix[1:]}: {cause}") from error
    if not isinstance(found, dict):
        raise ValueError(f"config={str(path)!r} is a {type(found).__name__}: options by name are needed")
    known = _options(app, tokens)
    for name, value in found.items():
        if isinstance(value, dict):
            raise ValueError(
                f"config={str(path)!r}: {name!r} is a table, but options stand at the top, for the command that is "
                "called"
            )
        if name not in known:
            hint = did_you_mean(name, known) or f": known are {', '.join(sorted(known))}"
            raise ValueError(f"config={str(path)!r}: unknown option {name!r}{hint}")
    # `data` is an option here and a command elsewhere
    for command in reversed(app.parse_commands(tokens)[0]):
        found = {command: found}
    return Dict(found, source=str(path))


def _refuse_aliases(path: Path) -> None:
    """Raise ValueError for a name in YAML that stands for something else: a few of them make a file of any size.

    Depth is refused here too, for YAML's reader takes a time that grows with its square.
    """
    import yaml

    depth = 0
    for token in yaml.scan(path.read_text(encoding="utf-8")):
        kind = type(token).__name__
        depth += kind.endswith("StartToken") - kind.endswith("EndToken")
        if depth > _DEEPEST:
            raise ValueError("it nests too deep")
        if isinstance(token, yaml.AliasToken | yaml.AnchorToken):
            raise ValueError("it has an anchor or an alias (& or *): write out what is meant")


def _options(app: App, tokens: Sequence[str]) -> set[str]:
    """Names of the options of the command that is called, with underscores and with hyphens."""
    command = app.parse_commands(tokens)[1][-1]
    arguments = command.assemble_argument_collection()
    hyphened = {name[2:] for argument in arguments for name in argument.names if name.startswith("--")}
    return hyphened | {name.replace("-", "_") for name in hyphened}
