"""A backbone with an update per task: one forward for all tasks, no change to the user's module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from metapeft.base.trees import mapped
from metapeft.updates import factors as _factors
from metapeft.updates import first_batch_check as check
from metapeft.updates import inputs
from metapeft.updates.batched import BatchedBackbone
from metapeft.updates.formats.format import Factors
from metapeft.updates.formats.site import Site
from metapeft.updates.inputs import Output, Preprocess
from metapeft.updates.layers.call import Call, Statistics
from metapeft.updates.layers.masks import Masks
from metapeft.updates.layers.recording import Recording, Replay
from metapeft.updates.merge import with_updates
from metapeft.updates.skeleton import let_record


class Options(TypedDict, total=False):
    """What a forward takes by name beside its input, factors and support set.

    Attributes:
        weights: parameters and buffers of the backbone by name, in place of its own.
        mask: `(T, B)`, True for inputs that batch statistics count (`norm="transductive"` only).
        statistics: receives mean, biased variance `(T, C)` and count `(T,)` of every batch norm.
        masks: of dropout, for `T * B` rows, under `norm="support"` `T * (S + B)`, a task's support set first
            (not for `support=x`); None for no dropout.
        recording: takes down what goes before the first layer whose update moves, or hands it back.
    """

    weights: Factors | None
    mask: Tensor | None
    statistics: Statistics | None
    masks: Masks | None
    recording: Recording | Replay | None


class AttachedModel(BatchedBackbone):
    """A backbone that runs on `T` tasks at once, each with its own update; made by `attach`.

    Attributes:
        backbone: the skeleton, which shares every parameter and buffer with the user's module.
        sites: parameter name -> its format and geometry.
        norm: `"running"`, `"support"` or `"transductive"`.
        preprocess: what turns uint8 inputs into floats; None: `x / 255`.
        classifier: name of the classifier layer, or None.
        dropout: whether it runs in train mode, with the masks that a run is given; merged modules never do.
        output: takes the tensor from what the forward gives; None: its `logits`, or its first tensor.
        like: a tensor of the backbone's type and device; an empty one where it has none.
        left_out: what carries no update because it cannot: parameter -> why.
        given_start: the update that tasks start from, `name -> (1, ...)`; None: a zero update.

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
        output: Output | None = None,
        left_out: Mapping[str, str] | None = None,
        given_start: Factors | None = None,
    ) -> None:
        super().__init__(module, sites, classifier, classifier_is_certain, seed, dropout, output, given_start)
        self.left_out = dict(left_out or {})
        self.norm, self.preprocess = norm, preprocess
        self._state: dict[str, Tensor] = dict(self.parameters)
        self._state.update(module.named_buffers(remove_duplicate=False))
        floats = [value for value in self._state.values() if value.is_floating_point()]
        self.like = floats[0] if floats else torch.empty(0)
        self._dtypes = {value.dtype for value in floats} or {self.like.dtype}
        self._ran_on: str | None = None
        self._records = False
        self._hooked = ", ".join(
            f"{name or 'the backbone'} ({type(part).__name__})"
            for name, part in module.named_modules()
            if part._forward_hooks or part._forward_pre_hooks
        )

    def __repr__(self) -> str:
        formats = Counter(str(site.format) for site in self.sites.values())
        updates = ", ".join(f"{format} on {count}" for format, count in formats.items()) or "no update"
        numbers = sum(value.numel() for value in self.factors().values())
        own = sum(value.numel() for value in {id(v): v for v in self.parameters.values()}.values())
        return (
            f"AttachedModel({type(self.module).__name__}: {updates} parameter(s), {numbers:,} numbers beside {own:,}; "
            f'norm "{self.norm}", classifier {self.classifier!r})'
        )

    def __reduce__(self) -> tuple[type[AttachedModel], tuple[Any, ...]]:
        """It is copied and pickled by what it was made of: a skeleton knows its leaf modules by closures."""
        made_of = (
            self.module, self.sites, self.norm, self.preprocess, self.classifier, self.classifier_is_certain, self.seed,
            self.dropout, self.output, self.left_out, self.given_start,
        )  # fmt: skip
        return AttachedModel, made_of

    def __call__(self, x: Any, factors: Factors, support: Any = None, **options: Unpack[Options]) -> Tensor:
        """Run the backbone once on all tasks.

        Args:
            x: leaves `(T, B, ...)`: a tensor, a dict of keyword arguments or a tuple of positional ones.
            factors: `name -> (T, ...)`; a leading 1 broadcasts, a seed `(T, B, ...)` is per input.
            support: under `norm="support"` the support set, leaves `(T, S, ...)` (`x` itself on the support
                set), or `(x, factors)` or `(x, factors, mask)`: seeds per input of its own, and `(T, S)`,
                True for inputs that count.
            options: `weights=`, `mask=`, `statistics=`, `masks=`, `recording=`, as in `Options`.

        Returns: the backbone's output, `(T, B, ...)`; of a transformers output or a dict its `logits`, else its first
        tensor, or what `output=` takes.

        Raises:
            ValueError: inputs, factors or weights of the wrong names, shapes or dtypes, a support set that is
                missing or not wanted; on the first batch also what `first_batch_check.first_batch` finds.
        """
        return self._run(x, factors, support, options, features=False)

    def features(self, x: Any, factors: Factors, support: Any = None, **options: Unpack[Options]) -> Tensor:
        """The classifier's input `(T, B, F)`, the output of a backbone without classifier; see `__call__`."""
        return self._run(x, factors, support, options, features=True)

    def prepared(self, x: Any, name: str = "x") -> Any:
        """An input on the backbone's device, its uint8 leaves `(T, B, ...)` as floats; see `__call__`."""
        return inputs.prepared(x, self.like, self._dtypes, self.preprocess, name)

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
        one_task = _factors.one_task(self.sites, factors)
        statistics: Statistics = {}
        if support is not None:
            own = mapped(support, lambda value: value.unsqueeze(0))
            of_task = (own, one_task, None if mask is None else mask.unsqueeze(0))
            with torch.no_grad():
                self(own, one_task, of_task, weights=weights, statistics=statistics)
        return with_updates(self, one_task, weights, statistics)

    def _run(self, given: Any, factors: Factors, support: Any, options: Options, features: bool) -> Tensor:
        for name in options.keys() - Options.__optional_keys__:
            raise TypeError(
                f"an attached model takes no {name}=; its options are {', '.join(Options.__annotations__)}"
            )
        weights = inputs.checked_weights(options.get("weights"), self._state)
        x = self.prepared(given)
        tasks, items = inputs.sizes(x)
        mask = options.get("mask")
        self._check_norm(support, mask)
        first, reference = 0, None if self.norm == "running" else items
        if self.norm == "support":
            own, support_factors, mask = inputs.split_support(support, factors)
            if own is not given:  # its items run before those of x
                own = self.prepared(own, "support")
                first = reference = inputs.sizes(own)[1]
                x = inputs.join(own, x)
                factors = _factors.joined(self.sites, support_factors, factors, first, items)
        mask = inputs.checked_mask(mask, tasks, reference or items)
        items += first
        updates = _factors.updates_of(self.sites, factors, {**self.parameters, **weights}, tasks, items)
        masks, recording = options.get("masks"), options.get("recording")
        if masks is not None and (not self.dropout or len(masks.keys) != tasks * items):
            raise ValueError(
                f"masks= for {len(masks.keys)} rows: this forward has {tasks * items if self.dropout else 'no dropout'}"
            )
        call = Call(tasks, items, updates, reference, mask, features, masks=masks, recording=recording)
        if recording is not None and not self._records:
            let_record(self.backbone, self.users, self.holder)
            self._records = True
        with inputs.explained(x, self._ran_on, self._hooked):
            if self._ran_on is None:
                with torch.autocast(self.like.device.type, enabled=False):  # a check needs digits
                    check.first_batch(self, x, call)
                self._ran_on = inputs.kind(x)
            output = self.execute(x, call, weights)
        statistics = options.get("statistics")
        if statistics is not None:
            statistics.update(call.statistics)
        return torch.unflatten(output, 0, (tasks, items))[:, first:]

    def _check_norm(self, support: Any, mask: Tensor | None) -> None:
        """Raise ValueError for a mask or a support set that this normalisation lacks, or has no use for."""
        if mask is not None and self.norm != "transductive":
            hint = "; a support set's goes into support=(x, factors, mask)" if self.norm == "support" else ""
            raise ValueError(f'mask= belongs to norm="transductive", not to norm="{self.norm}"{hint}')
        if support is None and self.norm == "support":
            raise ValueError('norm="support" needs support=, the support set (on itself: support=x)')
        if support is not None and self.norm != "support":
            raise ValueError(
                f'norm="{self.norm}" takes no support=; attach(..., norm="support") normalises by it'
            )


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
