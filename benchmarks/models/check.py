"""One architecture against plain torch: values of two tasks, and a second-order gradient, in float64."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import metapeft as mp
from benchmarks.models.case import Case
from metapeft.base.trees import mapped
from metapeft.updates import factors as _factors
from metapeft.updates import inputs
from metapeft.updates.attached import AttachedModel
from metapeft.updates.layers.slots import Slots

TASKS = 2
VALUES, GRADIENTS = 1e-8, 1e-6  # allowed, relative to the effect of the update and to the largest gradient
RATES = 0.01, 1e-6, 1e-10  # of the inner step: the first at which the plain module's gradient is finite

Factors = dict[str, Tensor]


def randomised(module: nn.Module) -> nn.Module:
    """In float64 and eval mode, with random weights and statistics: no gate that starts at 0 hides a fault."""
    module = module.double().eval()
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        held: list[Tensor] = list(module.parameters())
        for value in held:
            if value.is_floating_point():
                fan_in = value[0].numel() if value.dim() > 1 else 25
                value.normal_(std=max(fan_in, 1) ** -0.5, generator=source)
                value += float(value.dim() == 1)  # scales near 1
        for name, value in module.named_buffers():
            if name.endswith("running_mean"):
                value.normal_(std=0.1, generator=source)
            elif name.endswith("running_var"):
                value.uniform_(0.8, 1.2, generator=source)
    return module


def check(case: Case) -> dict[str, Any]:
    """How an architecture fares.

    Returns: `state`: `"whole"`, `"part"` (with `left_out`, or `"first order"`), `"refused"` (a sentence that names the
    cause), `"wrong"` (numbers differ), `"crash"` (torch's own error); `why`, `value`, `gradient`, `seconds`.
    """
    begun = time.perf_counter()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = _checked(case)
    return {"name": case.name, **found, "seconds": round(time.perf_counter() - begun, 2)}


def _checked(case: Case) -> dict[str, Any]:
    net = randomised(case.make())
    x = case.inputs(torch.Generator().manual_seed(1), TASKS * case.items)
    x = mapped(x, lambda value: torch.unflatten(value, 0, (TASKS, case.items)))
    try:
        model = mp.attach(net, case.format, **case.options)
        factors = noise(model)
        with torch.no_grad():
            together = model(x, factors)
            without = model(x, model.factors())
            alone = torch.stack([_merged(model, factors, x, task) for task in range(TASKS)])
    except ValueError as error:
        return {"state": "refused", "why": str(error)}
    except Exception as error:
        return {"state": "crash", "why": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    left_out = dict(getattr(model, "left_out", {}))
    result: dict[str, Any] = {"sites": len(model.sites)}
    if left_out:
        result["left_out"] = left_out
    effect = float((alone - without).abs().max())
    result["value"] = float((together - alone).abs().max()) / max(effect, 1e-300)
    if not result["value"] <= VALUES:
        return {**result, "state": "wrong", "why": f"values differ by {result['value']:.2g} of the effect"}
    state = "part" if left_out else "whole"
    if not case.second:
        return {**result, "state": state}
    try:
        for rate in RATES:
            expected = _second_order(_alone(model), x, factors, rate)
            if all(bool(value.isfinite().all()) for value in expected.values()):
                break
        if rate != RATES[0]:
            result["rate"] = rate
    except (RuntimeError, NotImplementedError) as error:
        return {**result, "state": "part", "why": f"first order only: {(str(error).splitlines() or [''])[0]}"}
    try:
        gradient = _second_order(model, x, factors, rate)
    except Exception as error:
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        return {**result, "state": "refused" if isinstance(error, ValueError) else "crash", "why": why}
    largest = max(float(value.abs().max()) for value in expected.values() if value.numel())
    result["gradient"] = max(float((gradient[n] - v).abs().max()) for n, v in expected.items()) / max(
        largest, 1e-300
    )
    if not result["gradient"] <= GRADIENTS:
        return {
            **result,
            "state": "wrong",
            "why": f"gradients differ by {result['gradient']:.2g} of the largest",
        }
    return {**result, "state": state}


def noise(model: AttachedModel) -> Factors:
    """Factors of another update for each task."""
    source = torch.Generator().manual_seed(2)
    return {
        name: value
        + 0.1 * torch.randn(TASKS, *value.shape[1:], generator=source, dtype=torch.float64).to(value)
        for name, value in model.factors().items()
    }


def _merged(model: AttachedModel, factors: Factors, x: Any, task: int) -> Tensor:
    plain = model.merged({name: value[task] for name, value in factors.items()})
    return _run(model, plain, mapped(x, lambda value: value[task : task + 1]))


class Formulas(TorchFunctionMode):
    """By their definitions, what torch differentiates only once, or wrongly."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("hardsigmoid", "hardsigmoid_"):
            return F.relu6(args[0] + 3) / 6
        if name == "_weight_norm":  # torch's second derivative is wrong where the axis is the last
            v, g, dim = args
            return v * (
                g / v.square().sum([axis for axis in range(v.dim()) if axis != dim], keepdim=True).sqrt()
            )
        if name == "embedding_bag":
            return F.embedding(*args[:2]).mean(1)
        return func(*args, **(kwargs or {}))


def _run(model: AttachedModel, plain: nn.Module, x: Any, values: Factors | None = None) -> Tensor:
    """One task's rows `(B, ...)` through a plain module, with other parameters where given."""
    rows = inputs.sizes(x)[1]
    args, kwargs = inputs.flattened(x, rows)
    plain.train().eval()  # what is kept from one forward to the next is forgotten so
    with inputs.exact_attention(), Formulas():
        if values is None:
            output = plain(*args, **kwargs)
        else:
            output = torch.func.functional_call(
                plain, Slots(plain).filled(values), args, kwargs, tie_weights=False
            )
    return model.output_rows(output, rows)


def _alone(model: AttachedModel) -> Callable[[Any, Factors], Tensor]:
    """The tasks one by one, by the module's own forward with `W0 + Delta`."""

    def run(x: Any, factors: Factors) -> Tensor:
        found = []
        for task in range(TASKS):
            own = {name: value[task : task + 1] for name, value in factors.items()}
            updates = _factors.updates_of(model.sites, own, model.parameters, 1, 1)
            values = {
                name: model.parameters[name].detach() + update.delta(1)[0] for name, update in updates.items()
            }
            rows = mapped(x, lambda value, task=task: value[task : task + 1])  # type: ignore[misc]
            found.append(_run(model, model.module, rows, values))
        return torch.stack(found)

    return run


def _second_order(run: Callable[[Any, Factors], Tensor], x: Any, factors: Factors, rate: float) -> Factors:
    """The gradient, at the start, of the loss after one inner step of gradient descent, summed over tasks."""
    start = {name: value.clone().requires_grad_() for name, value in factors.items()}

    def loss(own: Factors) -> Tensor:
        output = run(x, own)
        wave = torch.linspace(0.0, 3.0, output[0].numel(), dtype=output.dtype).view(output[0].shape).sin()
        return (output * wave).mean(tuple(range(1, output.dim()))).sum() + 0.1 * output.square().mean(
            tuple(range(1, output.dim()))
        ).sum()

    slopes = torch.autograd.grad(
        loss(start), list(start.values()), create_graph=True, allow_unused=True, materialize_grads=True
    )
    moved = {name: value - rate * slope for (name, value), slope in zip(start.items(), slopes)}
    found = torch.autograd.grad(loss(moved), list(start.values()), allow_unused=True, materialize_grads=True)
    return {name: value.detach() for name, value in zip(start, found)}
