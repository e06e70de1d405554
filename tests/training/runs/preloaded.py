"""What a fork server imports, so that the runs that it forks start at once: all that torch imports late."""

from tests.training.runs.killed import KINDS, made

for kind in KINDS:
    made(kind)
