"""All theorem checks, in the order of the theorems."""

from __future__ import annotations

from theory.checks import beyond, metalearners, minima, rates, residual, surface
from theory.checks.check import CheckFunction


def all_checks() -> list[CheckFunction]:
    """Every check, in the order of the theorems; what goes beyond them comes last."""
    modules = (residual, minima, surface, metalearners, rates, beyond)
    return [check for module in modules for check in module.CHECKS]
