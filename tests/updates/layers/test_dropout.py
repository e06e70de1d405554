"""Dropout of every kind of layer under every format: masks by formula, tasks at once against one by one."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp
from metapeft.base import counter
from metapeft.base.trees import mapped
from metapeft.updates.attached import AttachedModel
from metapeft.updates.copying import viewed
from metapeft.updates.layers.masks import Masks
from tests.updates.helpers import FORMATS, assert_close, randn, random_factors, randomised, task

TASKS, ITEMS = 3, 2
KEYS = torch.arange(TASKS * ITEMS).view(TASKS, ITEMS) * 7919 + 1
FEW = {name: FORMATS[name] for name in ("full", "lora", "ring", "rank 0")}


def by_numpy(keys: Tensor, place: int, count: int, p: float) -> Tensor:
    """Masks `(rows, count)` from the streams that episodes are drawn from."""
    rows = counter.child(keys.flatten().numpy().view(np.uint64), np.array([place], dtype=np.uint64))
    kept = counter.words(rows, count).view(np.int64) >= (p - 0.5) * 2.0**64
    return torch.from_numpy(kept).double() / (1 - p)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.999, 1.0])
def test_masks_are_the_streams_of_the_counter(p: float) -> None:
    keys = torch.tensor([0, 1, -1, 2**62, -(2**63)])
    found = Masks(keys)(4, (10, 300, 100), p, torch.zeros((), dtype=torch.float64))
    if p == 1.0:
        assert not found.any()
        return
    torch.testing.assert_close(found.view(5, -1), by_numpy(keys, 4, 60000, p), rtol=1e-15, atol=0)
    dropped = float((found == 0).double().mean())
    assert abs(dropped - p) < 5 * math.sqrt(p * (1 - p) / found.numel())
    assert Masks(keys)(4, (10, 300, 100), p, torch.zeros(())).dtype == torch.float32


class Functional(nn.Module):
    """A leaf that drops by itself and by a child, under whatever update its weight has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4))
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(F.dropout(x @ self.weight, 0.5, self.training))


class Windows(nn.Module):
    """Several rows an input, and the inputs along the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.drop = nn.Linear(4, 4), nn.Linear(4, 3), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.drop(self.one(x.flatten(0, 1))).view(x.shape)
        return self.two(torch.dropout(rows.transpose(0, 1), 0.2, self.training).transpose(0, 1))


class Attention(nn.Module):
    """Attention of torch over `(B, 5, 4)`, in every way to call it."""

    def __init__(self, batch_first: bool, weights: bool, rate: float = 0.4) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=rate, batch_first=batch_first)
        self.batch_first, self.weights = batch_first, weights

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        y, _ = self.attention(x, x, x, key_padding_mask=mask, need_weights=self.weights)
        return y if self.batch_first else y.transpose(0, 1)


class Encoder(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.2, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x) if self.batch_first else self.encoder(x.transpose(0, 1)).transpose(0, 1)


class Grouped(nn.Module):
    """Torch's own attention function with fewer heads of keys than of queries, causal and masked."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(4, 8), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        heads = [layer(x).unflatten(-1, (-1, 2)).transpose(1, 2) for layer in (self.query, self.key)]
        rate = 0.3 if self.training else 0.0
        q, k = heads
        own = F.scaled_dot_product_attention(q, k, k, None, rate, True, scale=0.5, enable_gqa=True)
        hidden = torch.ones(5, 5, dtype=torch.bool).tril(-1)  # the first sees nothing
        return own + F.scaled_dot_product_attention(q, k, k, hidden, rate, enable_gqa=True)


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    maps = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout2d(0.5), nn.Flatten()]
    return {
        "linear": (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 3)), (4,)),
        "2d": (nn.Sequential(*maps, nn.Dropout(0.1, inplace=True), nn.Linear(27, 3)), (2, 5, 5)),
        "1d": (nn.Sequential(nn.Conv1d(2, 3, 3), nn.Dropout1d(0.5), nn.Flatten(), nn.Linear(9, 3)), (2, 5)),
        "3d": (
            nn.Sequential(nn.Linear(2, 2), nn.Dropout3d(0.5), nn.Flatten(), nn.Linear(24, 3)),
            (3, 2, 2, 2),
        ),
        "functional": (nn.Sequential(nn.Linear(4, 4), Functional()), (4,)),
        "windows": (Windows(), (5, 4)),
        "attention": (Attention(True, False), (5, 4)),
        "attention, second axis": (Attention(False, False), (5, 4)),
        "attention with weights": (Attention(True, True), (5, 4)),
        "encoder": (Encoder(True), (5, 4)),
        "encoder, second axis": (Encoder(False), (5, 4)),
        "grouped": (Grouped(), (5, 4)),
    }


def dropped_and_plain(net: nn.Module, format: Any) -> tuple[AttachedModel, AttachedModel]:
    plain = mp.attach(randomised(net), format)
    return viewed(plain, dropout=True), plain


def assert_equals_single_tasks(model: AttachedModel, plain: AttachedModel, x: Any) -> Tensor:
    """Tasks at once equal each task alone on its merged weights, where no layer carries an update."""
    factors, random = random_factors(plain, TASKS), torch.get_rng_state()
    together = model(x, factors, masks=Masks(KEYS))
    assert torch.equal(together, model(x, factors, masks=Masks(KEYS)))
    assert torch.equal(torch.get_rng_state(), random)
    for t in range(TASKS):
        alone = viewed(mp.attach(plain.merged(task(factors, t)), {}), dropout=True)
        own = alone(mapped(x, lambda v, t=t: v[t : t + 1]), {}, masks=Masks(KEYS[t : t + 1]))
        assert_close(own[0], together[t])
    without = plain(x, factors)
    assert_close(model(x, factors), without, 1e-12)  # no masks, no dropout
    assert float((together - without).detach().abs().max()) > 1e-3
    return together


@pytest.mark.parametrize("format", FEW)
@pytest.mark.parametrize("name", networks())
def test_tasks_at_once_equal_tasks_one_by_one(name: str, format: str) -> None:
    net, shape = networks()[name]
    model, plain = dropped_and_plain(net, FEW[format])
    assert_equals_single_tasks(model, plain, randn(TASKS, ITEMS, *shape))


@pytest.mark.parametrize("norm", ["support", "transductive"])
def test_statistics_are_those_of_what_is_left(norm: str) -> None:
    """Dropout before a batch norm: on the support set itself, both kinds of statistics are the same."""
    net = randomised(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Dropout2d(0.5), nn.BatchNorm2d(3), nn.Flatten()))
    model = viewed(mp.attach(net, mp.LoRA(2), "0", classifier=None, norm=norm), dropout=True)
    x, factors = randn(TASKS, ITEMS, 2, 5, 5), random_factors(model, TASKS)
    found = model(x, factors, x if norm == "support" else None, masks=Masks(KEYS))
    for t in range(TASKS):
        own = {name.rpartition(".")[2]: value[t] for name, value in factors.items()}
        y = F.conv2d(x[t], net[0].weight + torch.einsum("or,rihw->oihw", own["B"], own["A"]), net[0].bias)
        y = y * by_numpy(KEYS[t], 0, 3, 0.5)[:, :, None, None]
        expected = F.batch_norm(y, None, None, net[2].weight, net[2].bias, True, 0.0).flatten(1)
        assert_close(found[t], expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("format", ["full", "lora"])
@pytest.mark.parametrize(
    ("batch_first", "weights"), [(True, False), (False, False), (True, True), (False, True)]
)
def test_attention_by_its_formula(batch_first: bool, weights: bool, format: str, masked: bool) -> None:
    """However it is called, probability i, j of head h and row b has word h L S + i S + j of that row."""
    model, plain = dropped_and_plain(Attention(batch_first, weights), FEW[format])
    x, factors = randn(TASKS, ITEMS, 5, 4), random_factors(plain, TASKS)
    hidden = torch.zeros(TASKS, ITEMS, 5, dtype=torch.bool)
    hidden[1:, 1, 3:] = masked
    found = model((x, hidden) if masked else x, factors, masks=Masks(KEYS))
    for t in range(TASKS):
        own = plain.merged(task(factors, t)).attention
        q, k, v = F.linear(x[t], own.in_proj_weight, own.in_proj_bias).unflatten(-1, (3, 2, 2)).unbind(-3)
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(2)
        scores = scores.masked_fill(hidden[t][:, None, None], -math.inf).softmax(-1)
        scores = scores * by_numpy(KEYS[t], 0, 2 * 5 * 5, 0.4).view(ITEMS, 2, 5, 5)
        assert_close(found[t], own.out_proj(torch.einsum("bhij,bjhd->bihd", scores, v).flatten(2)))


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    return pytest.importorskip("transformers", reason="pip install 'metapeft[transformers]'")


@pytest.mark.parametrize("format", ["full", "lora"])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_transformers(transformers: ModuleType, kind: str, format: str) -> None:
    """Both of their ways to compute attention, one with a dropout and one inside torch's function."""
    words = torch.randint(0, 11, (TASKS, ITEMS, 5), generator=torch.Generator().manual_seed(0))
    seen = (torch.arange(5) < torch.tensor([[5, 4], [3, 5], [5, 5]])[..., None]).long()
    found = []
    for implementation in ("eager", "sdpa"):
        if kind == "bert":
            config = transformers.BertConfig(
                vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
                max_position_embeddings=8, num_labels=3, attn_implementation=implementation,
            )  # fmt: skip
            net: nn.Module = transformers.BertForSequenceClassification(config)
        else:
            config = transformers.GPT2Config(
                vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
                attn_implementation=implementation,
            )  # fmt: skip
            net = transformers.GPT2LMHeadModel(config)
        model, plain = dropped_and_plain(net, FEW[format])
        found.append(assert_equals_single_tasks(model, plain, {"input_ids": words, "attention_mask": seen}))
    assert_close(*found)


def test_seeds_per_input_have_their_own_masks() -> None:
    """A leaf runs once a row then, not once a task."""
    model, plain = dropped_and_plain(nn.Sequential(Attention(True, False), nn.Linear(4, 3)), mp.CP(2))
    factors = random_factors(plain, TASKS)
    each = {n: v.unsqueeze(1).expand(-1, ITEMS, -1) if n.endswith("seed") else v for n, v in factors.items()}
    x = randn(TASKS, ITEMS, 5, 4)
    assert_close(model(x, each, masks=Masks(KEYS)), model(x, factors, masks=Masks(KEYS)))
