"""The check of the first batch: tasks run at once must equal tasks run one by one, merged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metapeft.base.machine.memory import is_out_of_memory
from metapeft.base.trees import mapped, tree_leaves
from metapeft.updates import factors as _factors
from metapeft.updates import inputs
from metapeft.updates.batched import BatchedBackbone
from metapeft.updates.first_batch_gradients import (
    Gradients,
    compare_gradients,
    gradients_alone,
    gradients_at_once,
)
from metapeft.updates.layers.call import Call
from metapeft.updates.layers.layout import Shapes, compare
from metapeft.updates.merge import with_updates


@torch.inference_mode(False)  # nothing that is made there can be differentiated
@torch.no_grad()
def first_batch(model: BatchedBackbone, x: Any, call: Call) -> None:
    """Learn where the leaf modules have their batch axes, then run two tasks at once and merged, and compare.

    Outputs are compared, and the gradients of the first few inputs.

    Args:
        x: leaves `(T, B, ...)`; the first two tasks are taken (one task is taken twice).
        call: the run that is about to start.

    Raises:
        ValueError: NaN or infinity in the input; a parameter with an update that is not used; outputs or gradients
            that differ, because some module can't take several tasks in one batch. With dropout also: a backbone that
            drops nothing, or whose train mode does more than to drop.
    """
    for value in tree_leaves(x):
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"x of shape {tuple(value.shape)} has NaN or infinity in it")
    buffers = {name: value.clone() for name, value in model.module.named_buffers()} if model.dropout else {}
    without = _learn_layouts(model, x, call)
    if model.dropout:
        _check_train_mode(model, buffers)
    noise = _noise(model)
    updates = _factors.updates_of(model.sites, noise, model.parameters, 2, call.items)
    trial = Call(2, call.items, updates, call.reference, _tasks(call.mask, 2))
    two = _first_tasks(x, 2)
    try:
        output = model.execute(two, trial)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"the backbone runs, but not with one update per task ({str(error).splitlines()[0]}): some "
            "module with an update takes another axis than the first for the batch; leave it out of targets"
        ) from error
    _check_classifier(model, trial, output)
    slopes = gradients_at_once(model, two, noise, trial) if noise else None
    alone_slopes: list[Gradients | None] = []
    for task, (together, before) in enumerate(zip(output.chunk(2), without.chunk(2))):
        statistics = {
            name: (mean[task : task + 1], variance[task : task + 1], count)
            for name, (mean, variance, count) in trial.statistics.items()
        }
        own = {name: value[task : task + 1] for name, value in noise.items()}
        plain = with_updates(model, own, None, statistics)
        rows = mapped(two, lambda value, task=task: value[task : task + 1])  # type: ignore[misc]
        args, kwargs = inputs.flattened(rows, call.items)
        with inputs.exact_attention():
            alone = inputs.output_tensor(plain(*args, **kwargs), call.items)
        _compare(together, alone, before)
        if slopes is not None:
            alone_slopes.append(gradients_alone(model, plain, rows, own, trial))
    known = [value for value in alone_slopes if value is not None]
    if slopes is not None and len(known) == 2:
        compare_gradients(slopes, known)


def _first_tasks(x: Any, count: int) -> Any:
    """The first tasks of an input; a task that is missing is the first one again."""
    return mapped(x, lambda value: value[[i if i < value.shape[0] else 0 for i in range(count)]])


def _tasks(mask: Tensor | None, count: int) -> Tensor | None:
    return None if mask is None else mask[[i if i < mask.shape[0] else 0 for i in range(count)]]


def _learn_layouts(model: BatchedBackbone, x: Any, call: Call) -> Tensor:
    """Run one task and two without updates, note the batch axes; returns the output of two."""
    shapes: list[Shapes] = []
    output = torch.empty(0)
    for count in (1, 2):
        run = Call(count, call.items, {}, call.reference, _tasks(call.mask, count), shapes={})
        output = model.execute(_first_tasks(x, count), run)
        shapes.append(run.shapes or {})
        idle = [name for name, users in model.users.items() if not any(run.visits[user] for user in users)]
        if idle:
            raise ValueError(
                f"{', '.join(idle[:5])}: the backbone's forward never runs the layer, so an update there "
                "has no effect; leave it out of targets"
            )
    model.holder.layouts = compare(*shapes)
    if not output.isfinite().all():
        raise ValueError(
            "the backbone's output is not finite on a finite input: NaN or infinity in its weights?"
        )
    return output


def _check_train_mode(model: BatchedBackbone, before: dict[str, Tensor]) -> None:
    """Raise ValueError where train mode drops nothing, or moves buffers, which are put back."""
    moved = [name for name, value in model.module.named_buffers() if not torch.equal(value, before[name])]
    for name in moved:
        model.module.get_buffer(name).copy_(before[name])
    if moved:
        raise ValueError(
            f"dropout=True runs the backbone in train mode, where its forward changes the buffer {moved[0]!r}, which "
            "none may: leave that module in eval mode (override its train()), or leave out dropout=True"
        )
    if not any(key[2] == "dropout" for key in model.holder.layouts):
        raise ValueError(
            "dropout=True has no effect: the backbone's forward drops nothing (no nn.Dropout or attention with a "
            "rate above 0 runs); leave it out"
        )


def _noise(model: BatchedBackbone) -> dict[str, Tensor]:
    """Factors of two different random updates, of about a tenth of the weights' size."""
    generator = torch.Generator().manual_seed(0)
    noisy = {}
    for name, value in model.factors().items():
        weight = model.parameters[name.rpartition(".")[0]].detach()
        size = 0.1 * float(weight.float().square().mean().sqrt()) + 1e-3
        if value.any():
            size = 0.1 * float(value.abs().max())
        noise = torch.randn(2, *value.shape[1:], dtype=torch.float32, generator=generator).to(value)
        noisy[name] = value + noise * size
    return noisy


def _check_classifier(model: BatchedBackbone, call: Call, output: Tensor) -> None:
    """Note whether the guessed classifier really makes the backbone's output."""
    own = call.classifier_output
    if model.classifier is not None and (
        own is None or own.shape != output.shape or not torch.equal(own, output)
    ):
        model.forget_classifier()


def _compare(output: Tensor, expected: Tensor, without: Tensor) -> None:
    """Raise ValueError where a task's batched output is not its merged module's.

    The error is held against the effect of the update: a mix-up of tasks or inputs is as large as the effect.
    """
    effect = float((expected - without).abs().max())
    error = float((output - expected).abs().max())
    rounding = 1e4 * torch.finfo(output.dtype).eps * (1.0 + float(expected.abs().max()))
    if not error <= 0.02 * effect + rounding:
        raise ValueError(
            f"tasks run at once differ from the same tasks one by one, by {error:.3g} where the update's "
            f"effect is {effect:.3g}: some module takes another axis than the first for the batch, mixes "
            "the inputs of a batch, keeps state or uses a weight without calling its layer; "
            "leave it out of targets"
        )
