"""Attention of torch: every way to call it, under every format."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import metapeft as mp
from tests.updates.helpers import FORMATS, affects, assert_equals_merged, randn, randomised
from tests.updates.networks import Attention

TASKS = 8


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("batch_first", "cross", "padded", "options"),
    [
        (True, False, False, {}),
        (False, False, False, {}),
        (True, True, False, {}),
        (False, True, True, {}),
        (True, False, True, {}),
        (True, False, True, {"weights": True}),
        (False, True, True, {"weights": True, "average_attn_weights": False}),
        (True, False, False, {"attn_mask": torch.ones(3, 3, dtype=torch.bool).triu(1)}),
        (True, False, False, {"attn_mask": randn(3, 3)}),
        (False, False, True, {"attn_mask": torch.ones(3, 3, dtype=torch.bool).triu(1), "weights": True}),
        (True, False, False, {"attn_mask": torch.ones(3, 3, dtype=torch.bool).triu(1), "is_causal": True}),
    ],
)
def test_attention(batch_first: bool, cross: bool, padded: bool, options: dict, format: str) -> None:
    model = mp.attach(randomised(Attention(batch_first, cross, **options)), FORMATS[format])
    x = (randn(TASKS, 2, 3, 4), randn(TASKS, 2, 3, 3, seed=1), randn(TASKS, 2, 3, 5, seed=2))
    if padded:
        mask = torch.zeros(TASKS, 2, 3, dtype=torch.bool)
        mask[1:, 1, 2:] = True
        x = (*x, mask)
    assert_equals_merged(model, x)
    assert (format == "rank 0") != affects(model, x)


class Encoder(nn.Module):
    """torch's own encoder, which has a fast path of its own."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.batch_first = batch_first

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        if self.batch_first:
            return self.encoder(x, src_key_padding_mask=padding)
        return self.encoder(x.transpose(0, 1), src_key_padding_mask=padding).transpose(0, 1)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_transformer_encoder(batch_first: bool, padded: bool, format: str) -> None:
    model = mp.attach(randomised(Encoder(batch_first)), FORMATS[format])
    mask = torch.zeros(TASKS, 2, 3, dtype=torch.bool)
    mask[:, 1, 2:] = True
    x = randn(TASKS, 2, 3, 4)
    assert_equals_merged(model, (x, mask) if padded else x)
