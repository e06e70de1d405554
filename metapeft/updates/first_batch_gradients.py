"""The check of the first batch goes on: gradients of tasks run at once must equal those of tasks run one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metapeft.base.machine.memory import is_out_of_memory
from metapeft.base.trees import mapped
from metapeft.updates import factors as _factors
from metapeft.updates import inputs
from metapeft.updates.batched import BatchedBackbone
from metapeft.updates.layers.call import Call
from metapeft.updates.layers.function import transforms_are_active
from metapeft.updates.layers.normalization import is_batch_norm
from metapeft.updates.layers.slots import Slots

#: that many inputs of each task are enough: a derivative that mixes tasks up does so on any
_ITEMS = 4

Gradients = dict[str, Tensor]


def gradients_at_once(
    model: BatchedBackbone, x: Any, factors: Mapping[str, Tensor], call: Call
) -> Gradients | None:
    """Gradients of a random sum of the outputs of two tasks at once, `name -> (2, ...)`; None where there are none.

    Args:
        x: leaves `(2, B, ...)`. factors: `(2, ...)`. call: the run of the values.
    """

    def run(few: Any, own: Gradients, items: int) -> Tensor:
        updates = _factors.updates_of(model.sites, own, model.parameters, 2, items)
        reference = None if call.reference is None else items
        return model.execute(few, Call(2, items, updates, reference))

    return _gradients(run, x, factors)


def gradients_alone(
    model: BatchedBackbone, plain: nn.Module, x: Any, factors: Mapping[str, Tensor], call: Call
) -> Gradients | None:
    """The same of one task, by the module's own forward, `name -> (1, ...)`.

    Args:
        plain: a copy of the backbone, not needed any more: its batch norms are put into train mode where statistics
            are those of the batch.
        x: leaves `(1, B, ...)`. factors: `(1, ...)`. call: the run of the values.
    """
    slots = Slots(plain)
    for module in plain.modules():
        if is_batch_norm(module):
            module.train(call.reference is not None)

    def run(few: Any, own: Gradients, items: int) -> Tensor:
        updates = _factors.updates_of(model.sites, own, model.parameters, 1, items)
        values = {
            name: model.parameters[name].detach() + update.delta(1)[0] for name, update in updates.items()
        }
        args, kwargs = inputs.flattened(few, items)
        with inputs.exact_attention():
            output = torch.func.functional_call(plain, slots.filled(values), args, kwargs, tie_weights=False)
        return inputs.output_tensor(output, items)

    return _gradients(run, x, factors)


def compare_gradients(together: Gradients, alone: list[Gradients]) -> None:
    """Raise ValueError where a task's gradient is another one when tasks run at once.

    The error is held against the gradient, and its rounding against the largest of all: what is wrong is so by its
    size.
    """
    expected = {name: torch.cat([task[name] for task in alone]) for name in together}
    largest = max((float(value.abs().max()) for value in expected.values() if value.numel()), default=0.0)
    for name, value in expected.items():
        if not value.numel():
            continue
        own, error = float(value.abs().max()), float((together[name] - value).abs().max())
        rounding = 1e4 * torch.finfo(value.dtype).eps * largest
        if not error <= 0.02 * own + rounding:
            raise ValueError(
                f"the gradient of {name} is another one where tasks run at once than where they run one by one, by "
                f"{error:.3g} where it is {own:.3g}: the layer's derivative is not that of its forward under "
                "torch.vmap, or mixes the inputs of a batch; leave it out of targets"
            )


def _gradients(
    run: Callable[[Any, Gradients, int], Tensor], x: Any, factors: Mapping[str, Tensor]
) -> Gradients | None:
    """Of the output of each task's first inputs, summed up with the same random coefficients for every task.

    Returns: by name; None where the backbone has no derivative, of which whoever asks for one is told by torch.
    """
    tasks, items = inputs.sizes(x)
    items = min(items, _ITEMS)

    def total(own: Gradients) -> Tensor:
        output = run(few, own, items)
        each = torch.unflatten(output, 0, (tasks, items))
        drawn = torch.Generator().manual_seed(0)
        coefficients = torch.randn(each.shape[1:], dtype=torch.float32, generator=drawn).to(each)
        return (each * coefficients).sum()

    try:
        with torch.enable_grad():
            few = mapped(x, lambda value: value[:, :items].clone())
            own = {name: value.clone() for name, value in factors.items()}
            if transforms_are_active():  # where no tensor may be made a leaf
                found: Gradients = torch.func.grad(total)(own)
                return {name: value.detach() for name, value in found.items()}
            leaves = [value.requires_grad_() for value in own.values()]
            value = total(own)
            if not value.requires_grad:
                return {name: torch.zeros_like(value) for name, value in own.items()}
            return dict(
                zip(own, torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True))
            )
    except (RuntimeError, ValueError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        return None
