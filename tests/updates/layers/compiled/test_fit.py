"""Which chains the kernels stand for, and that backbones compute the same with them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metapeft as mp
from metapeft.updates.layers.compiled import fit
from metapeft.updates.layers.compiled.switch import compiled_used
from tests.updates.helpers import FORMATS, randn, random_factors, randomised

pytestmark = pytest.mark.usefixtures("compiled")

TASKS, SIZE = 2, 16


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kernel was called."""
    counts: Counter[str] = Counter()
    for name in ("chain", "few_channel_chain"):
        own = getattr(fit, name)

        def counted(*given: Any, name: str = name, own: Any = own) -> Any:
            counts[name] += 1
            return own(*given)

        monkeypatch.setattr(fit, name, counted)
    return counts


def body(width: int = 16) -> nn.Module:
    return randomised(mp.backbones.conv4(ways=5, channels=1, width=width, size=SIZE))


def images(items: int = 3, channels: int = 1) -> Tensor:
    return randn(TASKS, items, channels, SIZE, SIZE)


def both(model: Any, x: Tensor, factors: dict[str, Tensor], **options: Any) -> list[list[Tensor]]:
    """Logits and gradients in all factors and weights, without kernels (where the first batch is checked) and with."""
    found = []
    for on in (False, True):
        with compiled_used(on):
            moved = {name: value.detach().requires_grad_() for name, value in factors.items()}
            weights = [value for value in model.backbone.parameters() if value.requires_grad]
            logits = model(x, moved, **options)
            grads = torch.autograd.grad(
                logits.square().sum(), [*moved.values(), *weights], allow_unused=True, materialize_grads=True
            )
            found.append([logits, *grads])
    return found


def assert_same(pair: list[list[Tensor]]) -> None:
    for a, b in zip(*pair, strict=True):
        assert (a - b).norm() <= 1e-11 * a.norm() + 1e-12


@pytest.mark.parametrize("format", FORMATS)
def test_conv4_is_the_same_in_every_format(format: str, ran: Counter[str]) -> None:
    model = mp.attach(body(), FORMATS[format])
    assert_same(both(model, images(), random_factors(model, TASKS)))
    assert ran == {"chain": 3, "few_channel_chain": 1}


def test_scales_and_shifts_of_a_task(ran: Counter[str]) -> None:
    """Updates of the norm's parameters beside low-rank ones: then W0 is scaled differently for each task."""
    formats = {"norm*.bias": mp.Full(), "conv*.bias": mp.Full(), "*": mp.LoRA(2)}
    model = mp.attach(body(), formats)
    assert_same(both(model, images(), random_factors(model, TASKS)))
    assert ran == {"chain": 3, "few_channel_chain": 1}
    scaled = mp.attach(body(), {"norm*.weight": mp.Full(), "conv*.weight": mp.LoRA(2)})
    assert_same(both(scaled, images(), random_factors(scaled, TASKS)))
    assert ran == {"chain": 3, "few_channel_chain": 1}  # that one layer after the other


def test_layers_without_updates(ran: Counter[str]) -> None:
    model = mp.attach(body(), {"conv3.weight": mp.LoRA(2)})
    assert_same(both(model, images(), random_factors(model, TASKS)))
    assert ran == {"chain": 3, "few_channel_chain": 1}


def test_images_that_take_a_gradient(ran: Counter[str]) -> None:
    model, x = mp.attach(body(), mp.LoRA(2)), images().requires_grad_()
    factors = random_factors(model, TASKS)
    grads = []
    for on in (False, True):
        with compiled_used(on):
            grads.append(torch.autograd.grad(model(x, factors).square().sum(), x)[0])
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)
    assert ran == {"chain": 3}  # the first layer's kernel has no such gradient


def sequential(width: int = 16, **options: Any) -> nn.Module:
    """One chain whose input has many channels; options of the convolution, or `pool` and `relu`."""
    relu, pool = options.pop("relu", nn.ReLU()), options.pop("pool", nn.MaxPool2d(2))
    convolution = nn.Conv2d(16, width, **{"kernel_size": 3, "padding": 1, **options})
    layers = [convolution, nn.BatchNorm2d(width), relu, pool]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)]
    return randomised(nn.Sequential(*[layer for layer in layers if layer is not None], *tail))


FITS = {
    "same padding": {"padding": "same"},
    "no bias": {"bias": False},
    "a pool of pairs": {"pool": nn.MaxPool2d((2, 2), (2, 2))},
}
REST = {
    "stride": {"stride": 2},
    "no padding": {"padding": 0},
    "5x5": {"kernel_size": 5, "padding": 2},
    "dilation": {"dilation": 2, "padding": 2},
    "groups": {"groups": 4},
    "reflected": {"padding_mode": "reflect"},
    "odd width": {"width": 18},
    "pool of 3": {"pool": nn.MaxPool2d(3)},
    "pool that overlaps": {"pool": nn.MaxPool2d(2, stride=1)},
    "ceil": {"pool": nn.MaxPool2d(2, ceil_mode=True)},
    "padded pool": {"pool": nn.MaxPool2d(2, padding=1)},
    "no pool": {"pool": None},
    "another activation": {"relu": nn.Tanh()},
    "no activation": {"relu": None},
}


@pytest.mark.parametrize("kind", [*FITS, *REST])
def test_what_does_not_fit_goes_its_own_way(kind: str, ran: Counter[str]) -> None:
    model = mp.attach(sequential(**(FITS | REST)[kind]), mp.LoRA(2))
    x = randn(TASKS, 3, 16, 9, 9)
    assert_same(both(model, x, random_factors(model, TASKS)))
    assert ran == ({"chain": 1} if kind in FITS else {})


@pytest.mark.parametrize("norm", ["support", "transductive"])
def test_statistics_of_a_batch_have_kernels_of_their_own(norm: Any, ran: Counter[str]) -> None:
    model = mp.attach(body(), mp.LoRA(2), norm=norm)
    options = {"support": images()} if norm == "support" else {}
    assert_same(both(model, images(), random_factors(model, TASKS), **options))
    assert not ran


def test_a_seed_per_input_does_not_fit(ran: Counter[str]) -> None:
    model = mp.attach(body(), {"conv*.weight": mp.CP(2)})
    factors = random_factors(model, TASKS)
    for name in [name for name in factors if name.endswith(".seed")]:
        factors[name] = factors[name].unsqueeze(1).expand(TASKS, 3, -1).clone()
    assert_same(both(model, images(), factors))
    assert not ran


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own forward mode
def test_transforms_and_forward_mode_do_not_fit(ran: Counter[str]) -> None:
    model, x = mp.attach(body(), mp.LoRA(2)), images()
    factors = random_factors(model, TASKS)
    name = "conv2.weight.A"

    def value(moved: Tensor) -> Tensor:
        return model(x, {**factors, name: moved})

    with compiled_used(False):
        model(x, factors)  # the first batch is checked
    ran.clear()
    tangent = randn(*factors[name].shape, seed=5)
    _, pushed = torch.func.jvp(value, (factors[name],), (tangent,))
    stacked = torch.func.vmap(value)(torch.stack([factors[name], tangent]))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(factors[name], tangent)
        other = torch.autograd.forward_ad.unpack_dual(value(dual)).tangent
    assert ran == {"few_channel_chain": 1}  # the first layer, before the tangent comes in at the second
    torch.testing.assert_close(pushed, other)
    with compiled_used(False):
        torch.testing.assert_close(stacked[0], value(factors[name]))
        apart = (value(factors[name] + 1e-6 * tangent) - value(factors[name] - 1e-6 * tangent)) / 2e-6
    torch.testing.assert_close(pushed, apart, rtol=1e-5, atol=1e-7)


def test_autocast_does_not_fit(ran: Counter[str]) -> None:
    model = mp.attach(body().float(), mp.LoRA(2))
    factors = {name: value.float() for name, value in random_factors(model, TASKS).items()}
    with compiled_used(False):
        model(images().float(), factors)
    ran.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(images().float(), factors)
    assert not ran


def test_hooks_are_not_passed_over(ran: Counter[str]) -> None:
    model, seen = mp.attach(body(), mp.LoRA(2)), []
    model(images(), random_factors(model, TASKS))
    ran.clear()
    hooks = [
        m.register_forward_hook(lambda *_: seen.append(1))
        for m in model.backbone.modules()
        if type(m) is nn.ReLU
    ]
    model(images(), random_factors(model, TASKS))
    assert len(seen) == len(hooks)
    assert not ran


@pytest.mark.parametrize(("own", "given"), [(3, 1), (1, 3), (1, 16), (16, 1)])
def test_another_number_of_channels_is_refused_as_ever(own: int, given: int) -> None:
    """Also after a batch that was right, when nothing is checked any more."""
    model = mp.attach(randomised(mp.backbones.conv4(ways=5, channels=own, width=16, size=SIZE)), mp.LoRA(2))
    factors = random_factors(model, TASKS)
    model(images(channels=own), factors)
    with pytest.raises(ValueError, match="does not run on inputs of shape"):
        model(images(channels=given), factors)


def test_off_is_off(ran: Counter[str]) -> None:
    model = mp.attach(body(), mp.LoRA(2))
    with compiled_used(False):
        model(images(), random_factors(model, TASKS))
    assert not ran
