"""The shallow net of P3's second experiment, `y = c^T sigmoid((A* + U_t U_t^T) x) + e`.

The learner is Linear(d, d) - sigmoid - Linear(d, 1), with asymmetric adapters `U_t V_t^T` on the first
layer. LoRA-ML retrains all of it with an adapter for each task, SR without (adapters of zero, which get no
gradient); at test both train a fresh adapter only. All trials and both methods of a setting step together.
The gradient is written out, because a batch of nets this small spends most of an autograd step on
bookkeeping.

Source: P3 (arXiv 2410.22264), section 5, and the code jacob-block/peft-ml. Not known, and chosen here:
adapters start at N(0, 0.1^2) in both factors, the layers as torch's Linear does; at T = 2 the test rank is
3k, as in the linear model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from metapeft.base.arguments import number
from theory.models.problems import Array, LinearSetting, require_positive

METHODS = ("sr+lora", "lora-ml")
WIDTH, TASKS, RANK, START, FRESH, CHECK = 20, 10, 1, 0.1, 1000, 2000
Point = tuple[str, int, int, float, float]


@dataclass(frozen=True)
class Schedule:
    """How long to train, as published: AdamW on the full batch.

    Args:
        trials: draws a value.
        retraining, tuning: epochs of the two stages.
        rate: of AdamW, in both.
        points: recorded epochs of fine-tuning.
        plateau: end retraining once no net's loss has fallen by more than this share in 2,000 epochs; 0:
            never, as published.
    """

    trials: int = 10
    retraining: int = 40_000
    tuning: int = 15_000
    rate: float = 1e-3
    points: int = 61
    plateau: float = 0.0

    def __post_init__(self) -> None:
        for name in ("trials", "retraining", "tuning", "points"):
            require_positive(name, getattr(self, name))
        number(0, 1, plateau=self.plateau)


@dataclass
class Net:
    """A batch of B nets: `first` `(B, 1, d, d+1)` with its bias as the last column, `second` `(B, 1, 1, d)`,
    `bias` `(B, 1, 1, 1)`, and adapters `left`, `right` `(B, T, d, r)`."""

    first: torch.Tensor
    second: torch.Tensor
    bias: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor

    def adapted(self) -> torch.Tensor:
        """The first layer with each task's adapter, `(B, T, d, d+1)`."""
        return self.first + torch.nn.functional.pad(self.left @ self.right.mT, (0, 1))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs `(B, T, 1, N)` for inputs `(B, T, d+1, N)` whose last row is 1."""
        return self.second @ torch.sigmoid(self.adapted() @ x) + self.bias


def train(
    net: Net, x: torch.Tensor, y: torch.Tensor, epochs: int, rate: float, all_layers: bool
) -> Iterator[int]:
    """Train in place by AdamW on the mean squared error over tasks and samples.

    Args:
        net: the batch of nets.
        x: inputs `(B, T, d+1, N)`, last row 1.
        y: targets `(B, T, 1, N)`.
        epochs: full-batch steps.
        rate: of AdamW.
        all_layers: train both layers too, or only the adapters.

    Yields:
        0 before the first epoch, then the number of each epoch that is done.
    """
    batch, tasks, wide, samples = x.shape
    d = wide - 1
    trained = [net.left, net.right, *((net.first, net.second, net.bias) if all_layers else ())]
    optimizer = torch.optim.AdamW(trained, lr=rate, fused=True)
    flat_x, flat_t = x.reshape(-1, wide, samples), x.mT.reshape(-1, samples, wide).contiguous()
    target = y.reshape(-1, 1, samples)
    hidden = torch.empty(batch * tasks, d, samples, dtype=x.dtype)
    slope = torch.empty_like(hidden)
    scale = 2 / (tasks * samples)
    yield 0
    for epoch in range(1, epochs + 1):
        second = net.second.expand(batch, tasks, 1, d).reshape(-1, 1, d)
        torch.bmm(net.adapted().reshape(-1, d, wide), flat_x, out=hidden).sigmoid_()
        error = torch.baddbmm(target, second, hidden, beta=-1)
        error = (error + net.bias.expand(batch, tasks, 1, 1).reshape(-1, 1, 1)) * scale
        torch.ops.aten.sigmoid_backward(error, hidden, grad_input=slope)  # error * s (1 - s), in one pass
        first = (second.mT * (slope @ flat_t)).view(batch, tasks, d, wide)
        net.left.grad = first[..., :d] @ net.right
        net.right.grad = first[..., :d].mT @ net.left
        if all_layers:
            net.first.grad = first.sum(1, keepdim=True)
            net.second.grad = (error @ hidden.mT).view(batch, tasks, 1, d).sum(1, keepdim=True)
            net.bias.grad = error.view(batch, -1).sum(1).view(batch, 1, 1, 1)
        optimizer.step()
        yield epoch


def run(setting: LinearSetting, schedule: Schedule, seed: int) -> list[Point]:
    """Both methods on one setting, all trials: retraining, then fine-tuning on the test task.

    Args:
        setting: sizes; d up to 20 and T up to 10, which the nested draw covers.
        schedule: epochs and trials.
        seed: of the draw; a trial's numbers are shared by all settings.

    Returns:
        `(method, trial, epoch, mean squared error on the n inputs, on fresh inputs)`, both to clean targets.

    Raises:
        ValueError: sizes beyond the draw, a k above its rank.
    """
    if setting.d > WIDTH or setting.T > TASKS:
        raise ValueError(
            f"the draw covers d up to {WIDTH} and T up to {TASKS}, got {setting.d} and {setting.T}"
        )
    if setting.k > RANK:
        raise ValueError(f"k={setting.k}: the shallow net's tasks differ by maps of rank {RANK}")
    draws = [_draw(setting, np.random.default_rng([seed, 7, trial])) for trial in range(schedule.trials)]
    parts = {name: torch.stack([draw[name] for draw in draws for _ in METHODS]) for name in draws[0]}
    adapts = [float(method == "lora-ml") for _ in draws for method in METHODS]
    adapting = torch.tensor(adapts, dtype=parts["x"].dtype).view(-1, 1, 1, 1)
    net = Net(
        parts["first"], parts["second"], parts["bias"], parts["left"] * adapting, parts["right"] * adapting
    )
    last = torch.full((len(net.first),), torch.inf, dtype=parts["x"].dtype)
    for epoch in train(net, parts["x"], parts["y"], schedule.retraining, schedule.rate, all_layers=True):
        if schedule.plateau and epoch and epoch % CHECK == 0:
            loss = ((net(parts["x"]) - parts["y"]) ** 2).mean((1, 2, 3))
            if bool((loss > (1 - schedule.plateau) * last).all()):
                break
            last = loss
    net = Net(net.first, net.second, net.bias, parts["tune_left"], parts["tune_right"])
    record = set(np.linspace(0, schedule.tuning, schedule.points, dtype=int).tolist())
    found = []
    for epoch in train(
        net, parts["test_x"], parts["test_y"], schedule.tuning, schedule.rate, all_layers=False
    ):
        if epoch in record:
            losses = ((net(parts[f"{kind}_x"]) - parts[f"{kind}_clean"]) ** 2 for kind in ("test", "fresh"))
            pairs = torch.stack([loss.mean((1, 2, 3)) for loss in losses], -1).double().tolist()
            for index, (loss, population) in enumerate(pairs):
                trial, method = divmod(index, len(METHODS))
                found.append((METHODS[method], trial, epoch, loss, population))
    return found


def _draw(setting: LinearSetting, generator: np.random.Generator) -> dict[str, torch.Tensor]:
    """One trial's truth, samples and starts, parts of one nested draw. The test task comes first."""
    d, T, k, rank = setting.d, setting.T, setting.k, setting.test_rank
    normal, uniform = generator.standard_normal, generator.uniform
    base, left, head = normal((WIDTH, WIDTH)), normal((TASKS + 1, WIDTH, RANK)), normal(WIDTH)
    starts = START * normal((2, TASKS + 1, WIDTH, 3 * RANK))
    first, second, bias = uniform(-1, 1, (WIDTH, WIDTH + 1)), uniform(-1, 1, WIDTH), uniform(-1, 1, 1)
    inputs = [normal((WIDTH, count)) for count in (setting.n, FRESH)]
    retraining = normal((TASKS, WIDTH, setting.N))
    noise = [setting.sigma * normal(shape) for shape in ((1, 1, setting.n), (TASKS, 1, setting.N))]

    left = left[:, :d, :k]
    maps = base[:d, :d] + left @ left.swapaxes(-1, -2)

    def clean(maps: Array, x: Array) -> Array:
        return np.asarray(head[:d] @ (1 / (1 + np.exp(-(maps @ x)))))[..., None, :]

    def padded(x: Array) -> Array:
        return np.concatenate([x, np.ones_like(x[..., :1, :])], -2)

    train_x, test_x, fresh_x = retraining[:T, :d], inputs[0][None, :d], inputs[1][None, :d]
    test_clean, fresh_clean = clean(maps[:1], test_x), clean(maps[:1], fresh_x)
    parts = {
        "first": first[None, :d, [*range(d), WIDTH]] / np.sqrt(d),
        "second": second[None, None, :d] / np.sqrt(d),
        "bias": bias[None, None] / np.sqrt(d),
        "left": starts[0, 1 : T + 1, :d, :k],
        "right": starts[1, 1 : T + 1, :d, :k],
        "tune_left": starts[0, :1, :d, :rank],
        "tune_right": starts[1, :1, :d, :rank],
        "x": padded(train_x),
        "y": clean(maps[1 : T + 1], train_x) + noise[1][:T],
        "test_x": padded(test_x),
        "test_y": test_clean + noise[0],
        "test_clean": test_clean,
        "fresh_x": padded(fresh_x),
        "fresh_clean": fresh_clean,
    }
    return {name: torch.from_numpy(np.ascontiguousarray(part)).float() for name, part in parts.items()}
