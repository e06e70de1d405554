"""A backbone with an update per task: one forward for all tasks, no change to the user's module."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from metapeft.updates import factors as _factors
from metapeft.updates import first_batch_check as check
from metapeft.updates import inputs
from metapeft.updates.formats.site import Site
from metapeft.updates.inputs import Preprocess
from metapeft.updates.layers.call import Call, Holder, Statistics
from metapeft.updates.layers.dropout import Dropping
from metapeft.updates.layers.masks import Masks
from metapeft.updates.layers.recording import Recording, Replay
from metapeft.updates.merge import merge
from metapeft.updates.skeleton import build, let_keep

Factors = Mapping[str, Tensor]


class AttachedModel:
    """A backbone that runs on `T` tasks at once, each with its own update; made by `attach`.

    Attributes:
        backbone: the skeleton, which shares every parameter and buffer with the user's module.
        sites: parameter name -> its format and geometry.
        norm: `"running"`, `"support"` or `"transductive"`.
        preprocess: what turns uint8 inputs into floats; None: `x / 255`.
        classifier: name of the classifier layer, or None.
        dropout: whether it runs in train mode, with the masks that a run is given; merged modules never do.

    Example:
        >>> import metapeft as mp
        >>> model = mp.attach(torch.nn.Linear(3, 2), mp.LoRA(rank=1))
        >>> model.norm, list(model.sites)
        ('running', ['weight'])
    """

    def __init__(
        self,
        module: nn.Module,
        sites: dict[str, Site],
        norm: str,
        preprocess: Preprocess | None,
        classifier: str | None,
        classifier_is_certain: bool,
        seed: int,
        dropout: bool = False,
    ) -> None:
        self.module, self.sites, self.norm = module, sites, norm
        self.preprocess, self.classifier, self.seed, self.dropout = preprocess, classifier, seed, dropout
        self.holder = Holder(classifier)
        self.backbone, self._loose, self.users = build(module, sites, self.holder, dropout)
        self.parameters: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        self._state: dict[str, Tensor] = dict(self.parameters)
        self._state.update(module.named_buffers(remove_duplicate=False))
        floats = [value for value in self._state.values() if value.is_floating_point()]
        self._like = floats[0] if floats else torch.empty(0)
        self._dtypes = {value.dtype for value in floats} or {self._like.dtype}
        self.classifier_is_certain = classifier_is_certain
        self._ran_on: str | None = None
        self._keeps = False

    def __reduce__(self) -> tuple[type[AttachedModel], tuple[Any, ...]]:
        """Copied and pickled by what it was made of: a skeleton knows its leaves by closures."""
        made_of = (
            self.module, self.sites, self.norm, self.preprocess, self.classifier, self.classifier_is_certain, self.seed,
            self.dropout,
        )  # fmt: skip
        return AttachedModel, made_of

    def factors(self) -> dict[str, Tensor]:
        """Where every task starts: `name -> (1, ...)`, a zero update.

        Example:
            >>> import metapeft as mp
            >>> model = mp.attach(torch.nn.Linear(3, 2), mp.LoRA(rank=1))
            >>> {name: tuple(value.shape) for name, value in model.factors().items()}
            {'weight.A': (1, 1, 3), 'weight.B': (1, 2, 1)}
        """
        start: dict[str, Tensor] = {}
        for name, site in self.sites.items():
            # a generator a parameter: what else carries an update changes nothing here
            number = (self.seed * 1_000_003 + zlib.crc32(name.encode())) % 2**63
            generator = torch.Generator().manual_seed(number)
            for key, value in site.format.start(site.geometry, generator).items():
                start[f"{name}.{key}"] = value.to(self.parameters[name])
        return start

    def __call__(
        self,
        x: Any,
        factors: Factors,
        support: Any = None,
        *,
        weights: Factors | None = None,
        mask: Tensor | None = None,
        statistics: Statistics | None = None,
        masks: Masks | None = None,
        kept: Recording | Replay | None = None,
    ) -> Tensor:
        """Run the backbone once on all tasks.

        Args:
            x: leaves `(T, B, ...)`: a tensor, a dict of keyword arguments or a tuple of positional ones.
            factors: `name -> (T, ...)`; a leading 1 broadcasts, a seed `(T, B, ...)` is per input.
            support: under `norm="support"` the support set, leaves `(T, S, ...)` (`x` itself on the support
                set), or `(x, factors)` or `(x, factors, mask)`: seeds per input of its own, and `(T, S)`,
                True for inputs that count.
            weights: parameters and buffers of the backbone by name, in place of its own.
            mask: `(T, B)`, True for inputs that batch statistics count (`norm="transductive"` only).
            statistics: receives mean, biased variance `(T, C)` and count `(T,)` of every batch norm.
            masks: of dropout, for `T * B` rows, under `norm="support"` `T * (S + B)`, a task's support set first
                (not for `support=x`); None for no dropout.
            kept: records what goes before the first layer whose update moves, or hands it back (`kept.py`).

        Returns: the backbone's output, `(T, B, ...)`; of a transformers output its `.logits`.

        Raises:
            ValueError: inputs, factors or weights of the wrong names, shapes or dtypes, a support set that is
                missing or not wanted; on the first batch also what `check.first_batch` finds.
        """
        return self._run(x, factors, support, weights, mask, statistics, masks, kept, features=False)

    def features(
        self,
        x: Any,
        factors: Factors,
        support: Any = None,
        *,
        weights: Factors | None = None,
        mask: Tensor | None = None,
        statistics: Statistics | None = None,
        masks: Masks | None = None,
        kept: Recording | Replay | None = None,
    ) -> Tensor:
        """The classifier's input `(T, B, F)`, the output of a backbone without classifier; see `__call__`."""
        return self._run(x, factors, support, weights, mask, statistics, masks, kept, features=True)

    def prepared(self, x: Any, name: str = "x") -> Any:
        """An input on the backbone's device, its uint8 leaves `(T, B, ...)` as floats; see `__call__`."""
        return inputs.prepared(x, self._like, self._dtypes, self.preprocess, name)

    def merged(
        self,
        factors: Factors,
        support: Any = None,
        *,
        weights: Factors | None = None,
        mask: Tensor | None = None,
    ) -> nn.Module:
        """One task's plain `nn.Module` in eval mode, with `W0 + Delta` inside.

        Args:
            factors: one task's, without the task axis.
            support: under `norm="support"` its support set `(S, ...)`, whose statistics are baked in.
            weights: parameters and buffers in place of the backbone's own.
            mask: `(S,)`, True for support inputs that count.

        Raises:
            ValueError: `norm="transductive"`, which has no statistics of its own; a seed per input; a support
                set that is missing or not wanted.
        """
        if self.norm == "transductive":
            raise ValueError(
                'merged() under norm="transductive": it has no statistics before it sees a batch'
            )
        if (support is None) == (self.norm == "support"):
            wanted = "needs support=, the support set" if support is None else "takes no support="
            raise ValueError(f'merged() under norm="{self.norm}" {wanted}')
        return merge(self, factors, support, weights, mask)

    def forget_classifier(self) -> None:
        """The first batch showed that the guessed classifier does not make the backbone's output."""
        if self.classifier_is_certain:
            raise ValueError(
                f"{self.classifier!r} does not make the backbone's output: name it with classifier=, "
                "or say classifier=None where the backbone has none"
            )
        self.classifier = self.holder.classifier = None

    def _run(
        self,
        x: Any,
        factors: Factors,
        support: Any,
        weights: Factors | None,
        mask: Tensor | None,
        statistics: Statistics | None,
        masks: Masks | None,
        kept: Recording | Replay | None,
        features: bool,
    ) -> Tensor:
        weights = inputs.checked_weights(weights, self._state)
        prepared = self.prepared(x)
        tasks, items = inputs.sizes(prepared)
        dropped, reference = 0, None
        if self.norm != "transductive" and mask is not None:
            hint = "; a support set's goes into support=(x, factors, mask)" if self.norm == "support" else ""
            raise ValueError(f'mask= belongs to norm="transductive", not to norm="{self.norm}"{hint}')
        if self.norm == "support":
            if support is None:
                raise ValueError('norm="support" needs support=, the support set (on itself: support=x)')
            own, support_factors, mask = inputs.split_support(support, factors)
            if own is x:
                reference = items
            else:
                own = self.prepared(own, "support")
                dropped = reference = inputs.sizes(own)[1]
                prepared = inputs.join(own, prepared)
                factors = _factors.joined(self.sites, support_factors, factors, reference, items)
        elif support is not None:
            raise ValueError(
                f'norm="{self.norm}" takes no support=; attach(..., norm="support") normalises by it'
            )
        elif self.norm == "transductive":
            reference = items
        mask = inputs.checked_mask(mask, tasks, reference or items)
        items += dropped
        updates = _factors.updates_of(self.sites, factors, {**self.parameters, **weights}, tasks, items)
        if masks is not None and (not self.dropout or len(masks.keys) != tasks * items):
            raise ValueError(
                f"masks= for {len(masks.keys)} rows: this forward has {tasks * items if self.dropout else 'no dropout'}"
            )
        call = Call(tasks, items, updates, reference, mask, features, masks=masks, kept=kept)
        if kept is not None and not self._keeps:
            let_keep(self.backbone, self.users, self.holder)
            self._keeps = True
        with inputs.explained(prepared, self._ran_on):
            if self._ran_on is None:
                with torch.autocast(self._like.device.type, enabled=False):  # a check needs digits
                    check.first_batch(self, prepared, call)
                self._ran_on = inputs.kind(prepared)
            output = self.execute(prepared, call, weights)
        if statistics is not None:
            statistics.update(call.statistics)
        return torch.unflatten(output, 0, (tasks, items))[:, dropped:]

    def execute(self, x: Any, call: Call, weights: Factors | None = None) -> Tensor:
        """Run the skeleton on an input whose leaves are `(T, B, ...)`; returns rows `(T*B, ...)`."""
        if self.holder.call is not None:
            raise RuntimeError("an attached backbone cannot run inside itself")
        args, kwargs = inputs.flattened(x, call.rows)
        values = dict(weights or {})
        for name in self._loose:
            if name in call.updates:  # a parameter with a first axis of 1 gets one row an input
                own = values.get(name, self.parameters[name]) + call.updates[name].delta(call.rows)
                values[name] = own.flatten(0, 1).repeat_interleave(call.items, 0)
        self.holder.call, self.holder.running = call, []
        try:
            with inputs.exact_attention(), Dropping(self.holder) if self.dropout else nullcontext():
                if values:
                    output = torch.func.functional_call(self.backbone, values, args, kwargs)
                else:
                    output = self.backbone(*args, **kwargs)
        finally:
            self.holder.call = None
        return inputs.output_tensor(output, call.rows)


def check_model(model: object) -> None:
    """Raise ValueError for what `attach` did not make.

    Example:
        >>> check_model(torch.nn.Linear(2, 2))
        Traceback (most recent call last):
        ValueError: model is of type Linear: mp.attach(backbone, format) makes what is needed
    """
    if not isinstance(model, AttachedModel):
        raise ValueError(
            f"model is of type {type(model).__name__}: mp.attach(backbone, format) makes what is needed"
        )
