"""The shell: `run` runs one command, `app` is what it is built with; a command is a file of its name."""

from metapeft.cli.shell import app, run

__all__ = ["app", "run"]
