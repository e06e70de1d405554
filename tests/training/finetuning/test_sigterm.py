"""A training that a scheduler ends: its step is finished and kept, and it goes on to the same end."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp


class Ending:
    """A loss of which one call asks the process to end."""

    __name__ = "ending"

    def __init__(self, at: int) -> None:
        self.at = at

    def __call__(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        self.at -= 1
        if self.at == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return F.mse_loss(outputs, targets, reduction=reduction)


def test_sigterm_keeps_a_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    net = nn.Linear(3, 3)

    def fitted(at: int, **options: Any) -> mp.Fitted:
        found: mp.Fitted = mp.finetune(
            net, (x, x.flip(0)), format=mp.LoRA(1), steps=6, batch_size=4, loss=Ending(at), **options
        )
        return found

    whole = fitted(-1)
    with pytest.raises(SystemExit) as ended:
        fitted(3, run_dir=tmp_path / "x")
    assert ended.value.code == 128 + signal.SIGTERM
    assert "stopped after step" in caplog.text
    again = fitted(-1, run_dir=tmp_path / "x", resume=True)
    assert all(torch.equal(again.factors[name], value) for name, value in whole.factors.items())
