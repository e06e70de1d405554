"""`python -m theory`: exit code 0 when all is well, 1 when a bound is violated, 2 for bad input."""

from __future__ import annotations

import sys

from theory.cli import app

if __name__ == "__main__":
    try:
        app()
    except (ValueError, ArithmeticError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
