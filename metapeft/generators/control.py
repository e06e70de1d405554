"""Controls for generators: what is left of their effect when they are shown nothing of the task, or another task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metapeft.generators.generator import Generator, Shapes, Tensors, check_generator
from metapeft.generators.support import Support


@dataclass(frozen=True)
class Control(Generator):
    """Base: the given generator, its parameters and all, shown something else than its task's support set.

    Args:
        generator: the one that is controlled.
    """

    generator: Generator

    def __post_init__(self) -> None:
        for name in ("per", "features", "size", "reads", "train_features"):
            object.__setattr__(self, name, getattr(self.generator, name))
        check_generator(self.generator)

    def start(self, seeds: Shapes, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        return self.generator.start(seeds, size, generator)

    def __call__(self, parameters: Tensors, seeds: Shapes, support: Support) -> dict[str, Tensor]:
        return self.generator(parameters, seeds, self.shown(support))

    def shown(self, support: Support) -> Support:
        """What the generator sees in place of the support set."""
        raise NotImplementedError(f"{type(self).__name__} shows nothing")


@dataclass(frozen=True)
class OtherTask(Control):
    """The given generator, shown the support set of the task before it in the batch: `seed_t = start + net(s_{t-1})`.

    A gap between a generator and this shows that what it generates is used, not that it helps: that is the gap to a
    constant seed and to `Blind`. `mp.evaluate(..., shown="another kind")` asks the sampler for a task of another kind.

    Args:
        generator: the one that is controlled.

    Raises:
        ValueError: when called on a batch of one task, which has no other.

    Example:
        >>> from metapeft.generators import MappingNet
        >>> OtherTask(MappingNet(hidden=8)).per
        'task'
    """

    def shown(self, support: Support) -> Support:
        if support.features.shape[0] < 2:
            raise ValueError(
                "the batch has one task, there is no other to take features from: tasks_per_batch >= 2"
            )
        y, mask = (None if value is None else value.roll(1, 0) for value in (support.y, support.mask))
        return Support(support.features.roll(1, 0), y, mask, support.ways)


@dataclass(frozen=True)
class Blind(Control):
    """The given generator, shown one fixed random support set whatever the task: trained and tested so, it is a
    control.

    It has the capacity of the net and none of its information: what it gains over a constant seed is no adaptation.

    Args:
        generator: the one that is controlled.

    Example:
        >>> from metapeft.generators import ClassEncoder
        >>> net, seeds = Blind(ClassEncoder(hidden=8)), {"a.seed": (2,)}
        >>> p = {name: torch.ones_like(value) for name, value in net.start(seeds, 3, torch.Generator()).items()}
        >>> found = net(p, seeds, Support(torch.randn(2, 4, 3), torch.tensor([[0, 0, 1, 1]] * 2), ways=2))["a.seed"]
        >>> torch.equal(found[0], found[1])
        True
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "train_features", False)  # which it never reads

    def shown(self, support: Support) -> Support:
        random = torch.Generator().manual_seed(0)
        tasks, _, size = support.features.shape
        items, ways = support.features.shape[1] if self.per == "input" else 10, 5
        features = torch.randn(
            1, 1 if self.per == "input" else items, size, generator=random, dtype=torch.float32
        ).to(support.features)
        features = features.expand(tasks, items, size)
        if support.y is None or self.per == "input":
            return Support(features)
        if support.y.is_floating_point():
            y = torch.randn(1, items, support.targets.shape[-1], generator=random, dtype=torch.float32).to(
                support.features
            )
            return Support(features, y.expand(tasks, -1, -1))
        return Support(
            features, torch.arange(items, device=features.device).expand(tasks, -1) % ways, None, ways
        )
