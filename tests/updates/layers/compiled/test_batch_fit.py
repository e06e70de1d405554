"""Which chains on statistics of the batch the kernels stand for, and that training computes the same with them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metapeft as mp
from metapeft.training.image_groups import ImageGroupSampler
from metapeft.training.pretraining import Pretraining
from metapeft.updates.attach_model import attach
from metapeft.updates.layers.compiled import batch_fit
from metapeft.updates.layers.compiled.switch import compiled_used, loaded
from tests.training.helpers import data, sampler
from tests.updates.helpers import FORMATS, randn, random_factors, randomised

pytestmark = pytest.mark.usefixtures("compiled")

TASKS, SIZE = 2, 16


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kernel was called."""
    counts: Counter[str] = Counter()
    for name in ("batch_chain", "batch_pool_chain", "few_batch_chain"):
        own = getattr(batch_fit, name)

        def counted(*given: Any, name: str = name, own: Any = own) -> Any:
            counts[name] += 1
            return own(*given)

        monkeypatch.setattr(batch_fit, name, counted)
    return counts


def body(width: int = 16) -> nn.Module:
    """With scales of both signs."""
    made = randomised(mp.backbones.conv4(ways=3, channels=1, width=width, size=SIZE))
    with torch.no_grad():
        for name, value in made.named_parameters():
            if "norm" in name and name.endswith("weight"):
                value[::3].neg_()
    return made


def images(items: int = 3) -> Tensor:
    return randn(TASKS, items, 1, SIZE, SIZE)


def both(model: Any, x: Tensor, **options: Any) -> list[tuple[list[Tensor], dict[str, Any]]]:
    """Logits, their gradients in all weights, and statistics: without kernels and with."""
    found = []
    for on in (False, True):
        with compiled_used(on):
            statistics: dict[str, Any] = {}
            logits = model(x, {}, statistics=statistics, **options)
            weights = list(model.backbone.parameters())
            grads = torch.autograd.grad(
                logits.square().sum(), weights, allow_unused=True, materialize_grads=True
            )
            found.append(([logits.detach(), *grads], statistics))
    return found


def assert_same(pair: list[tuple[list[Tensor], dict[str, Any]]]) -> None:
    (plain, known), (found, measured) = pair
    for a, b in zip(plain, found, strict=True):
        assert (a - b).norm() <= 1e-10 * a.norm() + 1e-10
    assert known.keys() == measured.keys()
    for name, values in known.items():
        for a, b in zip(values, measured[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_conv4_is_the_same_with_its_statistics(ran: Counter[str]) -> None:
    assert_same(both(mp.attach(body(), {}, norm="transductive"), images()))
    assert ran == {"batch_chain": 3, "few_batch_chain": 1}


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(16, affine=False), nn.BatchNorm2d(16, track_running_stats=False, eps=0.1)],
    ids=str,
)
def test_norms_without_scale_or_buffers(norm: nn.BatchNorm2d, ran: Counter[str]) -> None:
    layers = [nn.Conv2d(1, 16, 3, padding=1, bias=False), norm, nn.ReLU(), nn.MaxPool2d(2)]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)]
    model = mp.attach(randomised(nn.Sequential(*layers, *tail)), {}, norm="transductive")
    assert_same(both(model, images()))
    assert ran == ({"few_batch_chain": 1})


def with_updates(model: Any, **options: Any) -> list[list[Tensor]]:
    """Logits, an inner step's gradients, and the derivatives through it in all factors and weights."""
    found = []
    for on in (False, True):
        with compiled_used(on):
            factors = {n: v.requires_grad_() for n, v in random_factors(model, TASKS).items()}
            weights = [value for value in model.backbone.parameters() if value.requires_grad]
            logits = model(images(), factors, **options)
            inner = torch.autograd.grad(logits.square().sum(), list(factors.values()), create_graph=True)
            moved = {name: value - 0.01 * grad for (name, value), grad in zip(factors.items(), inner)}
            outer = model(images(5), moved, **options).square().sum()
            grads = torch.autograd.grad(
                outer, [*factors.values(), *weights], allow_unused=True, materialize_grads=True
            )
            found.append([logits.detach(), *(value.detach() for value in inner), *grads])
    return found


@pytest.mark.parametrize("norm", ["transductive", "support"])
@pytest.mark.parametrize("format", FORMATS)
def test_updates_of_every_format_through_an_inner_step(format: str, norm: Any, ran: Counter[str]) -> None:
    model = mp.attach(body(), FORMATS[format], norm=norm)
    options = {"support": images(4)} if norm == "support" else {}
    for a, b in zip(*with_updates(model, **options), strict=True):
        assert (a - b).norm() <= 1e-9 * a.norm() + 1e-9
    assert ran["batch_pool_chain"] >= 6
    assert ran["few_batch_chain"] >= 2


def test_statistics_of_the_first_items_for_all(ran: Counter[str]) -> None:
    assert_same(both(mp.attach(body(), {}, norm="support"), images(), support=images()))
    assert ran["batch_pool_chain"] > 0


def test_what_stays_in_plain_torch(ran: Counter[str]) -> None:
    """Masked items, a seed per input, updates under autocast, images that take a gradient."""
    mask = torch.tensor([[True, True, False], [True, False, True]])
    assert_same(both(mp.attach(body(), {}, norm="transductive"), images(), mask=mask))
    model = mp.attach(body(), {"conv*.weight": mp.CP(2)}, norm="transductive")
    factors = random_factors(model, TASKS)
    for name in [name for name in factors if name.endswith(".seed")]:
        factors[name] = factors[name].unsqueeze(1).expand(TASKS, 3, -1).clone()
    with compiled_used(False):
        model(images(), factors)  # the first batch is checked
    model(images(), factors)
    assert not ran
    model = mp.attach(body().float(), mp.LoRA(2), norm="transductive")
    brief = {name: value.float() for name, value in random_factors(model, TASKS).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with compiled_used(False):
            model(images().float(), brief)
        model(images().float(), brief)
    assert ran["batch_chain"] + ran["batch_pool_chain"] == 0
    ran.clear()
    model = mp.attach(body(), {}, norm="transductive")
    with compiled_used(False):
        model(images(), {})  # the first batch is checked
    model(images().requires_grad_(), {})
    assert ran == {"batch_chain": 3}


def test_off_is_off(ran: Counter[str]) -> None:
    with compiled_used(False):
        mp.attach(body(), {}, norm="transductive")(images(), {})
    assert not ran


@pytest.mark.parametrize("has", [True, False])
def test_autocast_takes_bfloat16_where_the_processor_has_it(
    has: bool, ran: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if has and not hasattr(loaded(), "batch_forward_bfloat16"):
        pytest.skip("needs a processor with products of bfloat16")
    monkeypatch.setattr(batch_fit, "_has_bfloat16", lambda: has)
    model, x = mp.attach(body().float(), {}, norm="transductive"), images().float()
    exact = model(x, {})
    ran.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(x, {})
    assert ran == ({"batch_chain": 3, "few_batch_chain": 1} if has else {})
    assert (found - exact).norm() <= 0.05 * exact.norm()


def retraining(**options: Any) -> Pretraining:
    return Pretraining(
        attach(body().to(options.pop("own", None)), {}, preprocess=data().preprocess), 6, **options
    )


def test_a_step_of_retraining_is_the_same(ran: Counter[str]) -> None:
    batch = ImageGroupSampler(data(), 8).batch(0, 2)
    found = []
    for on in (True, False):
        with compiled_used(on):
            found.append(retraining(own=torch.float64).hypergradient(batch))
    assert ran == {"batch_chain": 6, "few_batch_chain": 2}  # once more where the first batch is checked
    torch.testing.assert_close(found[0].value, found[1].value, rtol=1e-10, atol=1e-12)
    for name, value in found[1].grads.items():
        torch.testing.assert_close(found[0].grads[name], value, rtol=1e-7, atol=1e-10)


def test_prototypes_train_the_same_on_batch_statistics(ran: Counter[str]) -> None:
    found = []
    for on in (True, False):
        with compiled_used(on):
            found.append(mp.methods.protonet(body()).hypergradient(sampler().batch(0, 3)).grads)
    assert ran == {"batch_chain": 6, "few_batch_chain": 2}  # once more where the first batch is checked
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=str)
def test_retraining_comes_to_the_same_loss(autocast: torch.dtype | None, ran: Counter[str]) -> None:
    last = []
    for on in (True, False):
        with compiled_used(on):
            torch.manual_seed(0)
            options = {"group": 24, "groups": 1, "lr": 3e-3, "progress": False, "autocast": autocast}
            _, log = mp.pretrain(
                mp.backbones.conv4(ways=3, channels=1, width=16, size=SIZE), data(), 30, **options
            )
            last.append(sum(row["loss"] for row in log[-10:]) / len(log[-10:]))
    assert ran or (autocast is not None and not hasattr(loaded(), "batch_forward_bfloat16"))
    assert abs(last[0] - last[1]) <= 0.1 * max(last)
