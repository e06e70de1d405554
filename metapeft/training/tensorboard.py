"""Metrics for TensorBoard, an extra."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


class Board:
    """Writes rows of numbers as event files under `<run folder>/tensorboard`; without a folder nothing.

    Args:
        folder: the run folder; None for no board.
        step: the last step that stays: later ones of an earlier process are hidden.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path | None, step: int) -> None:
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "tensorboard=True needs TensorBoard, which is missing: pip install 'metapeft[tensorboard]'"
            ) from error
        purge = step + 1 if step else None
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def add(self, step: int, row: Mapping[str, Any]) -> None:
        """One row: name -> number."""
        if self._writer is not None:
            for name, value in row.items():
                self._writer.add_scalar(name, value, step)

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
