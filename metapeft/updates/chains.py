"""Convolution, batch norm, ReLU and max-pooling of a `Sequential` as one step.

Passes over the activations cost more than the arithmetic in them, so they are made few: with statistics from
the buffers the normalisation's scale goes into the convolution's weights, and the rest runs after the pooling,
on a quarter of the values,

    relu(pool(norm(conv(x)))) = relu(a * pool(conv'(x)) + c),     a >= 0 (the sign of a scale is in conv').
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metapeft.updates.layers.call import Call, Update
from metapeft.updates.layers.compiled.batch_fit import compiled_batch_chain
from metapeft.updates.layers.compiled.fit import compiled_chain
from metapeft.updates.layers.compiled.switch import in_use
from metapeft.updates.layers.convolution import convolve_dense, convolve_low_rank, spatial
from metapeft.updates.layers.normalization import reference_statistics
from metapeft.updates.layers.pooling import max_pool

Sites = dict[tuple[str, str], str]


@dataclass(frozen=True)
class Chain:
    """A convolution and a batch norm in a row, with the activation and the pooling that follow them.

    Args:
        convolution, norm: the two layers. relu, pool: what follows them; None where it does not.
        norm_name: of the norm, for the statistics.
        sites: `("convolution" or "norm", parameter)` -> the name under which its update is filed.
    """

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d
    relu: nn.ReLU | None
    pool: nn.MaxPool2d | None
    norm_name: str
    sites: Sites

    @property
    def members(self) -> list[nn.Module]:
        parts = (self.convolution, self.norm, self.relu, self.pool)
        return [module for module in parts if module is not None]

    def __call__(self, call: Call, x: Tensor) -> Tensor:
        """Rows `(T*B, C, H, W)` through all members; one after the other where they cannot run at once."""
        updates = {own: call.updates[full] for own, full in self.sites.items() if full in call.updates}
        if call.shapes is not None or not self._fits(call, updates, x):
            for module in self.members:
                x = module(x)
            return x
        weight = updates.get(("convolution", "weight"))
        scale = self._value("norm", "weight", updates, 1.0)
        beta = self._value("norm", "bias", updates, 0.0)
        bias = self._value("convolution", "bias", updates, 0.0)
        mean, variance = self.norm.running_mean, self.norm.running_var
        if call.reference is None and mean is not None and variance is not None:
            scale = scale * torch.rsqrt(variance + self.norm.eps)
            shift = (bias - mean) * scale + beta
            done = self._compiled(x, weight, scale, shift, call)
            if done is not None:
                return done
            pooled = self._pooled(self._convolved(x, weight, scale))
            return self._activated(pooled, None, shift, call)
        sign = torch.where(scale.detach() < 0, -1.0, 1.0).to(scale)
        found = self._compiled_on_batch(x, weight, sign, sign * scale, beta + (bias - bias), call)
        if found is not None:
            y, mean, variance = found
            count = torch.full_like(mean[:, 0], _rows_of_statistics(x, call) * x.shape[2] * x.shape[3])
            call.statistics[self.norm_name] = (sign * mean + bias, variance, count)
            return y
        z = self._convolved(x, weight, sign)
        mean, variance, count = reference_statistics(z, call)
        call.statistics[self.norm_name] = (sign * mean + bias, variance, count)
        size = sign * scale * torch.rsqrt(variance + self.norm.eps)
        # The mean is taken off first: where all values are the same, nothing but 0 may be left to be scaled up.
        # The convolution's bias falls out of that, but it stays in the graph.
        centred = torch.unflatten(self._pooled(z), 0, (call.tasks, -1)) - _beside(mean)
        return self._activated(centred.flatten(0, 1), size, beta + (bias - bias), call)

    def _value(self, part: str, name: str, updates: dict[tuple[str, str], Update], default: float) -> Tensor:
        """A parameter `(C,)`, or `(T, C)` with its update; `default` everywhere where the layer has none."""
        own: Tensor | None = getattr(getattr(self, part), name)
        if own is None:
            like: Tensor = self.convolution.weight
            return like.new_full(like.shape[:1], default)
        update = updates.get((part, name))
        return own if update is None else own + update.delta(update.tasks)

    def _fits(self, call: Call, updates: dict[tuple[str, str], Update], x: Tensor) -> bool:
        """Whether nobody watches, statistics are known, and scales are one for all tasks where W0 is."""
        if any(has_hooks(module) for module in self.members):
            return False
        known = call.reference is not None or self.norm.running_mean is not None
        update = updates.get(("convolution", "weight"))
        if update is not None and update.modulation is not None:
            return False  # it acts between the convolution and the norm
        own = update is not None and update.format.dense
        return known and x.dim() == 4 and (own or ("norm", "weight") not in updates)

    def _compiled(
        self, x: Tensor, update: Update | None, scale: Tensor, shift: Tensor, call: Call
    ) -> Tensor | None:
        """All of it by the compiled kernels; None where they are off or cannot."""
        if self.relu is None or self.pool is None:
            return None
        return compiled_chain(self.convolution, self.pool, x, update, scale, shift.expand(call.tasks, -1))

    def _compiled_on_batch(
        self, x: Tensor, update: Update | None, sign: Tensor, size: Tensor, shift: Tensor, call: Call
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Values, mean and variance by the compiled kernels; None where they are off or cannot."""
        per_input = update is not None and update.per_input
        if self.relu is None or self.pool is None or call.mask is not None or per_input:
            return None
        if not in_use():
            return None
        weight = self.convolution.weight
        own = weight if update is None else weight + update.delta(x.shape[0])
        signed = own
        if bool((sign < 0).any()):
            signed = own * (sign if update is None else sign.expand(call.tasks, -1))[..., None, None, None]
        size, shift = (value.expand(call.tasks, -1) for value in (size, shift))
        reference = _rows_of_statistics(x, call)
        return compiled_batch_chain(
            self.convolution, self.pool, x, signed, size, shift, self.norm.eps, reference
        )

    def _convolved(self, x: Tensor, update: Update | None, factor: Tensor) -> Tensor:
        """The convolution without bias, its outputs times `factor` `(C,)` or `(T, C)`; channels last."""
        options, weight = spatial(self.convolution), self.convolution.weight
        # channels last, in a form that torch.func.vmap knows
        x = options.pad(x).movedim(1, -1).contiguous().movedim(-1, 1)
        spread = factor.view(*factor.shape, 1, 1, 1)
        if update is None:
            return options.convolve(x, weight * spread)
        if update.format.dense:
            return convolve_dense(options, x, (weight + update.delta(x.shape[0])) * spread, None)
        return convolve_low_rank(options, x, weight * spread, None, update, update.up * factor.unsqueeze(-1))

    def _pooled(self, z: Tensor) -> Tensor:
        return z if self.pool is None else max_pool(self.pool, z)

    def _activated(self, z: Tensor, size: Tensor | None, shift: Tensor, call: Call) -> Tensor:
        """`relu(size * z + shift)` with `(C,)` or `(T, C)` coefficients."""
        split = torch.unflatten(z, 0, (call.tasks, -1))
        shift = _beside(shift)
        y = split + shift if size is None else torch.addcmul(shift, split, _beside(size))
        return (y if self.relu is None else torch.relu_(y)).flatten(0, 1)


def _rows_of_statistics(x: Tensor, call: Call) -> int:
    """How many of a task's rows its statistics are taken from; an input that is cut into windows has several."""
    items = call.items if call.reference is None else call.reference
    return x.shape[0] // (call.tasks * call.items) * items


def _beside(value: Tensor) -> Tensor:
    """`(C,)` or `(T, C)` so that it broadcasts on `(T, B, C, H, W)`."""
    return value.view(-1, 1, value.shape[-1], 1, 1)


def chains(sequential: nn.Sequential, prefix: str, sites: dict[str, str]) -> list[nn.Module | Chain]:
    """The members of a Sequential in turn, those that make a chain put together.

    Args:
        sequential: one with torch's own forward. prefix: its name in the backbone, with a dot or empty.
        sites: names of parameters, as their owners have them -> names under which updates are filed (tied
            parameters are filed once).
    """
    found: list[nn.Module | Chain] = []
    # not `named_children`, which leaves out a module that has stood there before: a ReLU for all layers
    members = [(name, module) for name, module in sequential._modules.items() if module is not None]
    while members:
        link = _first_chain(members, prefix, sites)
        if link is None:
            found.append(members.pop(0)[1])
        else:
            found.append(link)
            del members[: len(link.members)]
    return found


def _first_chain(members: list[tuple[str, nn.Module]], prefix: str, sites: dict[str, str]) -> Chain | None:
    """The chain that the first members make, if they do."""
    if len(members) < 2:
        return None
    (own, convolution), (name, norm) = members[:2]
    if type(convolution) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
        return None
    rest = [module for _, module in members[2:4]]
    relu = rest[0] if rest and type(rest[0]) is nn.ReLU else None
    rest = rest[1:] if relu is not None else rest
    pool = rest[0] if rest and type(rest[0]) is nn.MaxPool2d and not rest[0].return_indices else None
    filed = {
        (part, parameter): sites[full]
        for part, owner in (("convolution", own), ("norm", name))
        for parameter in ("weight", "bias")
        if (full := f"{prefix}{owner}.{parameter}") in sites
    }
    return Chain(convolution, norm, relu, pool, f"{prefix}{name}", filed)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody watches the module, who must not be passed over."""
    forward, backward = ("_forward_hooks", "_forward_pre_hooks"), ("_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in (*forward, *backward))
