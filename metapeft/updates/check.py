"""The check of the first batch: tasks run at once must equal tasks run one by one, merged."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metapeft.updates import inputs
from metapeft.updates.call import Call
from metapeft.updates.merge import with_updates

if TYPE_CHECKING:
    from metapeft.updates.attached import AttachedModel

log = logging.getLogger("metapeft")


@torch.no_grad()
def first_batch(model: AttachedModel, x: Any, call: Call) -> None:
    """Run two tasks with random updates at once and merged, and compare.

    Args:
        x: leaves `(T, B, ...)`; the first two tasks are taken (one task is taken twice).
        call: the run that is about to start.

    Raises:
        ValueError: the outputs differ (the layer that cannot be batched is usually one whose batch axis is not
            the first), or a parameter with an update is not used.
    """
    first = torch.tensor([0, 1 if call.tasks > 1 else 0])
    two = inputs.mapped(x, lambda value: value[first.to(value.device)])
    mask = None if call.mask is None else call.mask.expand(call.tasks, -1)[first.to(call.mask.device)]
    factors = _noise(model)
    updates = {
        name: inputs.update_of(model.sites[name], local, 2, call.items)
        for name, local in model.groups(factors).items()
    }
    trial = Call(2, call.items, updates, call.reference, mask)
    output = model.execute(two, trial).unflatten(0, (2, call.items))
    idle = sorted(set(model.sites) - trial.fired)
    if idle:
        raise ValueError(
            f"no input reaches {', '.join(idle[:5])}: the backbone's forward never runs the layer; leave it out of targets"
        )
    _check_classifier(model, trial, output)
    for task in range(2):
        own = {name: value[task : task + 1] for name, value in factors.items()}
        baked = {
            name: (mean[task : task + 1], variance[task : task + 1], count)
            for name, (mean, variance, count) in trial.statistics.items()
        }
        plain = with_updates(model, own, None, baked)
        untouched = with_updates(model, model.factors(), None, baked)
        args, kwargs = inputs.flattened(inputs.mapped(two, lambda value: value[task : task + 1]), call.items)
        with inputs.exact_attention():
            expected = inputs.output_tensor(plain(*args, **kwargs), call.items)
            without = inputs.output_tensor(untouched(*args, **kwargs), call.items)
        _compare(output[task], expected, without)


def _noise(model: AttachedModel) -> dict[str, Tensor]:
    """Factors of two different random updates, of about a tenth of the weights' size."""
    generator = torch.Generator().manual_seed(model.seed)
    parameters = dict(model.backbone.named_parameters(remove_duplicate=False))
    noisy = {}
    for name, value in model.factors().items():
        weight = parameters[name.rpartition(".")[0]].detach()
        size = 0.1 * float(weight.float().square().mean().sqrt()) + 1e-3
        noise = torch.randn(2, *value.shape[1:], generator=generator).to(value)
        noisy[name] = value.expand(2, *value.shape[1:]) + noise * (
            size if not value.any() else 0.1 * float(value.abs().max())
        )
    return noisy


def _check_classifier(model: AttachedModel, call: Call, output: Tensor) -> None:
    """Note whether the guessed classifier really makes the backbone's output."""
    if model.classifier is None:
        return
    own = call.classifier_output
    flat = output.flatten(0, 1)
    if own is None or own.shape != flat.shape or not torch.equal(own, flat):
        model.forget_classifier()


def _compare(output: Tensor, expected: Tensor, without: Tensor) -> None:
    """Raise ValueError where a task's batched output is not its merged module's.

    The error is held against the effect of the update: a mix-up of tasks or inputs is as large as the effect.
    """
    if not expected.isfinite().all():
        raise ValueError(
            "the backbone's output is not finite: NaN or infinity in the input or in its weights"
        )
    effect = float((expected - without).abs().max())
    error = float((output - expected).abs().max())
    rounding = 1e4 * torch.finfo(output.dtype).eps * (1.0 + float(expected.abs().max()))
    if not error <= 0.02 * effect + rounding:
        raise ValueError(
            f"tasks run at once differ from the same tasks one by one (by {error:.3g}, the update's effect is {effect:.3g}): "
            "some module takes another axis than the first for the batch, mixes the inputs of a batch, or keeps state; "
            "leave it out of targets or give it batch_first=True"
        )
