"""The backbones: shapes, names, seeds, derivatives, and sizes that are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

import metapeft as mp
from metapeft.backbones.table import registry
from tests.backbones.formulas import GRID
from tests.updates.helpers import randomised
from tests.updates.networks import OURS

# factory, its arguments, shape of one image, features that the classifier must see (counted by hand)
SETTINGS = [
    ("conv4", {"ways": 5, "channels": 1, "width": 8, "size": 28}, (1, 28, 28), 8),
    ("conv4", {"ways": 7, "channels": 3, "width": 4, "size": 84}, (3, 84, 84), 4 * 25),
    ("conv4", {"ways": 2, "channels": 2, "width": 3, "size": 16}, (2, 16, 16), 3),
    ("conv4", {"ways": 5, "channels": 1, "width": 3, "size": 28, "blocks": 3}, (1, 28, 28), 3 * 9),
    ("conv4", {"ways": 4, "channels": 1, "width": 3, "size": 28, "blocks": 3, "neck": 6}, (1, 28, 28), 6),
    ("conv4", {"ways": 2, "channels": 3, "width": 2, "size": 33, "blocks": 5, "neck": 4}, (3, 33, 33), 4),
    ("resnet12", {"ways": 5, "channels": 3, "width": 4, "size": 32}, (3, 32, 32), 40),
    ("resnet12", {"ways": 3, "channels": 1, "width": 3, "size": 28}, (1, 28, 28), 30),
    ("mixer", {"ways": 5, "channels": 3, "size": 32, "patch": 4, "width": 16, "depth": 1}, (3, 32, 32), 16),
    ("mixer", {"ways": 4, "channels": 1, "size": 28, "patch": 14, "width": 8, "depth": 3}, (1, 28, 28), 8),
    (
        "vit",
        {"ways": 5, "channels": 1, "size": 28, "patch": 7, "width": 16, "depth": 2, "heads": 4},
        (1, 28, 28),
        16,
    ),
    (
        "vit",
        {"ways": 3, "channels": 3, "size": 32, "patch": 8, "width": 6, "depth": 1, "heads": 3},
        (3, 32, 32),
        6,
    ),
    ("mlp", {"inputs": 1, "outputs": 1}, (1,), 40),
    ("mlp", {"inputs": 12, "outputs": 3, "hidden": (7,)}, (3, 2, 2), 7),
    ("mlp", {"inputs": 4, "outputs": 2, "hidden": ()}, (4,), 4),
]
CASES = [pytest.param(*case, id=f"{case[0]}-{index}") for index, case in enumerate(SETTINGS)]


def build(name: str, arguments: dict, seed: int = 0) -> nn.Module:
    return registry.resolve(name)(**arguments, seed=seed)


def test_every_backbone_is_in_the_grids():
    names = set(registry.names) - {"minilm"}  # which brings its own weights: test_sentence_encoder.py
    assert set(registry) == set(registry.names.values()) | {"SentenceEncoder"}
    assert set(GRID) == {name for name, *_ in SETTINGS} == set(OURS) == names


@pytest.mark.parametrize(("name", "arguments", "shape", "features"), CASES)
def test_output_is_that_of_the_formulas(name, arguments, shape, features):
    """With random weights everywhere, also where they start as ones and zeros."""
    net = randomised(build(name, arguments)).eval()
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = GRID[name](net.state_dict(), x, **arguments)
    torch.testing.assert_close(net(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "arguments", "shape", "features"), CASES)
def test_output_is_that_of_the_classifier(name, arguments, shape, features):
    net = build(name, arguments)
    seen = {}
    net.classifier.register_forward_hook(lambda module, inputs, output: seen.update(x=inputs[0], y=output))
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    y = net(x)
    assert y is seen["y"]
    assert y.shape == (3, arguments.get("ways", arguments.get("outputs")))
    assert seen["x"].shape == (3, features)
    assert list(net.named_modules())[-1] == ("classifier", net.classifier)
    assert isinstance(net.classifier, nn.Linear)


@pytest.mark.parametrize(("name", "arguments", "shape", "features"), CASES)
def test_seed_alone_decides_the_weights(name, arguments, shape, features):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = build(name, arguments, seed=1).state_dict()
    torch.manual_seed(4)
    second = build(name, arguments, seed=1).state_dict()
    other = build(name, arguments, seed=2)
    torch.manual_seed(3)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[key], second[key]) for key in first)
    random = [key for key, value in other.named_parameters() if value.std(correction=0) > 0]
    assert random
    assert not any(torch.equal(first[key], other.state_dict()[key]) for key in random)


def test_building_leaves_the_random_state_alone():
    for name, arguments, _, _ in SETTINGS:
        before = torch.get_rng_state()
        build(name, arguments)
        assert torch.equal(before, torch.get_rng_state()), name


@pytest.mark.parametrize(("name", "arguments", "shape", "features"), CASES)
def test_no_layer_works_in_place_and_items_do_not_mix(name, arguments, shape, features):
    """In eval mode an item's output does not depend on its neighbours (1e-12: order of summation only)."""
    net = build(name, arguments).double().eval()
    assert not any(getattr(module, "inplace", False) for module in net.modules())
    x = torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x)[:1], net(x[:1]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "arguments", "shape", "features"), CASES)
def test_every_parameter_and_second_derivative(name, arguments, shape, features):
    """Every parameter gets a gradient, and can be differentiated twice, as an unrolled hypergradient does."""
    net = build(name, arguments).double()
    x = torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parameters = dict(net.named_parameters())
    loss = functional_call(net, parameters, (x,)).square().mean()
    first = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), list(parameters.values()))
    # a bias before batch normalisation, and a shift of all keys, do not change the output
    silent = (*(f"conv{block}.bias" for block in range(1, 6)), "key.bias")
    for key, gradient, twice in zip(parameters, first, second, strict=True):
        assert torch.isfinite(twice).all()
        assert key.endswith(silent) or gradient.abs().max() > 0, key


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("mixer", {"ways": 2, "channels": 1, "size": 4, "patch": 2, "width": 4, "depth": 1}, (1, 4, 4)),
        (
            "vit",
            {"ways": 2, "channels": 1, "size": 4, "patch": 2, "width": 4, "depth": 1, "heads": 2},
            (1, 4, 4),
        ),
    ],
)
def test_derivatives_against_differences(name, arguments, shape):
    net = build(name, arguments).double()
    x = torch.randn(
        2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    assert gradcheck(net, (x,))
    assert gradgradcheck(net, (x,))


def test_conv4_is_by_default_what_it_was():
    """The same weights from the same seed; settings that were stored before name neither blocks nor neck."""
    net = mp.backbones.conv4(ways=3, channels=1, width=4, seed=5)
    drawn = torch.Generator().manual_seed(5)
    bound = 1 / 9**0.5  # PyTorch's own: uniform, by the inputs of a filter
    first = torch.empty(4, 1, 3, 3).uniform_(-bound, bound, generator=drawn)
    assert torch.equal(net.conv1.weight, first)
    total = sum(value.double().abs().sum().item() for value in net.parameters())
    assert total == pytest.approx(66.50326580606634, rel=1e-6)  # recorded when there were always four blocks
    arguments = {"ways": 3, "channels": 1, "width": 4, "size": 28, "seed": 5}
    assert net.made_by == {"name": "conv4", "arguments": arguments}
    deeper = mp.backbones.conv4(3, 1, 4, 28, 5, blocks=3, neck=6)
    assert deeper.made_by["arguments"] == {**arguments, "blocks": 3, "neck": 6}
    again = registry.resolve("conv4")(**deeper.made_by["arguments"])
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), deeper.parameters(), strict=True))


def test_attention_is_torchs():
    """The attention that is written out equals `nn.MultiheadAttention` with the same weights."""
    from metapeft.backbones.vision_transformer import Attention

    ours = Attention(width=12, heads=3).double()
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    x = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0], rtol=1e-12, atol=1e-12)


def test_known_sizes():
    """Parameter counts that follow from the papers: Conv-4-64 has 111,936 before its classifier."""
    count = {name: value.numel() for name, value in mp.backbones.conv4(ways=5).named_parameters()}
    # 1*64*9+64 + 3*(64*64*9+64) + 4*2*64
    assert sum(n for name, n in count.items() if not name.startswith("classifier")) == 640 + 3 * 36928 + 512
    widths = [block.conv3.out_channels for block in list(mp.backbones.resnet12())[:4]]
    assert widths == [64, 160, 320, 640]
    net = mp.backbones.mixer()
    assert (net.blocks[0].token1.in_features, net.classifier.in_features, len(net.blocks)) == (64, 512, 1)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        (
            "conv4",
            {"size": 15},
            "size=15: allowed is a whole number of at least 16, for each of 4 poolings",
        ),
        ("conv4", {"size": 7, "blocks": 3}, "size=7: allowed is a whole number of at least 8, for each of 3"),
        ("conv4", {"blocks": 0}, "blocks=0: allowed is a whole number of at least 1"),
        ("conv4", {"neck": 0}, "neck=0: allowed is a whole number of at least 1"),
        ("conv4", {"ways": 0}, "ways=0: allowed is a whole number of at least 1"),
        ("conv4", {"width": 8.0}, r"width=8\.0"),
        ("conv4", {"channels": True}, "channels=True"),
        ("resnet12", {"size": 8}, "size=8"),
        ("mixer", {"patch": 5}, "patch=5: must divide the side of the image, size=32"),
        ("mixer", {"depth": 0}, "depth=0"),
        ("vit", {"heads": 5}, "heads=5: must divide width=64"),
        ("vit", {"size": 30}, "patch=7: must divide the side of the image, size=30"),
        ("mlp", {"hidden": (40, 0)}, r"hidden\[1\]=0"),
    ],
)
def test_refused(name, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        registry.resolve(name)(**arguments)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'conv4'"):
        registry.resolve("conv-4")


def test_names_stay_functions():
    """Importing the files must not put a module where the function was."""
    for name in registry:
        registry.attribute(name)
        assert callable(getattr(mp.backbones, name)), name
