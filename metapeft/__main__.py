"""The shell command `metapeft`, also as `python -m metapeft`."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> None:
    """Run the shell; bad input ends in one sentence and exit code 2."""
    from metapeft.cli.local_jobs import end_with_parent
    from metapeft.cli.shell import run

    end_with_parent()
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    main()
