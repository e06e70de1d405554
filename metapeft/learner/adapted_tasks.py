"""A learner's answer to support sets: adapted tasks that predict, merge and export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metapeft.base.trees import mapped
from metapeft.heads.head import Head
from metapeft.learner.backbone_pass import BackbonePass
from metapeft.learner.items import Items, Parts
from metapeft.learner.objectives import Objectives
from metapeft.updates.factors import updates_of
from metapeft.updates.inputs import sizes


class Predictions(NamedTuple):
    """Names of the most probable classes `[B]`, and the probabilities of all `(B, N)`."""

    names: list[str]
    probabilities: Tensor


class Adapted:
    """Tasks that a learner has adapted to; made by `Learner.adapt` and `Learner.adapt_many`.

    It reads the learner's weights, and so is valid until the learner is trained on.

    Attributes:
        factors: name -> `(T or 1, ...)`, selection applied (seeds per input are not in it).
        head: the head's tensors `(T, ...)`; empty for the backbone's own classifier.
        classes: names of the labels, where `adapt(classes=)` said them.
    """

    classes: tuple[str, ...] | None = None

    def __init__(
        self,
        objectives: Objectives,
        w: dict[str, Tensor],
        derived: dict[str, Tensor],
        alone: bool = False,
    ) -> None:
        self.learner, self.objectives, self.alone = objectives.roles, objectives, alone
        # layers that were kept are of the support set, and not read again
        self.derived = {name: value for name, value in derived.items() if not name.startswith("kept.")}
        with torch.no_grad():
            self.factors = objectives.factors(w, derived)
            self.head = objectives.head(w, derived)
        # a head in closed form is computed once, here
        self.w = {**w, **self.head}

    @property
    def tasks(self) -> int:
        """T."""
        return self.objectives.passes.tasks

    def __repr__(self) -> str:
        numbers = sum(value[0].numel() for value in (*self.factors.values(), *self.head.values()))
        what = "one task" if self.alone else f"{self.tasks} tasks"
        return f"Adapted({what} of {self.objectives.passes.ways} ways by {self.learner.name}, {numbers:,} numbers each)"

    @torch.no_grad()
    def __call__(self, x: Any) -> Tensor:
        """Logits `(T, B, N)` of inputs with leaves `(T, B, ...)`; one task: `(B, N)` of `(B, ...)`."""
        given = mapped(x, lambda value: value.unsqueeze(0)) if self.alone else x
        query = self.learner.prepared(Items(given, None))
        if (given_tasks := sizes(query.x)[0]) != self.tasks:
            raise ValueError(
                f"x holds {given_tasks} task(s), this was adapted to {self.tasks}: leaves are (T, B, ...), "
                "those of .task(i) (B, ...)"
            )
        logits = self.objectives.for_query(query).predict(self.w, self.derived)
        return logits[0] if self.alone else logits

    @property
    def ways(self) -> int:
        """N."""
        return self.objectives.passes.ways

    def predict(self, x: Any) -> Predictions:
        """What each input of one task probably is: names of classes, and the probability of every class.

        Args:
            x: leaves `(B, ...)`, such as what `mp.read_images(paths, like=learner)` gives.

        Raises:
            ValueError: several tasks (take `.task(i)`), a regression, which has no classes.

        Example:
            >>> import metapeft as mp
            >>> learner = mp.methods.centroids(mp.backbones.mlp(2, 2, hidden=(4,)))
            >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
            >>> learner.adapt(x, torch.tensor([0, 1]), classes=["cat", "dog"]).predict(x).names
            ['cat', 'dog']
        """
        if not self.alone:
            raise ValueError(
                "predict() is about one task: take one of them first, adapted.task(0).predict(...)"
            )
        if self.objectives.passes.parts.support.regression:
            raise ValueError("predict() names classes, and this is a regression: adapted(x) has its numbers")
        probabilities = self(x).softmax(-1)
        names = self.classes or tuple(map(str, range(probabilities.shape[-1])))
        return Predictions([names[place] for place in probabilities.argmax(-1).tolist()], probabilities)

    def task(self, index: int) -> Adapted:
        """One of the tasks, 0 .. T - 1, on its own; ValueError for a number that none has."""
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < self.tasks:
            raise ValueError(f"index={index!r}: there are tasks 0 to {self.tasks - 1}")
        one = slice(index, index + 1)

        def pick(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value if value.shape[0] == 1 else value[one] for name, value in values.items()}

        passes = self.objectives.passes
        support = passes.parts.support
        items = Items(
            mapped(support.x, lambda value: value[one]),
            None if support.y is None else support.y[one],
            None if support.mask is None else support.mask[one],
            support.kinds,
        )
        one_task = BackbonePass(self.learner, Parts(items), passes.ways, training=False)
        return Adapted(Objectives(one_task), pick(self.w), pick(self.derived), alone=True)

    def merged(self) -> nn.Module:
        """This one task as a plain `nn.Module` in eval mode, `W0 + Delta` and the head inside.

        Raises:
            ValueError: several tasks (take `.task(i)`), seeds per input, and what `model.merged` refuses.
        """
        self._check_one_update("merged()")
        model, support = self.learner.model, self.objectives.passes.parts.support
        if model.norm == "support":
            mask = None if support.mask is None else support.mask[0]
            plain = model.merged(self.single_factors(), mapped(support.x, lambda value: value[0]), mask=mask)
        else:
            plain = model.merged(self.single_factors())
        if self.head:
            constant = self.learner.head_constants()
            plain = with_head(plain, model.classifier, self.learner.head, {**constant, **self.head})
        return plain

    def single_factors(self) -> dict[str, Tensor]:
        """This one task's factors, without the task axis."""
        self._check_one_update("single_factors()")
        return {name: value[0] for name, value in self.factors.items()}

    @torch.no_grad()
    def updates(self) -> dict[str, Tensor]:
        """This one task's updates, parameter -> Delta in the shape of its weight; `mp.ranks(updates=)` takes them."""
        model = self.learner.model
        own = {name: value.unsqueeze(0) for name, value in self.single_factors().items()}
        made = updates_of(model.sites, own, model.parameters, 1, 1)
        return {name: update.delta(1)[0] for name, update in made.items()}

    def export_peft(self, folder: str | Path) -> None:
        """Write an adapter folder that PEFT loads, with a README that says how; see `mp.export_peft`."""
        from metapeft.updates.peft_export import export_peft

        self._check_one_update("export_peft()")
        if self.head and not self.learner.head.linear:
            raise ValueError(
                f'PEFT keeps a head as a Linear, which "{self.learner.head_label}" is not: adapted.merged() has it'
            )
        learner, own = self.learner, self.learner.source
        like = {**own.parameters, **dict(own.module.named_buffers())}
        module = learner.model.module
        state = {**learner.model.parameters, **dict(module.named_buffers())}
        weights = {name: value.detach().to(like[name]) for name, value in state.items()}
        head = {name: value[0] for name, value in self.head.items()} or None
        export_peft(
            own, self.single_factors(), folder, weights=weights, head=head, classes=self.classes,
            image=learner.image_shape,
        )  # fmt: skip

    def _check_one_update(self, what: str) -> None:
        if self.learner.per_input:
            raise ValueError(
                f'{what} wants one update, but this learner generates a seed for each input: use per="task"'
            )
        if not self.alone:
            raise ValueError(f"{what} is about one task: take one of them first, adapted.task(0).{what}")


def checked_names(classes: Sequence[str] | None, ways: int) -> tuple[str, ...] | None:
    """Names of the labels; raises ValueError where they are not as many different ones as there are classes.

    Example:
        >>> checked_names(["cat"], 2)
        Traceback (most recent call last):
        ValueError: classes=['cat'] are 1 different names, and there are 2 classes: one for each label
    """
    if classes is None:
        return None
    if isinstance(classes, str) or len(set(classes)) != ways or len(list(classes)) != ways:
        raise ValueError(
            f"classes={classes!r} are {len(set(classes))} different names, and there are {ways} classes: one for "
            "each label"
        )
    return tuple(str(name) for name in classes)


class HeadLayer(nn.Module):
    """One task's head as a module: logits `(B, N)` of features `(B, F)`, for heads that are not linear in them.

    Args:
        head: says how. tensors: of the task, `(1, ...)`.
    """

    def __init__(self, head: Head, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.head, self.names = head, list(tensors)
        for i, value in enumerate(tensors.values()):
            self.register_buffer(f"tensor{i}", value.detach().clone())

    def forward(self, features: Tensor) -> Tensor:
        tensors = {name: self.get_buffer(f"tensor{i}") for i, name in enumerate(self.names)}
        return self.head.logits(features.unsqueeze(0), tensors)[0]


def with_head(plain: nn.Module, classifier: str | None, head: Head, tensors: dict[str, Tensor]) -> nn.Module:
    """Put one task's head, tensors `(1, ...)`, in the place of the classifier, or behind the backbone."""
    if "head.weight" not in tensors:
        raise ValueError("a nearest-neighbour head cannot be merged into a module")
    layer: nn.Module
    if head.linear:
        weight, bias = tensors["head.weight"][0], tensors["head.bias"][0]
        layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    else:
        layer = HeadLayer(head, tensors)
    if classifier is None:
        return nn.Sequential(plain, layer).eval()
    owner, _, name = classifier.rpartition(".")
    setattr(plain.get_submodule(owner), name, layer)
    return plain.eval()
