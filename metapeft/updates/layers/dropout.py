"""Dropout whose masks are given: every call of torch that drops something in a forward is served here or refused."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from metapeft.updates.layers.call import Holder

_CHANNELS = {"dropout1d": 3, "dropout2d": 4, "dropout3d": 5}  # and the number of axes with that of the batch
_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
_RANDOM = {
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal"),
    *("bernoulli", "multinomial", "poisson", "binomial", "bernoulli_", "normal_", "uniform_"),
    *("exponential_", "cauchy_", "geometric_", "log_normal_", "random_", "gumbel_softmax"),
    *("fractional_max_pool2d", "fractional_max_pool3d", "fractional_max_pool2d_with_indices"),
    *("fractional_max_pool3d_with_indices", "alpha_dropout", "feature_alpha_dropout", "feature_dropout"),
    *("native_dropout", "_standard_gamma", "_sample_dirichlet"),
}
_DROPS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
_OWN = ("torch.", "metapeft.backbones.")


def never_drops(backbone: nn.Module) -> bool:
    """Whether it is certain, without a run, that a backbone has no dropout: it is built of known layers without.

    Example:
        >>> never_drops(nn.Linear(2, 2)), never_drops(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)))
        (True, False)
    """
    for module in backbone.modules():
        rate: Any = module.p if isinstance(module, _DROPS) else 0.0
        if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
            rate = module.dropout
        if rate or not type(module).__module__.startswith(_OWN):
            return False
    return True


def in_training(skeleton: nn.Module) -> None:
    """Put a skeleton into train mode, all but its normalisation, whose buffers no forward may move."""
    skeleton.train()
    for module in skeleton.modules():
        if isinstance(module, _NORMS):
            module.eval()


def announce(skeleton: nn.Module, holder: Holder) -> None:
    """Let the holder know which module runs."""

    def enter(said: str) -> Callable[..., None]:
        return lambda *_: holder.running.append(said)

    def leave(*_: Any) -> None:
        holder.running.pop()

    for name, module in skeleton.named_modules():
        module.register_forward_pre_hook(enter(f"{name or 'the backbone'} ({type(module).__name__})"))
        module.register_forward_hook(leave)


class Dropping(TorchFunctionMode):
    """While it is active, dropout takes its masks from the call that is going on; without masks it does nothing.

    It sees the functions that modules call, so dropout inside attention is served as `nn.Dropout` is.

    Args:
        holder: where it finds the call, the layouts, and the name of the module that runs.

    Raises:
        ValueError: what would draw from torch's global generator, by name of the module; dropout on what all
            inputs share.
    """

    def __init__(self, holder: Holder) -> None:
        super().__init__()
        self.holder = holder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name: str = getattr(func, "__name__", "")
        if name == "dropout":
            return self._dropout(*args, **kwargs)
        if name in _CHANNELS:
            return self._dropout(*args, **kwargs, kind=name)
        if name == "scaled_dot_product_attention":
            return self._attention(func, *args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self:
                return _attention_seen_inside()(*args, **kwargs)
        random = name in _RANDOM or (
            name.startswith("rrelu") and (kwargs.get("training") or True in args[3:4])
        )
        if random or (name in _RECURRENT and any(isinstance(value, float) and value > 0 for value in args)):
            raise ValueError(
                f"dropout=True cannot serve {self._module()}: in train mode it calls {name}, which draws from "
                "torch's global generator; dropout is nn.Dropout, Dropout1d to 3d, and that of attention. Turn "
                "the other off in the backbone, or leave out dropout=True"
            )
        return func(*args, **kwargs)

    def _dropout(
        self,
        input: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
        *,
        train: bool | None = None,
        kind: str = "dropout",
    ) -> Tensor:
        """What `F.dropout` and its kin return, under the mask of the row; `train` is what `torch.dropout` calls it."""
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"{self._module()} has p={p}: allowed is 0 to 1")
        if p == 0.0 or not (training if train is None else train):
            return input
        mask = self._mask(input, p, kind)
        if mask is None:
            return input
        return input.mul_(mask) if inplace else input * mask

    def _mask(self, x: Tensor, p: float, kind: str) -> Tensor | None:
        """The mask of the next dropout in this forward; None where the call has none to give."""
        call = self.holder.current()
        place, call.dropouts = call.dropouts, call.dropouts + 1
        if call.shapes is not None:
            call.shapes["", place, "dropout"] = tuple(x.shape)
        if call.masks is None:
            return None
        parts, which = call.part or (1, None)
        layout = self.holder.layouts.get(("", place, "dropout"))
        axis = None if layout is None else layout.locate(x, call.rows // parts)
        if axis is None or x.shape[axis] % (call.rows // parts):
            raise ValueError(
                f"dropout=True cannot serve {self._module()}: it drops from a tensor of shape {tuple(x.shape)}, where "
                "no axis was found that holds the inputs, so that all tasks would share the mask"
            )
        size = list(x.movedim(axis, 0).shape)
        if kind in _CHANNELS:
            if axis != 0 or x.dim() != _CHANNELS[kind]:
                raise ValueError(
                    f"dropout=True cannot serve {self._module()}: {kind} wants {_CHANNELS[kind]} axes, the first that "
                    f"of the batch, not shape {tuple(x.shape)}"
                )
            size[2:] = [1] * (x.dim() - 2)
        mask = call.masks(place, (size[0] * parts, *size[1:]), p, x)
        if which is not None:
            mask = torch.unflatten(mask, 0, (parts, -1))[which]
        return mask.movedim(0, axis)

    def _attention(
        self,
        func: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """`softmax(q k^T scale + mask)`, dropped from, times v; a query that may see nothing gets 0."""
        options = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        if dropout_p == 0.0:
            return func(query, key, value, attn_mask, 0.0, **options)
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
        scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
        scores = (query * scale) @ key.transpose(-2, -1)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is None:
            weights = scores.softmax(-1)
        else:
            hides = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -math.inf) if hides else scores + attn_mask
            blind = (scores == -math.inf).all(-1, keepdim=True)
            weights = scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
        return self._dropout(weights, dropout_p) @ value

    def _module(self) -> str:
        return self.holder.running[-1] if self.holder.running else "the backbone"


@functools.cache
def _attention_seen_inside() -> Callable[..., Any]:
    """`F.multi_head_attention_forward` without its hand-over to a mode, so that a mode sees what it calls.

    Raises:
        ValueError: a torch in which that function is written in another way.
    """
    function: Any = F.multi_head_attention_forward
    if not {"has_torch_function", "dropout", "scaled_dot_product_attention"} <= {*function.__code__.co_names}:
        raise ValueError(
            f"dropout=True cannot serve nn.MultiheadAttention under torch {torch.__version__}: set its dropout to 0, "
            "or leave out dropout=True"
        )
    names = {**vars(F), "has_torch_function": lambda *_: False}
    return FunctionType(function.__code__, names, argdefs=function.__defaults__)
