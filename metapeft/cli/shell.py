"""The shell's commands by name; each is imported when it is called, so that `--help` answers at once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter
from rich.console import Console

from metapeft.base.version import __version__
from metapeft.cli import lists
from metapeft.cli import named_options as named
from metapeft.cli.config_file import from_file
from metapeft.cli.wording import in_the_shell

app = App(
    name="metapeft",
    help="Bilevel meta-learning of parameter-efficient updates.",
    version=__version__,
    help_format="plaintext",
    default_parameter=Parameter(consume_multiple=True),  # --seeds 0 1 2
    suppress_keyboard_interrupt=False,  # its own way ends without a word
)
_COMMANDS = {
    "train": "Meta-train and compare methods on few-shot episodes; without options the main job on pairs of glyphs.",
    "evaluate": "Evaluate a trained run on episodes.",
    "predict": "Say what images of your own are, from a few labelled examples.",
    "bench": "Compare methods, ablations and controls on plain and shifted glyphs.",
    "sweep": "Train several methods with several seeds, a job each, on a SLURM cluster or here.",
    "ranks": "Search the ranks of a model, or round a run's selection variables to ranks.",
    "data": "Look at a data set: counts, classes, hash; build its store.",
    "episodes": "Write or check the index lists of a protocol.",
    "export": "Adapt a run to one task and write it as an adapter that PEFT loads.",
    "report": "Write a run's report again.",
}
for _name, _help in _COMMANDS.items():
    app.command(
        f"metapeft.cli.{_name}:{'app' if _name in ('data', 'episodes') else _name}", name=_name, help=_help
    )
app.command("theory.cli:app", name="theory", help="The linear theory: check the theorems, draw the figures.")


app.meta.suppress_keyboard_interrupt = False


@app.meta.default
def _with_config(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[
        Path | None, Parameter(help="File with options of the command: TOML, YAML or JSON.")
    ] = None,
) -> object:
    if config is not None:
        app.config = (from_file(config, app, tokens), lists.split, named.remember)
    return app(tokens, exit_on_error=False, print_error=False)


def run(arguments: list[str]) -> int:
    """Run one command; returns the exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    logging.basicConfig(format="%(message)s")
    errors = Console(stderr=True, soft_wrap=True)
    app.config = (lists.split, named.remember)  # a file holds for one call
    try:
        result = app.meta(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except MissingArgumentError as error:
        errors.print(f"metapeft: {_missing(error, arguments)}", style="red", markup=False, highlight=False)
        return 2
    except CycloptsError as error:
        errors.print(f"metapeft: {error}", style="red", markup=False, highlight=False)
        return 2
    except (ValueError, ArithmeticError, OSError, ImportError, MemoryError) as error:
        said = in_the_shell(str(error), {"config", *_options(arguments)})
        errors.print(f"metapeft: {said}", style="red", markup=False, highlight=False)
        return 2
    except KeyboardInterrupt as error:
        errors.print(f"metapeft: {str(error) or 'stopped'}", markup=False, highlight=False)
        return 130
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def _options(arguments: list[str]) -> set[str]:
    """The names of the options of the command that is called, with underscores; none where none was found."""
    after = arguments[2:] if arguments[:1] == ["--config"] else arguments
    try:
        command = app.parse_commands(after)[1][-1]
        found = command.assemble_argument_collection()
    except (CycloptsError, ImportError, IndexError):
        return set()
    return {one.name.lstrip("-").replace("-", "_") for one in found if one.index is None}


# what stands for an argument in an example
_SUCH_AS = {"run": "runs/x/metapeft", "folder": "adapter", "images": "photo.jpg", "support": "examples"}


def _missing(error: MissingArgumentError, arguments: list[str]) -> str:
    """What is missing, and a call that has it: `RUN is missing: metapeft evaluate runs/x/metapeft`."""
    argument = error.argument
    if argument is None or argument.name in arguments:  # an option without its value
        return str(error)
    name = argument.name.lstrip("-")
    such = _SUCH_AS.get(name, name.upper())
    option = argument.index is None
    shown, example = (argument.name, f"{argument.name} {such}") if option else (name.upper(), such)
    return f"{shown} is missing: metapeft {' '.join([*arguments, example])}"
