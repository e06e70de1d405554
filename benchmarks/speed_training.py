"""Steps of training without an inner loop: standard retraining (SR) and ProtoNet, on statistics of the batch.

The peers are a plain PyTorch loop with channels last, as one writes it: in float32, under autocast to bfloat16, and
through `torch.compile`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp
from metapeft.training.image_groups import ImageGroups
from metapeft.training.retraining_task import Pretraining
from metapeft.updates.attach_model import attach

Step = Callable[[], dict[str, Tensor]]
Loss = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class Training:
    """One outer step on noise, and the gradient of all weights.

    Args:
        method: sr, a softmax over `ways` classes on T groups of `items` images; or protonet, T tasks of `ways` ways
            with a support image each and the rest of `items` for queries.
        autocast: metapeft's forwards in bfloat16.
    """

    method: str = "sr"
    size: int = 84
    channels: int = 3
    width: int = 64
    tasks: int = 1
    items: int = 128
    ways: int = 64
    autocast: bool = False
    backbone: str = "conv4"
    engine: str = "direct"
    compiles: bool = True

    def body(self) -> nn.Module:
        return mp.backbones.conv4(
            ways=self.ways, channels=self.channels, size=self.size, width=self.width, seed=0
        )

    def batch(self, dtype: torch.dtype = torch.float32) -> ImageGroups:
        """Images of noise, each class in turn."""
        shape = (self.tasks, self.items, self.channels, self.size, self.size)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        return ImageGroups(
            x, torch.arange(self.items).remainder(self.ways).expand(self.tasks, -1).contiguous()
        )


TRAININGS = {
    f"{name} {size}{' bfloat16' if autocast else ''}": Training(
        method, size, 3 if size == 84 else 1, 64, tasks, items, ways, autocast
    )
    for name, method, tasks, items, ways in (("SR", "sr", 1, 128, 64), ("ProtoNet", "protonet", 2, 120, 20))
    for size in (28, 84)
    for autocast in (False, True)
}


def has_amx() -> bool:
    """Whether this machine's processor has products of tiles of bfloat16."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "amx_bf16" in cpuinfo.read_text(encoding="utf-8")


def metapeft(training: Training, body: nn.Module, batch: ImageGroups) -> Step:
    """metapeft's own step, by its names."""
    autocast = torch.bfloat16 if training.autocast and batch.x.dtype == torch.float32 else None
    if training.method == "sr":
        task = Pretraining(attach(body, {}), training.ways, autocast=autocast)
        _same_softmax(task)
        return lambda: dict(task.hypergradient(batch).grads)
    learner = mp.methods.protonet(body, autocast=autocast)
    episodes = mp.EpisodeBatch(
        support_x=batch.x[:, : training.ways].contiguous(), support_y=batch.y[:, : training.ways].contiguous(),
        query_x=batch.x[:, training.ways :].contiguous(), query_y=batch.y[:, training.ways :].contiguous(),
        classes=torch.arange(training.ways).expand(training.tasks, -1),
    )  # fmt: skip
    return lambda: dict(learner.hypergradient(episodes).grads)


def _same_softmax(task: Pretraining) -> None:
    """A softmax that is the same in every dtype."""
    weight = task.variables["softmax.weight"]
    drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(4))
    weight.copy_(drawn.mul_(weight.shape[1] ** -0.5))


def looped(
    training: Training, body: nn.Module, batch: ImageGroups, autocast: bool, compiled: bool = False
) -> Step:
    """The plain loop: a group or a task at a time, by metapeft's names."""
    net = copy.deepcopy(body).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    head = next(name for name, module in net.named_modules() if isinstance(module, nn.Linear))
    size, dtype = net.get_submodule(head).in_features, batch.x.dtype
    softmax = nn.Linear(int(size), training.ways).to(batch.x) if training.method == "sr" else nn.Identity()
    if isinstance(softmax, nn.Linear):
        with torch.no_grad():
            drawn = torch.randn(softmax.weight.shape, generator=torch.Generator().manual_seed(4))
            softmax.weight.copy_(drawn.mul_(float(size) ** -0.5))
            softmax.bias.zero_()
    setattr(net, head, softmax)
    x = [each.contiguous(memory_format=torch.channels_last) for each in batch.x]
    run = torch.compile(net) if compiled else net

    def step() -> dict[str, Tensor]:
        net.zero_grad(set_to_none=True)
        for t in range(training.tasks):
            with torch.autocast(batch.x.device.type, dtype=torch.bfloat16, enabled=autocast):
                output = run(x[t])
            _loss(training, output.to(dtype), batch.y[t]).div(training.tasks).backward()  # type: ignore[no-untyped-call]
        grads = {name: value.grad for name, value in net.named_parameters()}
        return {_name(name, head): value.clone() for name, value in grads.items() if value is not None}

    return step


def _loss(training: Training, output: Tensor, y: Tensor) -> Tensor:
    if training.method == "sr":
        return F.cross_entropy(output, y)
    support, query = output[: training.ways], output[training.ways :]
    logits = 2 * query @ support.T - support.square().sum(1)
    return F.cross_entropy(logits, y[training.ways :])


def _name(name: str, head: str) -> str:
    return name.replace(f"{head}.", "softmax.") if name.startswith(f"{head}.") else f"weights.{name}"


def steps_of_training(
    training: Training,
    only: Collection[str] | None,
    dtype: torch.dtype,
    kernels: bool,
    own: Callable[..., Step],
) -> dict[str, Step]:
    """The steps of all (or some) rows, with flat gradients; in float64 all are without autocast.

    Args:
        kernels: whether they are in use now. own: `(step, whether by kernels)` -> metapeft's step so.
    """
    body, batch = training.body().to(dtype), training.batch(dtype)
    step = metapeft(training, body, batch)
    brief = dtype == torch.float32
    makers: dict[str, Callable[[], Step]] = {"metapeft": lambda: own(step, kernels)}
    if kernels:
        makers["uncompiled"] = lambda: own(step, False)
    makers["loop"] = lambda: looped(training, body, batch, False)
    makers["loop bfloat16"] = lambda: looped(training, body, batch, brief)
    makers["torch.compile"] = lambda: looped(
        training, body, batch, training.autocast and brief, compiled=True
    )
    chosen = [name for name in makers if only is None or name in only]
    return {name: _flat(makers[name]()) for name in chosen}


def _flat(step: Step) -> Step:
    return lambda: {name: value.flatten() for name, value in step().items()}
