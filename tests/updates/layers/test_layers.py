"""Every kind of layer, every option, every format: tasks run at once equal tasks run one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import metapeft as mp
from tests.updates.helpers import (
    FORMATS,
    affects,
    assert_close,
    assert_equals_merged,
    randn,
    random_factors,
    randomised,
)
from tests.updates.networks import Tied

TASKS = 8
low_rank = {name: format for name, format in FORMATS.items() if name not in ("full", "rank 0")}

CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": 4, "padding": "same", "dilation": 2},
    {"kernel_size": 3, "padding": "valid", "dilation": 2},
    {"kernel_size": 3, "padding": 3},
    {"kernel_size": 2, "stride": 3, "padding": 1, "dilation": 2},
    {"kernel_size": 1, "bias": False},
    *(
        {"kernel_size": 3, "padding": 1, "padding_mode": mode}
        for mode in ("reflect", "replicate", "circular")
    ),
    {"kernel_size": 4, "padding": "same", "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "stride": 2, "dilation": 2},
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("dimensions", "groups"),
    [
        (2, 2),
        *(pytest.param(d, g, marks=pytest.mark.slow) for d in (1, 2) for g in (1, 2, 4) if (d, g) != (2, 2)),
    ],
)
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolution(dimensions: int, options: dict, groups: int, format: str) -> None:
    layer = (nn.Conv1d, nn.Conv2d)[dimensions - 1](4, 8, groups=groups, **options)
    model = mp.attach(randomised(layer), FORMATS[format])
    assert_equals_merged(model, randn(TASKS, 2, 4, *[9, 7][:dimensions]))


@pytest.mark.parametrize("format", low_rank)
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (3, 1), "padding": (1, 0)},
        {"kernel_size": (2, 3), "padding": (0, 1), "dilation": (2, 1)},
        {"kernel_size": (1, 5), "padding": "same"},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (2, 1)},
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [2, 24])  # below and above the number at which the algorithm changes
def test_convolution_with_unequal_sides(channels: int, options: dict, format: str) -> None:
    model = mp.attach(randomised(nn.Conv2d(channels, 6, **options)), FORMATS[format])
    assert_equals_merged(model, randn(TASKS, 2, channels, 6, 8))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("format", low_rank)
@pytest.mark.parametrize("options", [o for o in CONVOLUTIONS if o.get("stride", 1) == 1], ids=str)
def test_convolution_with_many_channels(options: dict, format: str) -> None:
    """Many input channels take the products before the sums."""
    model = mp.attach(randomised(nn.Conv2d(32, 6, groups=2, **options)), FORMATS[format])
    assert_equals_merged(model, randn(3, 2, 32, 8, 8))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "layer", [nn.Conv1d(4, 8, 3, stride=2, padding_mode="circular", padding=1), nn.Conv1d(4, 8, 3, groups=4)]
)
def test_one_dimension(layer: nn.Module, format: str) -> None:
    assert_equals_merged(mp.attach(randomised(layer), FORMATS[format]), randn(TASKS, 2, 4, 9))


@pytest.mark.parametrize("format", FORMATS)
def test_depthwise(format: str) -> None:
    model = mp.attach(randomised(nn.Conv2d(6, 6, 3, padding=1, groups=6)), FORMATS[format])
    assert_equals_merged(model, randn(TASKS, 2, 6, 5, 5))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.ConvTranspose2d(3, 4, 3, stride=2), (3, 5, 5)),
        (nn.Conv3d(2, 4, 2, groups=2), (2, 4, 4, 4)),
        (nn.Conv3d(2, 4, 2), (2, 4, 4, 4)),
        (nn.PReLU(3), (3, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_layers_by_their_own_forward(layer: nn.Module, shape: tuple[int, ...]) -> None:
    assert_equals_merged(mp.attach(randomised(layer), mp.Full()), randn(TASKS, 2, *shape))


@pytest.mark.parametrize("format", low_rank)
def test_low_rank_on_a_layer_without_products_of_its_own(format: str) -> None:
    assert_equals_merged(
        mp.attach(randomised(nn.Conv3d(2, 4, 2)), FORMATS[format]), randn(TASKS, 2, 2, 4, 4, 4)
    )


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_linear(shape: tuple[int, ...], bias: bool, format: str) -> None:
    model = mp.attach(randomised(nn.Linear(4, 5, bias=bias)), FORMATS[format])
    assert_equals_merged(model, randn(TASKS, 3, *shape))


@pytest.mark.parametrize("format", FORMATS)
def test_gpt2_linear(format: str) -> None:
    conv1d = pytest.importorskip(
        "transformers.pytorch_utils", reason="pip install 'metapeft[transformers]'"
    ).Conv1D
    model = mp.attach(randomised(conv1d(5, 4)), FORMATS[format])
    if format in low_rank and "ring" not in format:
        assert model.factors()["weight.A"].shape == (1, 2, 4)  # A reads the 4 inputs, B writes the 5 outputs
        assert model.factors()["weight.B"].shape == (1, 5, 2)
    assert_equals_merged(model, randn(TASKS, 3, 2, 4))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("padding", [None, 0, 3])
def test_embedding(padding: int | None, format: str) -> None:
    model = mp.attach(randomised(nn.Embedding(7, 4, padding_idx=padding)), FORMATS[format])
    x = torch.randint(7, (TASKS, 3, 5), generator=torch.Generator().manual_seed(0))
    assert_equals_merged(model, x)
    assert (format == "rank 0") != affects(model, x)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("linear_first", [True, False])
def test_tied_parameter_acts_at_each_use(linear_first: bool, format: str) -> None:
    model = mp.attach(randomised(Tied(linear_first)), FORMATS[format])
    assert list(model.sites) == ["output.weight" if linear_first else "words.weight"]
    x = torch.randint(7, (TASKS, 2, 5), generator=torch.Generator().manual_seed(0))
    assert_equals_merged(model, x)


NORMS = [
    (nn.LayerNorm(4), (3, 4)),
    (nn.LayerNorm((3, 4), bias=False), (2, 3, 4)),
    (nn.RMSNorm(4), (3, 4)),
    (nn.GroupNorm(2, 4), (4, 3)),
    (nn.InstanceNorm1d(4, affine=True), (4, 5)),
    (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (4, 5, 5)),
    (nn.BatchNorm1d(4), (4,)),
    (nn.BatchNorm1d(4), (4, 3)),
    (nn.BatchNorm2d(4), (4, 3, 3)),
    (nn.BatchNorm3d(4), (4, 2, 2, 2)),
]


@pytest.mark.parametrize(("layer", "shape"), NORMS, ids=str)
def test_affine_parameters_of_normalisation(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model = mp.attach(randomised(layer), mp.Full())
    x = randn(TASKS, 3, *shape)
    assert_equals_merged(model, x)
    assert affects(model, x)


@pytest.mark.parametrize("norm", [nn.LayerNorm((3, 4)), nn.RMSNorm((3, 4))], ids=str)
@pytest.mark.parametrize("format", [mp.LoRA(1), mp.CP(1), mp.TensorRing((1, 1, 1))], ids=str)
def test_only_full_acts_on_normalisation(norm: nn.Module, format: mp.updates.format.Format) -> None:
    """Also where its weights have several axes."""
    assert not [
        name for name in mp.attach(nn.Sequential(nn.Linear(4, 4), norm), format).sites if name[0] != "0"
    ]
    with pytest.raises(ValueError, match="cannot act on"):
        mp.attach(nn.Sequential(norm), format)


class Positions(nn.Module):
    """Adds embeddings that are the same for all inputs; their number may equal the number of rows."""

    def __init__(self, tokens: int, keep_axis: bool) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(9, 4), nn.Embedding(tokens, 4)
        self.norm, self.mix = nn.LayerNorm(4), nn.Linear(4, 4)
        self.keep_axis = keep_axis

    def forward(self, x: Tensor) -> Tensor:
        index = torch.arange(x.shape[1])
        index = index[None] if self.keep_axis else index
        return self.words(x) + self.mix(self.norm(self.positions(index)))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("keep_axis", [True, False])
@pytest.mark.parametrize(
    ("first", "then"), [((3, 1), (2, 4)), ((2, 2), (2, 4)), ((2, 4), (2, 2)), ((1, 1), (2, 4))]
)
def test_inputs_without_a_batch_axis(first: tuple, then: tuple, keep_axis: bool, format: str) -> None:
    """Eight positions are not eight inputs, whatever the first batch was."""
    model = mp.attach(randomised(Positions(8, keep_axis)), FORMATS[format])
    for tasks, items in (first, then):
        x = torch.randint(9, (tasks, items, 8), generator=torch.Generator().manual_seed(tasks))
        assert_equals_merged(model, x)


class Tokens(nn.Module):
    """A ViT's loose parameters: a class token and position embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.cls, self.position = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(1, 4, 4))
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.position
        return self.layer(x)[:, 0]


@pytest.mark.parametrize("format", FORMATS)
def test_loose_parameters(format: str) -> None:
    model = mp.attach(randomised(Tokens()), FORMATS[format])
    assert ("cls" in model.sites) == (format == "full")
    assert_equals_merged(model, randn(TASKS, 2, 3, 4))


class Windows(nn.Module):
    """Attention windows and patches put more rows into the batch axis than there are inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.conv = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Conv1d(4, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        windows = self.norm(self.layer(x.flatten(0, 1)))
        return self.conv(windows.unsqueeze(-1).expand(-1, -1, 3)).unflatten(0, x.shape[:2])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("norm", ["running", "support"])
def test_several_rows_an_input(norm: str, format: str) -> None:
    model = mp.attach(randomised(Windows()), FORMATS[format], norm=norm)
    support = randn(TASKS, 4, 3, 4, seed=1) if norm == "support" else None
    assert_equals_merged(model, randn(TASKS, 2, 3, 4), support)


class KeywordLayer(nn.Module):
    """Calls its layers by keyword, and one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.head(input=self.layer(input=scale * self.layer(input=x)))


@pytest.mark.parametrize("format", FORMATS)
def test_keywords_and_shared_layers(format: str) -> None:
    model = mp.attach(randomised(KeywordLayer()), FORMATS[format])
    x = randn(TASKS, 3, 4)
    assert_equals_merged(model, x)
    factors = random_factors(model, TASKS)
    assert_close(model({"x": x, "scale": 1.0}, factors), model(x, factors))
    assert_close(model((x, 1.0), factors), model(x, factors))
    assert not torch.equal(model({"x": x, "scale": 2.0}, factors), model(x, factors))
    assert model.features(x, factors).shape == (TASKS, 3, 4)
