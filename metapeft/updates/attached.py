"""Give a backbone an update per task: one forward for all tasks, no change to the user's module."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metapeft.updates import check, inputs
from metapeft.updates.call import Call, Holder, Update
from metapeft.updates.merge import merge
from metapeft.updates.skeleton import build, refuse_backbone, share
from metapeft.updates.targets import Formats, Site, Targets, find_classifier, find_sites

NORMS = ("running", "support", "transductive")
Factors = Mapping[str, Tensor]
Preprocess = Callable[[Tensor], Tensor]


class AttachedModel:
    """A backbone that runs on `T` tasks at once, each with its own update; made by `attach`.

    Attributes:
        backbone: the skeleton, which shares every parameter and buffer with the user's module.
        norm: `"running"`, `"support"` or `"transductive"`.
        sites: parameter name -> its format and geometry.
        classifier: name of the classifier layer, or None.
    """

    def __init__(
        self,
        module: nn.Module,
        sites: dict[str, Site],
        norm: str,
        preprocess: Preprocess | None,
        classifier: str | None,
        fixed_classifier: bool,
        seed: int,
    ) -> None:
        self.module, self.sites, self.norm = module, sites, norm
        self.preprocess, self.classifier, self.seed = preprocess, classifier, seed
        self._holder = Holder(classifier)
        self.backbone, self._loose = build(module, sites, self._holder)
        self._fixed_classifier = fixed_classifier
        self._checked = False
        self.trained_names: list[str] | None = None

    def forget_classifier(self) -> None:
        """The first batch showed that the guessed classifier does not make the backbone's output."""
        if self._fixed_classifier:
            raise ValueError(
                f"{self.classifier!r} does not make the backbone's output: name the classifier with classifier=, "
                "or None where the backbone has none"
            )
        self.classifier = self._holder.classifier = None

    def factors(self) -> dict[str, Tensor]:
        """Where every task starts: `name -> (1, ...)`, a zero update.

        Example:
            >>> import metapeft as mp
            >>> model = mp.attach(torch.nn.Linear(3, 2), mp.LoRA(rank=1))
            >>> {name: tuple(value.shape) for name, value in model.factors().items()}
            {'weight.A': (1, 1, 3), 'weight.B': (1, 2, 1)}
        """
        like = dict(self.backbone.named_parameters(remove_duplicate=False))
        start: dict[str, Tensor] = {}
        for name, site in self.sites.items():
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + zlib.crc32(name.encode()))
            for key, value in site.format.start(site.geometry, generator).items():
                start[f"{name}.{key}"] = value.to(like[name])
        return start

    def __call__(
        self,
        x: Any,
        factors: Factors,
        support: Any = None,
        *,
        weights: Factors | None = None,
        mask: Tensor | None = None,
        statistics: dict[str, tuple[Tensor, Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """Run the backbone once on all tasks.

        Args:
            x: leaves `(T, B, ...)`: a tensor, a dict of keyword arguments or a tuple of positional ones.
            factors: `name -> (T, ...)`; a leading 1 broadcasts, a seed `(T, B, ...)` is per input.
            support: under `norm="support"` the support set, leaves `(T, S, ...)`, or `(x, factors)` or
                `(x, factors, mask)` where it has seeds per input of its own; `x` itself on the support set.
            weights: parameters of the backbone by name, in place of its own.
            mask: `(T, B)`, True for inputs that batch statistics count (`norm="transductive"` only).
            statistics: receives mean, biased variance `(T, C)` and count `(T,)` of every batch norm.

        Returns: the backbone's output, `(T, B, ...)`; of a transformers output its `.logits`.

        Raises:
            ValueError: inputs or factors of the wrong names, shapes or dtypes, a support set that is missing or
                not wanted.
        """
        return self._run(x, factors, support, weights, mask, statistics, features=False)

    def features(
        self,
        x: Any,
        factors: Factors,
        support: Any = None,
        *,
        weights: Factors | None = None,
        mask: Tensor | None = None,
        statistics: dict[str, tuple[Tensor, Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """The classifier's input, `(T, B, F)`; the backbone's output where it has no classifier. See `__call__`."""
        return self._run(x, factors, support, weights, mask, statistics, features=True)

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
            weights: parameters in place of the backbone's own. mask: `(S,)`, support inputs that count.

        Raises:
            ValueError: `norm="transductive"`, which has no statistics of its own; a seed per input; a support set
                that is missing or not wanted.
        """
        if self.norm == "transductive":
            raise ValueError(
                'merged() under norm="transductive": it has no statistics before it sees a batch'
            )
        if (support is None) == (self.norm == "support"):
            wanted = "needs support=, the support set" if support is None else "takes no support="
            raise ValueError(f'merged() under norm="{self.norm}" {wanted}')
        return merge(self, factors, support, weights, mask)

    def copy(
        self,
        keep_classifier: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> AttachedModel:
        """The same model on weights and buffers of its own, none of which asks for gradients.

        Args:
            keep_classifier: False drops the classifier's updates and weights: only `features` is meant to be used.
            device, dtype: of the copy; None for the backbone's.
        """
        module = copy.deepcopy(self.module).to(device=device, dtype=dtype).requires_grad_(False)
        dropped = () if keep_classifier or self.classifier is None else (f"{self.classifier}.weight", f"{self.classifier}.bias")
        sites = {name: site for name, site in self.sites.items() if name not in dropped}
        preprocess = self.preprocess
        if isinstance(preprocess, nn.Module):
            preprocess = copy.deepcopy(preprocess).to(device=device, dtype=dtype)
        other = AttachedModel(module, sites, self.norm, preprocess, self.classifier, self._fixed_classifier, self.seed)
        wanted = self.trained_names if self.trained_names is not None else [
            name for name, p in self.module.named_parameters() if p.requires_grad and p.is_floating_point()
        ]
        other.trained_names = [name for name in wanted if name not in dropped]
        return other

    def view(self, sites: dict[str, Site] | None = None, norm: str | None = None) -> AttachedModel:
        """Another model on the same weights and buffers, with other updates or another normalisation."""
        return AttachedModel(
            self.module,
            self.sites if sites is None else sites,
            self.norm if norm is None else norm,
            self.preprocess,
            self.classifier,
            self._fixed_classifier,
            self.seed,
        )

    def trainable_weights(self) -> dict[str, Tensor]:
        """The backbone's parameters that an outer loop may train, by name, in a copy made by `copy`."""
        parameters = dict(self.module.named_parameters())
        return {name: parameters[name] for name in self.trained_names or []}

    def feature_size(self) -> int:
        """The number of features that the classifier reads; raises ValueError where there is no classifier."""
        if self.classifier is None:
            raise ValueError("the backbone has no classifier, so its number of features is unknown: MappingNet(size=...)")
        return int(self.module.get_submodule(self.classifier).in_features)  # type: ignore[arg-type]

    def groups(self, factors: Factors) -> dict[str, dict[str, Tensor]]:
        """Factors by parameter and local name; raises ValueError for names that are missing or unknown."""
        return inputs.group_factors(self.sites, factors)

    def _run(
        self,
        x: Any,
        factors: Factors,
        support: Any,
        weights: Factors | None,
        mask: Tensor | None,
        statistics: dict[str, tuple[Tensor, Tensor, Tensor]] | None,
        features: bool,
    ) -> Tensor:
        given, x = x, inputs.to_device(x, self)
        tasks, items = inputs.sizes(x)
        reference: int | None = None
        kept = slice(None)
        if self.norm == "support":
            if support is None:
                raise ValueError(
                    'norm="support" needs support=, the support set (on the support set itself: support=x)'
                )
            own, factors_of_support, support_mask = inputs.split_support(support, factors)
            own = x if own is given else inputs.to_device(own, self)
            reference = items
            mask = support_mask
            if own is not x:
                reference = inputs.sizes(own)[1]
                factors = inputs.join_factors(self.sites, factors_of_support, factors, reference, items)
                x = inputs.join(own, x)
                kept, items = slice(reference, None), reference + items
        elif support is not None:
            raise ValueError(
                f'norm="{self.norm}" takes no support=; attach(..., norm="support") normalises by it'
            )
        elif self.norm == "transductive":
            reference = items
        elif mask is not None:
            raise ValueError(f'mask= belongs to batch statistics; norm="{self.norm}" takes none')
        call = Call(tasks, items, self._updates(factors, tasks, items), reference, mask, features)
        if not self._checked:
            self._checked = True  # the check itself runs the model
            try:
                check.first_batch(self, x, call)
            except BaseException:
                self._checked = False
                raise
        output = self.execute(x, call, weights)
        if statistics is not None:
            statistics.update(call.statistics)
        return output.unflatten(0, (tasks, items))[:, kept]

    def execute(self, x: Any, call: Call, weights: Factors | None = None) -> Tensor:
        """Run the skeleton on an input whose leaves are `(T, B, ...)`; returns rows `(T*B, ...)`."""
        args, kwargs = inputs.flattened(x, call.rows)
        values = dict(weights or {})
        for name in self._loose:
            if name in call.updates:
                own = values.get(name, self.backbone.get_parameter(name))
                rows = (own + call.updates[name].delta(call.rows).flatten(0, 1)).repeat_interleave(
                    call.items, 0
                )
                values[name] = rows
                call.fired.add(name)
        if self._holder.call is not None:
            raise RuntimeError("an attached backbone cannot run inside itself")
        self._holder.call = call
        try:
            with inputs.exact_attention():
                if values:
                    output = torch.func.functional_call(self.backbone, values, args, kwargs)
                else:
                    output = self.backbone(*args, **kwargs)
        finally:
            self._holder.call = None
        return inputs.output_tensor(output, call.rows)

    def _updates(self, factors: Factors, tasks: int, items: int) -> dict[str, Update]:
        updates = {}
        for name, local in self.groups(factors).items():
            site = self.sites[name]
            updates[name] = inputs.update_of(site, local, tasks, items)
        return updates


def attach(
    backbone: nn.Module,
    format: Formats,
    targets: Targets = "all",
    norm: str = "running",
    preprocess: Preprocess | None = None,
    classifier: str | None = "auto",
    seed: int = 0,
) -> AttachedModel:
    """Give a backbone an update `W0 + Delta_t` for every task of a batch.

    Args:
        backbone: any module; it is not changed, and shares its parameters with the result.
        format: `Full()`, `LoRA()`, `CP()`, `TensorRing()`, or `{pattern: format}`, where the first pattern that
            matches wins; `{}` for no update.
        targets: `"all"`, `"head"`, `"body"`, a glob over parameter or module names, a module type, or a list.
        norm: where batch norm takes its statistics: `"running"` (the buffers), `"support"` (the task's support
            set), `"transductive"` (the task's batch at hand).
        preprocess: turns uint8 inputs into floats on the model's device; None: `x / 255`.
        classifier: `"auto"` (the last `Linear`), the name of a `Linear`, or None.
        seed: of the factors' random start.

    Raises:
        ValueError: what cannot be attached, by name and with the reason.

    Example:
        >>> import metapeft as mp
        >>> model = attach(torch.nn.Linear(3, 2), mp.LoRA(rank=1))
        >>> tuple(model(torch.zeros(4, 5, 3), model.factors()).shape)  # 4 tasks of 5 inputs
        (4, 5, 2)
    """
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r}: allowed are {', '.join(NORMS)}")
    refuse_backbone(backbone)
    found = find_classifier(backbone, classifier)
    sites, _ = find_sites(backbone, format, targets, found)
    words = [targets, *(format if isinstance(format, Mapping) else [])]
    fixed = classifier != "auto" or any(word in ("head", "body") for word in words)
    return AttachedModel(share(backbone), sites, norm, preprocess, found, fixed, seed)
