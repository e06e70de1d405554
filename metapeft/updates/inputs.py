"""From what a user passes to what a run needs: task axes, devices, support sets, outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from metapeft.base.machine.memory import is_out_of_memory
from metapeft.base.trees import mapped, tree_leaves

Preprocess = Callable[[Tensor], Tensor]
Output = Callable[[Any], Tensor]


def sizes(x: Any, name: str = "x") -> tuple[int, int]:
    """`(T, B)` of an input whose leaves are `(T, B, ...)`; raises ValueError where they disagree."""
    found = tree_leaves(x)
    shapes = [tuple(value.shape) for value in found]
    if not found or any(len(shape) < 2 for shape in shapes) or len({shape[:2] for shape in shapes}) != 1:
        raise ValueError(
            f"{name} has leaves of shapes {shapes}: each must start with the same (tasks, inputs) axes, "
            "(T, B, ...)"
        )
    tasks, items = shapes[0][:2]
    if tasks == 0 or items == 0:
        raise ValueError(f"{name} has shape {shapes[0]}: at least one task and one input are needed")
    return tasks, items


def prepared(
    x: Any, like: Tensor, dtypes: set[torch.dtype], preprocess: Preprocess | None, name: str = "x"
) -> Any:
    """Bring an input to the backbone's device and turn uint8 images into its floats.

    Args:
        x: leaves `(T, B, ...)`.
        like: a parameter of the backbone, whose device and dtype the input gets.
        dtypes: floating dtypes that the backbone has.
        preprocess: uint8 `(T*B, ...)` to floats; None: `x / 255`.
        name: of the argument, for messages.

    Raises:
        ValueError: floats of a dtype that the backbone doesn't have (none of it under autocast).
    """
    sizes(x, name)

    def one(value: Tensor) -> Tensor:
        value = value.to(like.device)
        if value.dtype == torch.uint8:
            if preprocess is None:
                return value.to(like.dtype) / 255
            floats = preprocess(value.flatten(0, 1))
            return torch.unflatten(floats.to(like.device, like.dtype), 0, value.shape[:2])
        known = not value.is_floating_point() or value.dtype in dtypes
        if not known and not torch.is_autocast_enabled(like.device.type):
            allowed = ", ".join(sorted(map(str, dtypes)))
            raise ValueError(
                f"{name} has dtype {value.dtype}, the backbone's weights {allowed}: convert one of them"
            )
        return value

    return mapped(x, one)


def flattened(x: Any, rows: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of the backbone's forward, leaves `(T*B, ...)`."""
    flat = mapped(x, lambda value: value.reshape(rows, *value.shape[2:]))
    if isinstance(flat, dict):
        return (), flat
    return (flat, {}) if isinstance(flat, tuple) else ((flat,), {})


@contextlib.contextmanager
def explained(x: Any, taken: str | None, hooked: str = "") -> Iterator[None]:
    """Say on which inputs a backbone's forward could not run, where it raises.

    Args:
        x: leaves `(T, B, ...)`.
        taken: what `kind` said of inputs on which it ran before; None: there were none.
        hooked: a module with hooks of the user's own, which may know the original module only.

    Raises:
        ValueError: in place of what the forward raised; memory that does not suffice stays what it is.
    """
    try:
        yield
    except (RuntimeError, LookupError, TypeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        before = "" if taken in (None, kind(x)) else f" (it ran on {taken})"
        closed = isinstance(error, LookupError | AttributeError) and hooked
        hook = (
            f" (a hook of {hooked} may write into the module that was attached, not into its copy)"
            if closed
            else ""
        )
        raise ValueError(
            f"the backbone does not run on {kind(x)}{before}: {(str(error).splitlines() or [''])[0]}{hook}"
        ) from error


def kind(x: Any) -> str:
    """What one input is, with leaves `(T, B, ...)`: its shapes and dtypes.

    Example:
        >>> kind(torch.zeros(2, 5, 1, 28, 28))
        'inputs of shape (1, 28, 28) and torch.float32'
    """
    said = (f"shape {tuple(value.shape[2:])} and {value.dtype}" for value in tree_leaves(x))
    return f"inputs of {', '.join(said)}"


def split_support(
    support: Any, factors: Mapping[str, Tensor]
) -> tuple[Any, Mapping[str, Tensor], Tensor | None]:
    """Read `support=`: the set itself, `(x, factors)` or `(x, factors, mask)`."""
    if isinstance(support, tuple) and len(support) in (2, 3) and isinstance(support[1], Mapping):
        return support[0], support[1], support[2] if len(support) == 3 else None
    return support, factors, None


def join(first: Any, second: Any) -> Any:
    """Put the items of one input before those of another, leaf by leaf."""
    a, b = tree_leaves(first), tree_leaves(second)
    alike = len(a) == len(b) and all(
        p.shape[0] == q.shape[0] and p.shape[2:] == q.shape[2:] for p, q in zip(a, b)
    )
    if not alike:
        raise ValueError(
            f"support= has leaves of shapes {[tuple(p.shape) for p in a]}, "
            f"x of {[tuple(q.shape) for q in b]}: they may differ only in the number of inputs, axis 1"
        )
    joined = iter([torch.cat([p, q], 1) for p, q in zip(a, b)])
    return mapped(second, lambda _: next(joined))


def checked_mask(mask: Tensor | None, tasks: int, items: int) -> Tensor | None:
    """A mask as it was given, if it is bool `(T or 1, items)`; raises ValueError otherwise."""
    if mask is not None:
        good = (
            mask.dtype == torch.bool
            and mask.dim() == 2
            and mask.shape[0] in (1, tasks)
            and mask.shape[1] == items
        )
        if not good:
            raise ValueError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}: allowed is torch.bool ({tasks}, {items}"
                "), True for inputs that statistics count"
            )
    return mask


def checked_weights(weights: Mapping[str, Tensor] | None, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters and buffers that stand in for a backbone's own, if they are like them; else ValueError."""
    for name, value in (weights or {}).items():
        like = own.get(name)
        if like is None:
            raise ValueError(f"weights has {name!r}, which is no parameter or buffer of the backbone")
        if like.shape != value.shape or like.dtype != value.dtype:
            raise ValueError(
                f"weights[{name!r}] is {value.dtype} of shape {tuple(value.shape)}, the backbone's own "
                f"{like.dtype} of shape {tuple(like.shape)}: they must agree"
            )
    return dict(weights or {})


def output_tensor(output: Any, rows: int, take: Output | None = None) -> Tensor:
    """The tensor of a backbone's output, with its row axis checked.

    Of a transformers output or a dict it is `logits`, else the first tensor; of a tuple the first entry.

    Args:
        take: a function of the user's own that gives it instead.

    Raises:
        ValueError: no tensor, several that are called logits, or another first axis than the batch's `rows`.
    """
    value = _taken(output) if take is None else take(output)
    if not isinstance(value, Tensor):
        said = "" if take is None else f", of which output= takes {type(value).__name__}"
        raise ValueError(
            f"the backbone returned {type(output).__name__}{said}: a tensor is needed, or an output with .logits; "
            "attach(..., output=) is a function that takes the tensor from what the backbone returns"
        )
    if value.dim() == 0 or value.shape[0] != rows:
        raise ValueError(
            f"the backbone returned shape {tuple(value.shape)} for {rows} inputs: "
            "its first axis must be the batch"
        )
    return value


def _taken(output: Any) -> Any:
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    if isinstance(output, Mapping):
        named = {name: value for name, value in output.items() if isinstance(value, Tensor)}
    elif isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    else:
        return output
    if "logits" in named:
        return named["logits"]
    several = [name for name in named if "logits" in name]
    if len(several) > 1:
        raise ValueError(
            f"the backbone returned {', '.join(several)}: say which, or how they go together, by attach(..., output=), "
            f"such as output=lambda found: found[{several[0]!r}]"
        )
    return next(iter(named.values()), output)


@contextlib.contextmanager
def exact_attention() -> Iterator[None]:
    """Keep attention on kernels that call its layers and have second derivatives."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
