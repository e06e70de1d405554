"""What the speed benchmark runs: workloads, and the plain module that every peer gets."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp

WAYS, RATE = 5, 0.01
FORMATS: dict[str, Any] = {
    "lora": mp.LoRA(4),
    "cp": mp.CP(4),
    "tr": mp.TensorRing((2, 2, 2)),
    "full": mp.Full(),
    "head": mp.Full(),  # on the classifier alone
}


@dataclass(frozen=True)
class Workload:
    """One meta-step: T tasks of 5-way 1-shot, K inner steps, the gradient of the outer variables.

    Args:
        backbone: conv4, resnet12 or vit. width: of it. size, channels: of the images.
        format: of the updates, on all layers (of the ViT: its linear ones).
        tasks, queries, steps: T, queries a task, K. engine: unroll, recompute, first-order or cg.
        frozen: the outer variables are the starts alone, without the backbone's weights.
        norm: running or transductive statistics. proximal: weight of the inner proximal term.
        targets: patterns of the layers with updates; None for those that the format says.
    """

    backbone: str = "conv4"
    width: int = 64
    size: int = 28
    channels: int = 1
    format: str = "lora"
    tasks: int = 16
    queries: int = 25
    steps: int = 5
    engine: str = "unroll"
    frozen: bool = False
    norm: str = "running"
    proximal: float = 0.0
    targets: tuple[str, ...] | None = None

    def body(self) -> nn.Module:
        """The backbone, with statistics that are not 0 and 1."""
        make: Callable[..., nn.Module] = getattr(mp.backbones, self.backbone)
        deep = {"depth": 12, "heads": 3} if self.backbone == "vit" else {}
        body = make(ways=WAYS, channels=self.channels, size=self.size, width=self.width, seed=0, **deep)
        generator = torch.Generator().manual_seed(1)
        for name, value in body.named_buffers():
            if name.endswith("running_mean"):
                value.normal_(0, 0.1, generator=generator)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
        return body

    def batch(self, dtype: torch.dtype = torch.float32) -> mp.EpisodeBatch:
        """Images of noise: the arithmetic does not depend on them."""
        generator = torch.Generator().manual_seed(2)

        def part(each: int) -> tuple[Tensor, Tensor]:
            shape = (self.tasks, each * WAYS, self.channels, self.size, self.size)
            labels = torch.arange(WAYS).repeat(each).expand(self.tasks, -1).contiguous()
            return torch.randn(shape, generator=generator).to(dtype), labels

        (sx, sy), (qx, qy) = part(1), part(self.queries // WAYS)
        classes = torch.arange(WAYS).expand(self.tasks, -1)
        return mp.EpisodeBatch(support_x=sx, support_y=sy, query_x=qx, query_y=qy, classes=classes)

    @property
    def compiles(self) -> bool:
        """Whether compiled kernels can stand for a part of it."""
        return self.backbone == "conv4"

    @property
    def attached(self) -> bool:
        """Whether updates are factors beside the weights, and not the weights themselves."""
        return self.format not in ("full", "head")

    def learner(self, body: nn.Module) -> mp.Learner:
        """metapeft's side; starts of the factors are drawn so that no gradient is 0 by construction."""
        outer = ("weights",) if not self.attached else ("factors",) if self.frozen else ("weights", "factors")
        format = FORMATS[self.format]
        targets: Any = "head" if self.format == "head" else nn.Linear if self.backbone == "vit" else "all"
        model = mp.attach(body, format, list(self.targets or []) or targets, norm=self.norm)
        learner = mp.Learner(
            model,
            mp.inner.SGD(self.steps, RATE, proximal=self.proximal),
            outer=outer,
            hypergradient=self.engine,
            head="learned",
        )
        generator = torch.Generator().manual_seed(3)
        for name in sorted(learner.trained):
            if name.startswith("factors."):
                start = learner.trained[name]  # the same numbers in every dtype
                start.copy_(torch.randn(start.shape, generator=generator).mul_(0.1))
        return learner


class Updated(nn.Module):
    """A layer whose weight is `W0 + Delta(factors)`, added up before it is used: the faster form in a loop over tasks.

    (Two convolutions in a row instead take 1.5 times as long in a plain loop, W1, one thread.)
    """

    def __init__(self, layer: nn.Module, format: Any, factors: dict[str, Tensor]) -> None:
        super().__init__()
        self.layer, self.format = layer, format
        self.factors = nn.ParameterDict(factors)

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.layer.weight  # type: ignore[assignment]
        delta = self.format.delta({name: value.unsqueeze(0) for name, value in self.factors.items()})[0]
        bias: Any = self.layer.bias
        if isinstance(self.layer, nn.Conv2d):
            own = self.layer
            return F.conv2d(x, weight + delta, bias, own.stride, own.padding, own.dilation, own.groups)
        return F.linear(x, weight + delta, bias)


@dataclass(frozen=True)
class Plain:
    """A workload as an ordinary module: what the peers differentiate.

    Attributes:
        net: the module. names: its parameters -> metapeft's outer variables. inner: those that adapt.
    """

    net: nn.Module
    names: dict[str, str]
    inner: list[str]

    @property
    def outer(self) -> list[str]:
        return [name for name, value in self.net.named_parameters() if value.requires_grad]


def plain(workload: Workload, body: nn.Module, learner: mp.Learner) -> Plain:
    """The same model with the same numbers, without metapeft's forward."""
    net = copy.deepcopy(body)
    net.train(workload.norm == "transductive")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.training:  # statistics of the batch, none kept
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    if not workload.attached:
        names = {name: f"weights.{name}" for name, _ in net.named_parameters()}
        head = f"{learner.model.classifier}."
        inner = [name for name in names if workload.format == "full" or name.startswith(head)]
        return Plain(net, names, inner)
    for name, site in learner.model.sites.items():
        owner, _, _ = name.rpartition(".")
        parent, _, child = owner.rpartition(".")
        starts = {
            key.removeprefix(f"{name}."): learner.variables[f"factors.{key}"][0].clone()
            for key in learner.factor_names
            if key.startswith(f"{name}.")
        }
        holder = net.get_submodule(parent)
        setattr(holder, child, Updated(holder.get_submodule(child), site.format, starts))
    names = {}
    for name, value in net.named_parameters():
        layer, _, factor = name.rpartition(".factors.")
        names[name] = (
            f"factors.{layer}.weight.{factor}" if layer else "weights." + name.replace(".layer.", ".")
        )
        if workload.frozen and not layer:
            value.requires_grad_(False)
    return Plain(net, names, [name for name in names if ".factors." in name])


W1 = Workload()
#: a name -> the workload; `QUICK` are those of `--quick`
WORKLOADS = {
    "W1": W1,
    "W1 frozen": replace(W1, frozen=True),
    "W1 cp": replace(W1, format="cp"),
    "W1 tr": replace(W1, format="tr"),
    "MAML": replace(W1, format="full"),
    "MAML batch statistics": replace(W1, format="full", norm="transductive"),
    "ANIL": replace(W1, format="head"),
    "W1, last block": replace(W1, targets=("conv4.*", "classifier.*")),
    "W1 first order": replace(W1, engine="first-order"),
    "W1 implicit": replace(W1, engine="cg", proximal=10.0),
    "W1, T = 1": replace(W1, tasks=1),
    "W1, T = 4": replace(W1, tasks=4),
    "W1, T = 64": replace(W1, tasks=64),
    "W1, K = 1": replace(W1, steps=1),
    "W1, K = 20": replace(W1, steps=20, tasks=4),
    "W1, recompute, K = 1": replace(W1, steps=1, tasks=4, engine="recompute"),
    "W1, recompute, K = 20": replace(W1, steps=20, tasks=4, engine="recompute"),
    "W1, recompute, K = 100": replace(W1, steps=100, tasks=4, engine="recompute"),
    "W1, implicit, K = 1": replace(W1, steps=1, tasks=4, engine="cg", proximal=10.0),
    "W1, implicit, K = 100": replace(W1, steps=100, tasks=4, engine="cg", proximal=10.0),
    "MAML 84": replace(W1, format="full", size=84, channels=3, tasks=4),
    "ResNet-12": replace(W1, backbone="resnet12", size=84, channels=3, tasks=2, steps=2, queries=5),
    "ViT": replace(W1, backbone="vit", width=192, size=28, tasks=4, steps=2),
}
QUICK = ("W1", "W1 frozen", "W1 cp", "W1 tr", "MAML", "MAML batch statistics")
