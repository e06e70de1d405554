"""The part of an attached backbone that runs: all tasks at once, on factors that it gives a start."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from metapeft.base.machine.room import refuse_bytes
from metapeft.updates import inputs
from metapeft.updates.formats.site import Site
from metapeft.updates.inputs import Output
from metapeft.updates.layers.call import Call, Holder
from metapeft.updates.layers.dropout import Dropping
from metapeft.updates.layers.per_task import Tracing, per_task
from metapeft.updates.layers.slots import Slots
from metapeft.updates.layers.twice import ONCE, Twice
from metapeft.updates.skeleton import build


class BatchedBackbone:
    """A backbone that runs on the rows of `T` tasks, each with its own update; inputs are taken as they come.

    Attributes:
        module: the user's own.
        backbone: its skeleton, which shares every parameter and buffer with it.
        sites: parameter name -> its format and geometry.
        users: parameter name -> the leaf modules that use it. loose: parameters with an update that no layer owns.
        slots: where the skeleton's tensors stand.
        parameters: the module's, by name, tied ones under each of theirs.
        classifier: name of the classifier layer, or None; `classifier_is_certain` where it was not guessed.
        dropout: whether it runs in train mode, with the masks that a run is given.
        output: takes the tensor from what the forward gives; None: `inputs.output_tensor`.
        given_start: factors that tasks start from in place of the formats' own start, or None.
    """

    def __init__(
        self,
        module: nn.Module,
        sites: dict[str, Site],
        classifier: str | None,
        classifier_is_certain: bool,
        seed: int,
        dropout: bool,
        output: Output | None = None,
        given_start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.given_start = None if given_start is None else dict(given_start)
        self.module, self.sites, self.seed, self.dropout = module, sites, seed, dropout
        self.classifier, self.classifier_is_certain = classifier, classifier_is_certain
        self.output = output
        self.holder = Holder(classifier)
        self.backbone, self.loose, self.users = build(module, sites, self.holder, dropout)
        self.slots = Slots(self.backbone)
        self.parameters: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))

    def factors(self) -> dict[str, Tensor]:
        """Where every task starts: `name -> (1, ...)`, a zero update, or the one that it was made with.

        Example:
            >>> import metapeft as mp
            >>> model = mp.attach(torch.nn.Linear(3, 2), mp.LoRA(rank=1))
            >>> {name: tuple(value.shape) for name, value in model.factors().items()}
            {'weight.A': (1, 1, 3), 'weight.B': (1, 2, 1)}

        Raises ValueError for ranks whose factors take more memory than is free.
        """
        shapes = [
            shape for site in self.sites.values() for shape in site.format.shapes(site.geometry).values()
        ]
        refuse_bytes(4 * sum(map(math.prod, shapes)), "the factors of updates of these ranks")
        start: dict[str, Tensor] = {}
        given = self.given_start or {}
        for name, site in self.sites.items():
            own = [f"{name}.{key}" for key in site.format.shapes(site.geometry)]
            if set(own) <= given.keys():
                start.update({key: given[key].detach().clone().to(self.parameters[name]) for key in own})
                continue
            # a generator a parameter: what else carries an update changes nothing here
            number = (self.seed * 1_000_003 + zlib.crc32(name.encode())) % 2**63
            generator = torch.Generator().manual_seed(number)
            for key, value in site.format.start(site.geometry, generator).items():
                start[f"{name}.{key}"] = value.to(self.parameters[name])
        return start

    def execute(self, x: Any, call: Call, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Run the skeleton once.

        Args:
            x: leaves `(T, B, ...)`.
            call: the run, which nothing else may be inside of.
            weights: parameters and buffers by name, in place of the module's own.

        Returns: the output's rows, `(T*B, ...)`.
        """
        if self.holder.call is not None:
            raise RuntimeError("an attached backbone cannot run inside itself")
        args, kwargs = inputs.flattened(x, call.rows)
        values = dict(weights or {})
        if self.holder.steps is not None and call.tracing is None:
            per_input = any(update.per_input for update in call.updates.values())
            call.tracing = Tracing(call.rows if per_input else call.tasks, call.rows, self.holder.steps)
        for name in self.loose:
            if call.tracing is not None and call.tracing.learning:
                own = values.get(name, self.parameters[name]).unsqueeze(0)
                values[name] = per_task(own, call.tracing, (-1, self.loose.index(name)))
            elif name in call.updates:
                own = values.get(name, self.parameters[name]) + call.updates[name].delta(call.rows)
                values[name] = self._of_tasks(own, call)
        self.holder.call, self.holder.running = call, []
        learning = call.shapes is not None
        twice = Twice(self.holder.once) if learning or self.holder.once else nullcontext()
        try:
            with inputs.exact_attention(), Dropping(self.holder) if self.dropout else nullcontext(), twice:
                if values:
                    given = self.slots.filled(values)
                    output = torch.func.functional_call(self.backbone, given, args, kwargs, tie_weights=False)
                else:
                    output = self.backbone(*args, **kwargs)
        finally:
            self.holder.call = None
            self.forget()
        return self.output_rows(output, call.rows)

    def output_rows(self, output: Any, rows: int) -> Tensor:
        """The tensor `(rows, ...)` of what the backbone's forward gives; see `inputs.output_tensor`."""
        return inputs.output_tensor(output, rows, self.output)

    def differentiated_once(self) -> list[str]:
        """The modules that call functions without a second derivative, as the first batch showed."""
        names = {id(module): name for name, module in self.backbone.named_modules()}
        return [
            f"{names.get(id(module)) or 'the backbone'} calls {function}"
            for function, module in self.holder.once.items()
            if function in ONCE
        ]

    def forget(self, module: nn.Module | None = None) -> None:
        """Put back what modules would keep for the next forward; `module`: of a copy of the backbone."""
        if self.holder.kept:
            modules = dict((module or self.backbone).named_modules())
            for kept in self.holder.kept:
                kept.put_back(modules)

    def _of_tasks(self, own: Tensor, call: Call) -> Tensor:
        """A loose parameter `(T, ...)` as the forward reads it; one with a first axis of 1 gets one row an input."""
        if call.tracing is None:
            return own.flatten(0, 1).repeat_interleave(call.items, 0)
        return per_task(own.repeat_interleave(call.tracing.parts // own.shape[0], 0), call.tracing)

    @property
    def rows_suffice(self) -> bool:
        """Whether rows of the batch are enough for what no layer owns: it has a first axis of 1."""
        return all(
            self.sites[name].format.dense and self.parameters[name].shape[:1] == (1,) for name in self.loose
        )

    def forget_classifier(self) -> None:
        """The first batch showed that the guessed classifier does not make the backbone's output.

        Raises:
            ValueError: it was not guessed, but named.
        """
        if self.classifier_is_certain:
            raise ValueError(
                f"{self.classifier!r} does not make the backbone's output: name it with classifier=, "
                "or say classifier=None where the backbone has none"
            )
        self.classifier = self.holder.classifier = None
