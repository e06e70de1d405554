"""Who moves what: a backbone with its updates, and which of its tensors belong to which loop."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft import generators as generator_folder
from metapeft import heads as head_folder
from metapeft.adapted import Adapted
from metapeft.episodes.episode import EpisodeBatch
from metapeft.generators.generator import Generator
from metapeft.heads.head import Head
from metapeft.hypergradients.problem import Problem, Result, resolve
from metapeft.inner.loop import solve
from metapeft.inner.fixed_point import as_solver
from metapeft.inner.solver import Solver
from metapeft.objectives import DERIVED, HEAD, Items, Objectives
from metapeft.updates import registry as update_registry
from metapeft.updates.attached import AttachedModel
from metapeft.updates.copying import copied, feature_size, viewed
from metapeft.updates.inputs import mapped

GROUPS = ("weights", "factors", "generator", "selection", "rates", "head")
MISSING = {
    "weights": "every parameter of the backbone is frozen (requires_grad=False)",
    "factors": "attach() gave no update",
    "generator": "generator= is missing",
    "selection": "selection= is missing, or no format has terms to select",
    "rates": 'the inner solver has no learnable rates: mp.inner.SGD(..., rates="step")',
    "head": "the head learns nothing of its own (ridge does)",
}
Tensors = Mapping[str, Tensor]


class Learner:
    """A bilevel method: one choice of what is frozen, outer, inner and generated.

    Everything that is trained is copied from `model` at construction, so several learners can start from one.

    Args:
        model: what `attach` returned.
        inner: the inner solver, `mp.inner.SGD(steps=5, lr=0.1)`; None for none.
        adapt: `"all"`, or globs over factor names that the inner solver moves (`"*.seed"`); an inner head always is.
        hypergradient: name of an engine, an engine, or a function `Problem -> Result`; without inner solver `"direct"`.
        outer: the groups that the outer loop trains: `"weights"` (W0 and the learned head), `"factors"` (the
            starts), `"generator"`, `"selection"`, `"rates"`, `"head"` (what a head itself learns).
        head: `"learned"` (the backbone's own classifier), `"zero"`, `"prototype-init"`, `"prototypes"`, `"ridge"`,
            `"knn"`, or a head of your own.
        generator: None, `mp.generators.MappingNet(...)` or a generator of your own.
        selection: None, `"softmax"` or a selection of your own.
        inner_data: `"support"`, or `"both"`: the mean over all items on both levels, in training.
        loss: `loss(outputs (rows, ...), targets (rows, ...), reduction="none")`, one value a row.
        test_steps: inner steps outside training; None for those of `inner`.
        device, dtype: of the learner's copies; None for the backbone's.
        seed: of the generator's random start.
        name: what tables call it.

    Raises:
        ValueError: groups that do not exist here or that the engine cannot reach, patterns that match nothing,
            options without effect.

    Example:
        >>> import metapeft as mp
        >>> model = mp.attach(mp.backbones.mlp(4, 3, hidden=(8,)), mp.LoRA(rank=2))
        >>> learner = Learner(model, inner=mp.inner.SGD(steps=3, lr=0.1), outer=("weights", "factors"), head="zero")
        >>> sorted(learner.trained)[:2]
        ['factors.layer1.weight.A', 'factors.layer1.weight.B']
    """

    def __init__(
        self,
        model: AttachedModel,
        inner: Solver | Callable[..., Any] | None = None,
        adapt: str | Sequence[str] = "all",
        hypergradient: Any = None,
        outer: Sequence[str] = ("weights",),
        head: str | Head = "learned",
        generator: str | Generator | None = None,
        selection: Any = None,
        inner_data: str = "support",
        loss: Callable[..., Tensor] = F.cross_entropy,
        test_steps: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        seed: int = 0,
        name: str = "learner",
    ) -> None:
        self.name = name
        self.outer = checked_groups(outer)
        self.head_name = head if isinstance(head, str) else type(head).__name__
        self.head: Head = head_folder.registry.resolve(head)() if isinstance(head, str) else head
        self.generator: Generator | None = (
            generator_folder.registry.resolve(generator)() if isinstance(generator, str) else generator
        )
        self.selection = update_registry.resolve(selection)() if isinstance(selection, str) else selection
        if inner_data not in ("support", "both"):
            raise ValueError(f"inner_data={inner_data!r}: allowed are 'support' and 'both'")
        self.inner_data, self.loss = inner_data, loss
        self.inner: Solver | None = inner if inner is None or isinstance(inner, Solver) else as_solver(inner)
        self.test_steps = test_steps
        self.model, self.trainable = copied(model, self.head_name == "learned", device, dtype)
        self.body = viewed(self.model, sites={})
        self.batch_model = viewed(self.model, norm="transductive")
        self.adapt_patterns = adapt
        self._name_variables(seed)
        self.method = ("direct" if self.inner is None else "unroll") if hypergradient is None else hypergradient
        if self.inner is None and self.method != "direct":
            raise ValueError(f'hypergradient={self.method!r} without an inner solver: it is "direct", or inner= is missing')
        self.engine = resolve(self.method)
        self._check()

    # --- variables -----------------------------------------------------------------------------------------

    def _name_variables(self, seed: int) -> None:
        """Collect every tensor under its group's name; `trained` are those of the outer groups."""
        starts = self.model.factors()
        self.factor_names = list(starts)
        self.seeds = {
            f"{p}.{site.format.seed}": tuple(starts[f"{p}.{site.format.seed}"].shape[1:])
            for p, site in self.model.sites.items()
            if site.format.seed is not None and starts[f"{p}.{site.format.seed}"].numel()
        }
        like = next(self.model.backbone.parameters())
        groups: dict[str, dict[str, Tensor]] = {
            "weights": {name: self.model.parameters[name] for name in self.trainable}, "factors": starts, "generator": {}, "selection": {}, "rates": {},
            "head": dict(self.head.learned()),
        }  # fmt: skip
        self.adapted = self._adapted_names()
        if self.generator is not None:
            size = self.generator.size or feature_size(self.model)
            groups["generator"] = self.generator.start(self.seeds, size, torch.Generator().manual_seed(seed))
        self.generator_names = list(groups["generator"])
        if self.selection is not None:
            groups["selection"] = self.selection.start(self.model.sites)
        self.selected = list(groups["selection"])
        if self.inner is not None:
            moved = {name: starts[name] for name in self.adapted}
            if self.head.inner:
                moved.update({name: torch.zeros(1, 1) for name in HEAD})
            groups["rates"] = {name.removeprefix("rates."): v for name, v in self.inner.rates(moved).items()}
        self.variables: dict[str, Tensor] = {}
        for group, values in groups.items():
            for name, value in values.items():
                own = value if group == "weights" else value.detach().to(like).clone()
                self.variables[f"{group}.{name}"] = own.requires_grad_(False)
        for group in self.outer:
            if not groups[group]:
                raise ValueError(f'outer has "{group}", but this learner has none: {MISSING[group]}')
        self.trained = {n: v for n, v in self.variables.items() if n.partition(".")[0] in self.outer}

    def _adapted_names(self) -> list[str]:
        if self.inner is None:
            return []
        if self.adapt_patterns == "all":
            return self.factor_names
        patterns = [self.adapt_patterns] if isinstance(self.adapt_patterns, str) else list(self.adapt_patterns)
        for pattern in patterns:
            if not fnmatch.filter(self.factor_names, pattern):
                raise ValueError(f"adapt={pattern!r} matches no factor: there are {', '.join(self.factor_names[:6])}, ...")
        return [n for n in self.factor_names if any(fnmatch.fnmatchcase(n, p) for p in patterns)]

    def _check(self) -> None:
        if self.inner is not None and not self.adapted and not self.head.inner:
            raise ValueError('inner= has nothing to move: no factor is adapted and the head is not an inner one')
        if not self.head.differentiable and self.outer:
            raise ValueError(f'head="{self.head_name}" is for evaluation only: train with another, outer=() here')
        if self.generator is not None:
            if not self.seeds:
                raise ValueError("generator= has no seed to write: use a format with one, CP or TensorRing")
            clash = [n for n in self.adapted if n in self.seeds] if self.generator.per == "input" else []
            if clash:
                raise ValueError(
                    f"{clash[0]} is generated per input, the inner solver cannot move it: adapt=[\"*.A\", \"*.B\"]"
                )
        lost = getattr(self.engine, "unreachable", lambda solver: {})(self.inner)
        reached_through_starts = [g for g in ("factors", "generator") if g in self.outer and self._only_starts(g)]
        for group, names in (("starts", reached_through_starts), ("rates", [g for g in ("rates",) if g in self.outer])):
            if group in lost and names:
                raise ValueError(f'outer has "{names[0]}", which hypergradient={self.method!r} cannot reach: {lost[group]}')
        self._starts_lost = "starts" in lost
        generated = [f"factors.{name}" for name in self.seeds] if self.generator is not None else []
        self._only_derived = {n for n in self.trained if n in generated or n.startswith("generator.")}

    def _only_starts(self, group: str) -> bool:
        names = self.factor_names if group == "factors" else list(self.seeds)
        return any(name in self.adapted for name in names)

    @property
    def trains_on_batch_statistics(self) -> bool:
        """Without inner loop, weights are trained on batch statistics, as ordinary training does."""
        return self.inner is None and "weights" in self.outer and self.model.norm == "running"

    def value(self, u: Tensors, name: str) -> Tensor:
        """An outer variable from `u`, or its fixed value."""
        found = u.get(name)
        return self.variables[name] if found is None else found

    def weights(self, u: Tensors) -> dict[str, Tensor] | None:
        """The backbone's parameters as they stand in `u`; None where they are not trained."""
        found = {n.removeprefix("weights."): v for n, v in u.items() if n.startswith("weights.")}
        return found or None

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the learner, buffers of the backbone included, as copies."""
        buffers = {f"buffers.{name}": value for name, value in self.model.backbone.named_buffers()}
        return {name: value.detach().clone() for name, value in {**self.variables, **buffers}.items()}

    @torch.no_grad()
    def load_state(self, state: Tensors) -> None:
        """Take over the tensors of another learner, or of a checkpoint; those that both have must agree in shape.

        Raises:
            ValueError: no name in common, or shapes that differ; nothing is changed then.
        """
        own = {**self.variables, **{f"buffers.{n}": b for n, b in self.model.backbone.named_buffers()}}
        common = [name for name in own if name in state]
        if not common:
            raise ValueError("state has no tensor of this learner: it belongs to another backbone")
        for name in common:
            if own[name].shape != state[name].shape:
                raise ValueError(f"state has {name} of shape {tuple(state[name].shape)}, the learner {tuple(own[name].shape)}")
        for name in common:
            own[name].copy_(state[name])

    def settings(self) -> dict[str, Any]:
        """What identifies this learner in a run folder, as JSON can say it."""
        return {
            "method": self.name,
            "formats": {name: repr(site.format) for name, site in self.model.sites.items()},
            "norm": self.model.norm,
            "inner": None if self.inner is None else repr(self.inner),
            "adapt": self.adapted,
            "hypergradient": self.method if isinstance(self.method, str) else repr(self.method),
            "outer": list(self.outer),
            "head": self.head_name if isinstance(self.head_name, str) else repr(self.head),
            "generator": None if self.generator is None else repr(self.generator),
            "selection": None if self.selection is None else repr(self.selection),
            "inner_data": self.inner_data,
            "loss": getattr(self.loss, "__name__", type(self.loss).__name__),
            "test_steps": self.test_steps,
            "shapes": {name: list(value.shape) for name, value in self.variables.items()},
        }

    # --- the two loops -------------------------------------------------------------------------------------

    def objectives(self, batch: EpisodeBatch, training: bool) -> Objectives:
        """The two objectives on a batch, its inputs on the learner's device and turned into floats once."""
        return self._objectives(
            Items(batch.support_x, batch.support_y, batch.support_mask),
            Items(batch.query_x, batch.query_y, batch.query_mask),
            batch.ways,
            training,
        )

    def _objectives(self, support: Items, query: Items | None, ways: int, training: bool) -> Objectives:
        return Objectives(self, self.prepared(support), None if query is None else self.prepared(query), ways, training)

    def prepared(self, items: Items) -> Items:
        """Items on the learner's device, uint8 images turned into floats."""
        like = next(self.model.backbone.parameters())
        y = None if items.y is None else items.y.to(like) if items.y.is_floating_point() else items.y.to(like.device)
        mask = None if items.mask is None else items.mask.to(like.device)
        return Items(self.model.prepared(items.x), y, mask)

    def hypergradient(self, batch: EpisodeBatch, w0: Tensors | None = None) -> Result:
        """The outer value of a batch and its gradient for everything that is trained; changes nothing.

        Args:
            batch: T episodes.
            w0: a start of the inner variables other than the learner's own (warm start), `(T, ...)`.

        Returns: a `Result`; `.grads` has the keys of `self.trained`, means over tasks; `.log["accuracy"]` `(T,)`
            where there are classes, `.log["statistics"]` the batch statistics that the forward took.

        Raises:
            ValueError: an outer variable that no loss reaches.
            NumericalError: an objective or a gradient that is not finite.
        """
        if not self.trained:
            raise ValueError("outer=() trains nothing, so there is no hypergradient")
        objectives = self.objectives(batch, training=True)
        outer_u = {name: value.detach().requires_grad_() for name, value in self.trained.items()}
        with torch.enable_grad():
            derived = objectives.derive(outer_u)
        starts = {f"seed.{name}" for name in self.adapted} | set(HEAD)
        lost = starts if self._starts_lost or w0 is not None else set()
        tied = {name: value for name, value in derived.items() if value.requires_grad and name not in lost}
        constant = {name: value.detach() for name, value in derived.items() if name not in tied}
        direct = {name: value for name, value in outer_u.items() if name not in self._only_derived}
        u = {**direct, **{DERIVED + name: value for name, value in tied.items()}}

        def read(u: Tensors) -> dict[str, Tensor]:
            return {**constant, **{name: u[DERIVED + name] for name in tied}}

        def start(u: Tensors) -> dict[str, Tensor]:
            return dict(w0) if w0 is not None else objectives.start(u, read(u))

        problem = Problem(
            outer=lambda u, w: objectives.outer(u, w, read(u)),
            inner=None if self.inner is None else lambda u, w: objectives.inner(u, w, read(u)),
            u=u,
            w0=start,
            solver=self.inner,
            method=self.method,
            task_axis=True,
            has_aux=True,
        )
        found = self.engine(problem)
        grads = self._pulled_back(found.grads, tied, outer_u)
        log = {**found.log, **{k: v for k, v in found.aux.items() if k != "logits"}, "statistics": objectives.statistics}
        return Result(found.value, grads, found.w, found.residual, log, found.aux)

    def _pulled_back(
        self, grads: Tensors, tied: dict[str, Tensor], outer_u: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Gradients of the outer variables, with those of the derived entries pulled back to them once."""
        pulled: dict[str, Tensor | None] = dict.fromkeys(outer_u)
        if tied:
            upper = [grads[DERIVED + name] for name in tied]
            found = torch.autograd.grad(list(tied.values()), list(outer_u.values()), upper, allow_unused=True)
            pulled = dict(zip(outer_u, found))
        total: dict[str, Tensor] = {}
        for name in outer_u:
            parts = [part for part in (grads.get(name), pulled[name]) if part is not None]
            if not parts:
                raise ValueError(f"no loss reaches the outer variable {name!r} in this learner: take its group out of outer")
            total[name] = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return total

    def test_solver(self, steps: int | None = None) -> Solver | None:
        """The inner solver as it is used outside training."""
        wanted = self.test_steps if steps is None else steps
        if self.inner is None and wanted is not None:
            raise ValueError(f"steps={wanted}: this learner has no inner solver")
        return self.inner if self.inner is None or wanted is None else self.inner.with_steps(wanted)

    def solve(self, objectives: Objectives, steps: int | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Adapt to the support sets: the inner variables and what was derived from the batch, without graphs."""
        with torch.no_grad():
            derived = objectives.derive({})
        solver = self.test_solver(steps)
        if solver is None:
            return {}, derived
        u = {name: value for name, value in self.variables.items() if name.startswith("rates.")}
        w = solve(
            lambda _, w: objectives.inner({}, w, derived), u, lambda _: objectives.start({}, derived), solver, task_axis=True
        )
        return w, derived

    def adapt_many(
        self, support_x: Any, support_y: Tensor, steps: int | None = None, mask: Tensor | None = None, ways: int | None = None
    ) -> Adapted:
        """Adapt to T tasks at once.

        Args:
            support_x: leaves `(T, S, ...)`. support_y: `(T, S)`, or `(T, S, out)` for regression.
            steps: inner steps; None for the learner's. mask: `(T, S)`. ways: N; None for the largest label + 1.

        Returns: an `Adapted`: `many(x)` maps `(T, B, ...)` to logits `(T, B, N)` in one forward.
        """
        if ways is None:
            ways = 1 if support_y.is_floating_point() else int(support_y.max()) + 1
        objectives = self._objectives(Items(support_x, support_y, mask), None, ways, training=False)
        w, derived = self.solve(objectives, steps)
        return Adapted(self, objectives, w, derived)

    def adapt(self, support_x: Any, support_y: Tensor, steps: int | None = None, ways: int | None = None) -> Adapted:
        """Adapt to one task: `support_x` leaves `(S, ...)`, `support_y` `(S,)`; `adapted(x)` maps `(B, ...)` to `(B, N)`."""
        many = self.adapt_many(mapped(support_x, lambda x: x.unsqueeze(0)), support_y.unsqueeze(0), steps, ways=ways)
        return many.task(0)


def checked_groups(outer: Sequence[str]) -> tuple[str, ...]:
    """The outer groups, each known and named once; raises ValueError otherwise."""
    names = (outer,) if isinstance(outer, str) else tuple(outer)
    for name in names:
        if name not in GROUPS:
            near = difflib.get_close_matches(str(name), GROUPS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"outer={name!r}: the groups are {', '.join(GROUPS)}{hint}")
    if len(set(names)) != len(names):
        raise ValueError(f"outer={names!r} names a group twice")
    return names
