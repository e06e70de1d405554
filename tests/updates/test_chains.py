"""Convolution, batch norm, ReLU and pooling as one step equal the layers one after the other."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metapeft as mp
from metapeft.updates.attached import AttachedModel
from metapeft.updates.chains import Chain

FORMATS = {"lora": mp.LoRA(2), "ring": mp.TensorRing(2), "full": mp.Full(), "none": None}
BLOCKS = {
    "all": ["relu", "pool"],
    "no pool": ["relu"],
    "no relu": ["pool"],
    "norm only": [],
    "pool before relu": ["pool", "relu"],
}


class OneByOne(nn.Sequential):
    """The same layers with a forward of their own, which keeps them apart."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x)
        return x


def layers(after: list[str], seed: int, **convolution: Any) -> OrderedDict[str, nn.Module]:
    """Two blocks and a classifier in float64; scales of both signs, statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    found: OrderedDict[str, nn.Module] = OrderedDict()
    make = {"relu": nn.ReLU, "pool": lambda: nn.MaxPool2d(2)}
    for block in (1, 2):
        found[f"conv{block}"] = nn.Conv2d(2 if block == 1 else 18, 18, 3, padding=1, **convolution)
        found[f"norm{block}"] = nn.BatchNorm2d(18)
        found.update({f"{kind}{block}": make[kind]() for kind in after})
    found["average"] = nn.AdaptiveAvgPool2d(2)
    found["flatten"] = nn.Flatten()
    found["classifier"] = nn.Linear(18 * 4, 3)
    for module in found.values():
        for name, value in module.named_parameters():
            spread = 1.0 if name == "weight" and value.dim() == 1 else 0.2
            value.data = torch.randn(value.shape, generator=generator, dtype=torch.float64) * spread
        for name, value in module.named_buffers():
            if value.is_floating_point():
                drawn = torch.rand(value.shape, generator=generator, dtype=torch.float64)
                module.register_buffer(name, drawn + 0.5)
    return found


def both(format: Any, after: list[str], norm: str, **convolution: Any) -> tuple[AttachedModel, AttachedModel]:
    """The same attached backbone, once with chains and once without."""
    made = layers(after, 0, **convolution)
    formats: Any = {} if format is None else format if isinstance(format, mp.Full) else {"*weight": format}
    if formats and not isinstance(format, mp.Full):
        biased = {"conv*bias": mp.Full()} if convolution.get("bias", True) else {}
        formats = {"norm*": None, **biased, **formats}
    return (
        mp.attach(nn.Sequential(made), formats, norm=norm, seed=3),
        mp.attach(OneByOne(made), formats, norm=norm, seed=3),
    )


def factors_of(model: AttachedModel, tasks: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        name: (
            torch.randn(tasks, *value.shape[1:], generator=generator, dtype=torch.float64) * 0.3
        ).requires_grad_()
        for name, value in model.factors().items()
    }


def chains_that_run(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the chains that run at once from now on, as they run."""
    ran: list[str] = []
    activated = Chain._activated

    def noted(self: Chain, *args: Any) -> Tensor:
        ran.append(self.norm_name)
        return activated(self, *args)

    monkeypatch.setattr(Chain, "_activated", noted)
    return ran


@pytest.mark.parametrize("norm", ["running", "support", "transductive"])
@pytest.mark.parametrize("after", BLOCKS)
@pytest.mark.parametrize("format", FORMATS)
def test_equals_the_layers_one_by_one(
    format: str, after: str, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, statistics, gradients in factors, weights and inputs, and their second derivatives."""
    joined, apart = both(FORMATS[format], BLOCKS[after], norm)
    ran = chains_that_run(monkeypatch)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 4, 2, 8, 8, generator=generator, dtype=torch.float64)
    support = (
        torch.randn(3, 2, 2, 8, 8, generator=generator, dtype=torch.float64) if norm == "support" else None
    )
    factors = factors_of(joined, 3)
    weights = {name: value.detach().clone().requires_grad_() for name, value in joined.parameters.items()}
    found: list[list[Tensor]] = []
    for model in (joined, apart):
        own = x.clone().requires_grad_()
        statistics: dict[str, Any] = {}
        output = model(own, factors, support, weights=weights, statistics=statistics)
        inputs = [own, *factors.values(), *weights.values()]
        first = torch.autograd.grad(output.square().sum(), inputs, create_graph=True, allow_unused=True)
        size = sum(g.square().sum() for g in first if g is not None)
        second = torch.autograd.grad(size, inputs, allow_unused=True)
        values = [value for name in sorted(statistics) for value in statistics[name]]
        zero = torch.zeros(())
        found.append([output, *values, *(zero if g is None else g for g in (*first, *second))])
        if model is joined:
            assert {"norm1", "norm2"} == set(ran)
            ran.clear()
    assert ran == []
    size = max(float(value.detach().abs().max()) for value in found[1])
    for one, other in zip(*found):
        torch.testing.assert_close(
            one, other, rtol=1e-9, atol=1e-13 * size
        )  # gradients that are 0 but for rounding


@pytest.mark.parametrize(
    "convolution",
    [{"bias": False}, {"groups": 2}, {"padding_mode": "reflect"}, {"stride": 2}, {"dilation": 2}],
    ids=str,
)
@pytest.mark.parametrize("format", ["lora", "full"])
def test_every_option_of_the_convolution(format: str, convolution: dict[str, Any]) -> None:
    joined, apart = both(FORMATS[format], ["relu"], "running", **convolution)
    x = torch.randn(2, 3, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    factors = factors_of(joined, 2)
    torch.testing.assert_close(joined(x, factors), apart(x, factors), rtol=1e-10, atol=1e-10)


def test_a_watched_layer_stays_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward hooks see what they watch."""
    made, seen = nn.Sequential(layers(["relu", "pool"], 0)), []
    made.norm1.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    model = mp.attach(made, mp.LoRA(2))
    ran = chains_that_run(monkeypatch)
    model(torch.zeros(2, 3, 2, 8, 8, dtype=torch.float64), model.factors())
    ran.clear()
    seen.clear()
    model(torch.zeros(2, 3, 2, 8, 8, dtype=torch.float64), model.factors())
    assert ran == ["norm2"]
    assert len(seen) == 1


@pytest.mark.parametrize("norm", ["support", "transductive"])
def test_a_norm_without_parameters_and_buffers(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the convolution says how many channels there are, and in which type."""
    made = layers(["relu", "pool"], 0, bias=False)
    for block in (1, 2):
        made[f"norm{block}"] = nn.BatchNorm2d(18, affine=False, track_running_stats=False)
    joined, apart = (mp.attach(kind(made), mp.LoRA(2), norm=norm) for kind in (nn.Sequential, OneByOne))
    ran = chains_that_run(monkeypatch)
    x = torch.randn(2, 3, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    factors, support = factors_of(joined, 2), x if norm == "support" else None
    torch.testing.assert_close(
        joined(x, factors, support), apart(x, factors, support), rtol=1e-10, atol=1e-10
    )
    assert {"norm1", "norm2"} == set(ran)


class Windows(nn.Module):
    """Cuts every image into four windows, which are rows of their own inside, and averages what comes out."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        cut = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        return self.inside(cut).view(x.shape[0], 4, -1).mean(1)


@pytest.mark.parametrize("norm", ["running", "support", "transductive"])
@pytest.mark.parametrize("format", [mp.LoRA(2), mp.Full()], ids=["lora", "full"])
def test_several_rows_an_input(format: Any, norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference items of a task are all their rows."""
    made = layers(["relu", "pool"], 0)
    joined, apart = (mp.attach(Windows(kind(made)), format, norm=norm) for kind in (nn.Sequential, OneByOne))
    ran = chains_that_run(monkeypatch)
    x, support = (
        torch.randn(2, count, 2, 16, 16, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
        for count in (3, 2)
    )
    given = support if norm == "support" else None
    factors = factors_of(joined, 2)
    torch.testing.assert_close(joined(x, factors, given), apart(x, factors, given), rtol=1e-10, atol=1e-10)
    assert {"inside.norm1", "inside.norm2"} == set(ran)
    if (
        norm == "transductive"
    ):  # without an update: torch's own layers in train mode, one task after the other
        plain = Windows(nn.Sequential(layers(["relu", "pool"], 0))).train()
        wanted = torch.stack([plain(own) for own in x])
        torch.testing.assert_close(joined(x, joined.factors()), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("norm", ["running", "support"])
@pytest.mark.parametrize("format", [mp.LoRA(2), mp.Full()], ids=["lora", "full"])
def test_under_vmap(format: Any, norm: str) -> None:
    """A user maps the attached model over one axis more, as `torch.func` allows with any function."""
    joined, _ = both(format, ["relu", "pool"], norm)
    generator = torch.Generator().manual_seed(1)
    x, support = (torch.randn(3, 2, 4, 2, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    factors = {name: value.detach() for name, value in factors_of(joined, 2).items()}

    def run(x: Tensor, support: Tensor) -> Tensor:
        return joined(x, factors, support if norm == "support" else None)

    wanted = torch.stack([run(*pair) for pair in zip(x, support)])
    torch.testing.assert_close(torch.func.vmap(run)(x, support), wanted, rtol=1e-10, atol=1e-10)


def test_equal_values_under_the_maximum() -> None:
    """Blank images: all values under a window are the same, and one of them alone gets the gradient."""
    joined, apart = both(mp.LoRA(2), ["relu", "pool"], "running")
    factors = factors_of(joined, 2)
    gradients = []
    for model in (joined, apart):
        x = torch.zeros(2, 3, 2, 8, 8, dtype=torch.float64, requires_grad=True)
        gradients.append(torch.autograd.grad(model(x, factors).sum(), x)[0])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("norm", ["running", "support", "transductive"])
@pytest.mark.parametrize("format", [mp.LoRA(2), mp.Full()], ids=["lora", "full"])
def test_under_autocast(format: Any, norm: str) -> None:
    """A chain mixes bfloat16 activations with float32 statistics: outputs stay within bfloat16's two digits."""
    batch = mp.EpisodeSampler(mp.load_dataset("glyphs"), 5, 1, 5, seed=0).batch(0, 2)
    body = mp.backbones.conv4(5, 1, width=16)
    model = mp.attach(body, format, norm=norm)
    factors = {name: value.expand(2, *value.shape[1:]) for name, value in model.factors().items()}
    support = batch.support_x if norm == "support" else None
    wanted = model(batch.query_x, factors, support)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(batch.query_x, factors, support)
    found, wanted = found.detach(), wanted.detach()
    assert float((found - wanted).norm() / wanted.norm()) < 0.03
    rounded, exact = (
        mp.Learner(model, mp.inner.SGD(3, 0.005), autocast=autocast).hypergradient(batch).grads
        for autocast in (torch.bfloat16, None)
    )
    assert {grad.dtype for grad in rounded.values()} == {torch.float32}
    a, b = (torch.cat([grads[name].flatten() for name in exact]) for grads in (rounded, exact))
    # 0.95 to 0.999 here: two digits, and units that are on in one of both alone
    assert float(torch.nn.functional.cosine_similarity(a, b, dim=0)) > 0.9
    assert float(a.norm() / b.norm()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("format", FORMATS)
def test_a_module_that_stands_several_times_runs_each_time(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = layers(BLOCKS["all"], 0)
    made["relu2"], made["pool2"] = made["relu1"], made["pool1"]
    formats: Any = {} if FORMATS[format] is None else FORMATS[format]
    if formats and format != "full":
        formats = {"conv*weight": formats}
    joined, apart = (mp.attach(kind(made), formats, seed=3) for kind in (nn.Sequential, OneByOne))
    ran = chains_that_run(monkeypatch)
    factors = factors_of(joined, 3)
    x = torch.randn(3, 4, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(joined(x, factors), apart(x, factors), rtol=1e-12, atol=1e-12)
    assert ran.count("norm1") == ran.count("norm2") >= 1


@pytest.mark.parametrize(
    "watch",
    [
        lambda layer, seen: layer.register_forward_hook(lambda *_: seen.append(1)),
        lambda layer, seen: layer.register_forward_pre_hook(lambda *_: seen.append(1)),
        lambda layer, seen: layer.register_full_backward_hook(lambda *_: seen.append(1)),
        lambda layer, seen: layer.register_full_backward_pre_hook(lambda *_: seen.append(1)),
    ],
    ids=["forward", "forward pre", "backward", "backward pre"],
)
def test_hooks_that_come_after_attach_see_what_they_watch(watch: Any) -> None:
    made, seen = layers(BLOCKS["all"], 0), []
    model = mp.attach(nn.Sequential(made), {"conv*weight": mp.LoRA(2)})
    x = torch.randn(1, 4, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    model(x, factors_of(model, 1)).sum().backward()
    assert not seen
    watch(model.backbone.norm1, seen)
    model(x, factors_of(model, 1)).sum().backward()
    assert seen
