"""Jobs that version 0.1 queued name `metapeft.sweeping.Job`; this file goes with version 0.3."""

from metapeft.cli.sweep_jobs import Job

__all__ = ["Job"]
