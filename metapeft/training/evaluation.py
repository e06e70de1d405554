"""Evaluate a learner on episodes that were drawn for it, and compare two on the same ones."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metapeft.base.arguments import whole
from metapeft.base.errors import NotFiniteInput, NumericalError
from metapeft.base.intervals import mean_interval
from metapeft.base.machine.memory import while_it_fits
from metapeft.base.machine.precision import precision_name
from metapeft.episodes.episode import EpisodeBatch
from metapeft.episodes.protocol import Protocol
from metapeft.inner.warm_start import WarmStart, as_warm_start
from metapeft.learner.adaptation import adapted, solver_outside_training
from metapeft.learner.learner import Learner
from metapeft.learner.losses import correct
from metapeft.training.fingerprints import fingerprints

Shown = Literal["another kind", "same kind"]


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        values: `(episodes,)`: accuracies in [0, 1]; for regression, losses.
        ci95: half-width of the 95 % t-interval of their mean.
        losses: `(episodes,)`: the mean query loss of each episode.
        protocol: what was measured on what.
        accuracy: mean accuracy in [0, 1]; regression has none, and asking for it is an AttributeError.
        fingerprints: for each episode the CRC-32 of its images and labels, by which `compare` tells whether two were
            measured on the same; empty where that is not known.
        diverged: episodes in which adaptation diverged; their loss is not finite, their accuracy 0.
    """

    values: Tensor
    ci95: float
    losses: Tensor
    protocol: Protocol | None
    has_accuracy: bool = True
    fingerprints: tuple[int, ...] = ()

    @property
    def loss(self) -> float:
        return float(self.losses.double().mean())

    @property
    def diverged(self) -> int:
        return int((~self.losses.isfinite()).sum())

    @property
    def accuracy(self) -> float:
        if not self.has_accuracy:
            raise AttributeError("a regression has no accuracy: read .loss")
        return float(self.values.double().mean())

    def __str__(self) -> str:
        shown = (
            f"{100 * self.accuracy:.2f} +- {100 * self.ci95:.2f} %"
            if self.has_accuracy
            else f"{self.loss:.4g} +- {self.ci95:.2g}"
        )
        shown += f", {self.diverged} diverged" if self.diverged else ""
        return shown if self.protocol is None else f"{shown} ({self.protocol})"

    def __repr__(self) -> str:
        return f"Evaluation({self})"


@dataclass(frozen=True, repr=False)
class Comparison:
    """`difference = mean(a - b)` over the same episodes, with the half-width of its 95 % t-interval."""

    difference: float
    ci95: float
    protocol: Protocol | None

    def __str__(self) -> str:
        return f"{self.difference:+.4f} +- {self.ci95:.4f}"

    def __repr__(self) -> str:
        return f"Comparison({self})"


def evaluate(
    learner: Learner,
    sampler: Any,
    episodes: int = 600,
    steps: int | None = None,
    tasks_per_batch: int = 8,
    diverged: str = "raise",
    shown: Shown | None = None,
    w0: Mapping[str, Tensor] | None = None,
) -> Evaluation:
    """Adapt to each episode's support set and score its query set.

    Args:
        learner: its weights are not changed.
        sampler: anything with `.batch(start, count)`; an `EpisodeSampler` also gives the protocol.
        episodes: how many, from number 0 on.
        steps: inner steps; None for the learner's.
        tasks_per_batch: episodes in one forward; changes no result under `norm="running"` or `"support"`. Where memory
            is too little it is halved, and that is said.
        diverged: `"raise"`, or `"wrong"`: an episode in which adaptation diverges counts with accuracy 0.
        shown: a control: the generator is shown the support set of another episode, `"another kind"` or `"same kind"`,
            which the sampler finds for each by itself (`sampler.partners`); None for the own.
        w0: inner variables `(T, ...)` to start from, such as `trainer.inner`, episode i from task `i % T` of them;
            None for the learner's own starts.

    Raises:
        ValueError: fewer than 1 episode; no learner; a data set in place of a sampler; `"wrong"` in regression.
        NotFiniteInput: NaN or infinity in an episode. NumericalError: an adaptation that diverges.
        MemoryError: too little for one episode.

    Example:
        >>> import metapeft as mp
        >>> data = mp.load_dataset("sinusoid")
        >>> body = mp.backbones.mlp(1, 1, hidden=(8,))
        >>> learner = mp.Learner(mp.attach(body, mp.Full()), mp.inner.SGD(1, 0.01), loss=torch.nn.functional.mse_loss)
        >>> result = evaluate(learner, mp.EpisodeSampler(data, ways=1, shots=5, queries=5), episodes=4)
        >>> result.values.shape
        torch.Size([4])
    """
    whole(episodes=episodes, tasks_per_batch=tasks_per_batch)
    if diverged not in ("raise", "wrong"):
        raise ValueError(f"diverged={diverged!r}: allowed are 'raise' and 'wrong'")
    if shown not in (None, *get_args(Shown)):
        raise ValueError(f"shown={shown!r}: allowed are None, 'another kind' and 'same kind'")
    if shown is not None and not hasattr(sampler, "partners"):
        raise ValueError(
            f"shown={shown!r} wants a sampler that knows the kinds of its tasks, and {type(sampler).__name__} does not"
        )
    if not hasattr(learner, "objectives"):
        raise ValueError(f"learner is of type {type(learner).__name__}: an mp.Learner is needed")
    there = getattr(sampler, "episodes", None)
    if isinstance(there, int) and there < episodes:
        raise ValueError(f"episodes={episodes}: the sampler has {there}, by its own episodes=")
    if not hasattr(sampler, "batch"):
        raise ValueError(
            f"sampler is a {type(sampler).__name__} without .batch(start, count): wrap a data set in mp.EpisodeSampler"
        )
    kept = None if w0 is None else as_warm_start(w0)
    return while_it_fits(
        lambda tasks: evaluated(learner, sampler, episodes, steps, tasks, diverged, shown=shown, w0=kept),
        min(tasks_per_batch, episodes), device_of(learner), "episodes",
    )  # fmt: skip


def evaluated(
    learner: Learner,
    sampler: Any,
    episodes: int,
    steps: int | None = None,
    tasks_per_batch: int = 8,
    diverged: str = "raise",
    first: int = 0,
    shown: Shown | None = None,
    w0: WarmStart | None = None,
) -> Evaluation:
    """`evaluate` without checks of its arguments, and without a smaller forward where memory is too little.

    Args:
        diverged: also `"count"`: as `"wrong"`, and in regression such losses stand beside the others.
        first: the number of the first episode: a process that shares a validation with others takes a part of it.
    """
    hits: list[Tensor] = []
    losses: list[Tensor] = []
    seen: list[int] = []
    batches = -(-episodes // tasks_per_batch)
    # of equal sizes but for one: a control that takes what is another task's meets no batch of one
    starts = [first + number * episodes // batches for number in range(batches + 1)]
    for start, end in itertools.pairwise(starts):
        batch, other = sampler.batch(start, end - start), None
        if shown is not None:
            other = sampler.at(sampler.partners(torch.arange(start, end), same_kind=shown == "same kind"))
        try:
            own = None if w0 is None else w0.for_tasks(end - start, start)
            loss, right = _scored(learner, batch, steps, diverged, other, own)
        except NotFiniteInput as error:
            raise error.of_episode(start + error.task) from None
        losses.append(loss)
        seen += fingerprints(batch)
        bad = (~loss.isfinite()).nonzero().flatten()
        if len(bad) and diverged == "raise":
            numbers = (bad + start).tolist()
            raise NumericalError(
                f"the loss of episode(s) {numbers} is not finite: adaptation has probably diverged (lower the inner "
                "rate), or weights are not finite"
            )
        if right is not None:
            hits.append(right.where(loss.isfinite(), 0.0))
        elif diverged == "wrong":
            raise ValueError("diverged='wrong' is about accuracies, and a regression has none")
    values = torch.cat(hits or losses)
    protocol = None
    if hasattr(sampler, "dataset") and first == 0:  # protocols count from episode 0
        solver = solver_outside_training(learner, steps)
        protocol = Protocol.of(
            sampler,
            episodes,
            inner_steps=None if solver is None else solver.steps,
            norm=learner.model.norm,
            head=learner.head_label,
            precision=precision_name(learner.autocast, next(iter(learner.model.parameters.values()))),
            shown=shown,
        )
    return Evaluation(values, mean_interval(values)[1], torch.cat(losses), protocol, bool(hits), tuple(seen))


def _scored(
    learner: Learner,
    batch: EpisodeBatch,
    steps: int | None,
    diverged: str,
    shown: EpisodeBatch | None,
    w0: WarmStart | None,
) -> tuple[Tensor, Tensor | None]:
    """Loss and accuracy (None in regression) of each episode, `(T,)`; with `"wrong"` some losses may not be finite."""
    objectives = learner.objectives(batch, training=False, shown=shown)
    w, derived = adapted(objectives, steps, checked=diverged == "raise", w0=w0)
    with torch.no_grad():
        loss, logits = objectives.scored(w, derived)
    right = correct(logits, objectives.passes.parts["query"])
    return loss.cpu(), None if right is None else right.cpu()


def compare(a: Evaluation, b: Evaluation) -> Comparison:
    """Compare two methods on the same episodes, paired: `mean(a.values - b.values)`.

    Raises:
        ValueError: evaluations of different episodes.

    Example:
        >>> import torch
        >>> a, b = (Evaluation(torch.tensor(v), 0.0, torch.zeros(3), None) for v in ([1.0, 0.5, 1.0], [0.5, 0.5, 0.5]))
        >>> print(compare(a, b))
        +0.3333 +- 0.7171
    """
    for name, given in (("a", a), ("b", b)):
        if not isinstance(given, Evaluation):
            raise ValueError(f"{name} is of type {type(given).__name__}: what mp.evaluate returns is needed")
    if a.values.shape != b.values.shape or a.has_accuracy != b.has_accuracy:
        raise ValueError(f"a has {len(a.values)} episodes, b {len(b.values)}: they must be the same episodes")
    if a.protocol is not None and b.protocol is not None:
        episodes = [
            dataclasses.replace(p, inner_steps=None, norm=None, head=None, precision="float32", shown=None)
            for p in (a.protocol, b.protocol)
        ]
        if episodes[0] != episodes[1]:
            raise ValueError(f"a and b were measured on different episodes: {episodes[0]} and {episodes[1]}")
    if a.fingerprints and b.fingerprints and a.fingerprints != b.fingerprints:
        differ = [
            number for number, pair in enumerate(zip(a.fingerprints, b.fingerprints)) if len(set(pair)) > 1
        ]
        raise ValueError(
            f"a and b were measured on different episodes: {len(differ)} of {len(a.fingerprints)}, such as number "
            f"{differ[0]}, have other images or labels (data of another seed, size or noise?)"
        )
    mean, half = mean_interval(a.values.double() - b.values.double())
    return Comparison(mean, half, a.protocol)


def device_of(learner: Learner) -> torch.device:
    """Where a learner's tensors are."""
    return next(iter(learner.model.parameters.values())).device
