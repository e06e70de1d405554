"""Whether generation helps, and when: families in which one must adapt, every row with its controls.

    python -m benchmarks.generation choose glyph-pairs   (inner rates, on validation tasks, as many trials for each row)
    python -m benchmarks.generation run glyph-pairs class-encoder --budget 1000 --seed 0
    python -m benchmarks.generation all glyph-pairs      (every row that is not there yet)
    python -m benchmarks.generation ceiling glyph-pairs
    python -m benchmarks.generation times
    python -m benchmarks.generation list glyph-pairs

One file a row, budget, number of inner steps and seed in benchmarks/results/generation, with the value of every test
task, so that any two rows can be compared on the same tasks. Data: $METAPEFT_DATA (see the README).
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cyclopts import App

import metapeft as mp
from benchmarks.generation_ceiling import ceiling_of, ridge_of
from benchmarks.generation_kinds import OfKind
from benchmarks.generation_rows import FAMILIES, Family, Row, rows_of
from benchmarks.generation_times import times
from metapeft.learner.learner import Learner
from metapeft.training.runs.environment import environment

app = App(help=__doc__, version_flags=[])
RESULTS = Path(__file__).parent / "results" / "generation"
BUDGETS, SEEDS, STEPS = (300, 1000, 3000), (0, 1, 2), (0, 1, 5)
CHOSEN = 300  # the budget at which inner rates are chosen
ABLATIONS = "-"  # rows with that in their name are trained at one budget only
ONE_BUDGET = 1000
RATE_OF_RATES = 0.05  # the outer rate of the inner rates, as a share of the first of them


def make(
    family: Family, row: Row, seed: int, inner_steps: int, rate: float | None, formats: Any = None
) -> Learner:
    """The learner of a row; without inner steps nothing adapts. `formats`: of each parameter, in place of the row's."""
    generator = row.generator()
    preprocess = getattr(family.splits(seed)["train"].dataset, "preprocess", None)
    targets: Any = {"targets": family.targets} if formats is None else {}
    model = mp.attach(
        family.backbone(seed), formats or row.format, preprocess=preprocess, seed=seed, **targets
    )
    inner = (
        mp.inner.SGD(inner_steps, rate, rates="step", clip=family.clip)
        if inner_steps and rate is not None
        else None
    )
    groups = (
        ["weights", "factors"] + ["generator"] * (generator is not None) + ["rates"] * (inner is not None)
    )
    return mp.Learner(
        model, inner, outer=groups + ["selection"] * (row.selection is not None), selection=row.selection,
        head=family.heads[inner is not None], generator=generator, loss=family.loss, seed=seed,
    )  # fmt: skip


def train(
    family: Family,
    row: Row,
    learner: Learner,
    budget: int,
    seed: int,
    run_dir: Path | None,
    kind: int | None = None,
) -> None:
    """As many outer steps as the budget says, the row's share of them without an inner loop; resumable.

    Args:
        kind: of all tasks; None for all kinds.
    """
    direct = round(row.direct * budget) if learner.inner is not None and learner.generator is not None else 0
    lr = {"default": family.lr}
    if learner.inner is not None:  # rates are small numbers, of which a step of that size makes wild ones
        lr["rates"] = RATE_OF_RATES * learner.inner.lr  # type: ignore[attr-defined]
    trainer = mp.BilevelTrainer(
        learner, lr=lr, tasks_per_step=family.tasks, clip=10.0, schedule="cosine", progress=False,
        direct_steps=direct,
    )  # fmt: skip
    episodes = family.splits(seed)["train"]
    if kind is not None:
        episodes = OfKind(episodes, kind, budget * family.tasks)
    if run_dir is not None and trainer.has_run(run_dir):
        trainer.resume(run_dir, episodes)
    else:
        trainer.fit(episodes, budget, run_dir=run_dir, checkpoint_every=500)


def score(found: Any) -> float:
    """Accuracy, or minus the mean loss."""
    return float(found.accuracy if found.has_accuracy else -found.loss)


def place_of(family: str, row: str, inner_steps: int, budget: int, seed: int) -> Path:
    """Where a result is kept."""
    return RESULTS / f"{family}-{row}-{inner_steps}-{budget}-{seed}.json"


def rate_of(family: str, row: str, inner_steps: int) -> float | None:
    """The inner rate that validation chose; None without inner steps."""
    if not inner_steps:
        return None
    path = RESULTS / f"{family}-chosen.json"
    chosen = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found = chosen.get(f"{row}-{inner_steps}")
    if found is None:
        raise SystemExit(f"no inner rate was chosen yet: python -m benchmarks.generation choose {family}")
    return float(found["rate"])


@app.command
def choose(
    family: str, inner_steps: tuple[int, ...] = (1, 5), rows: tuple[str, ...] = (), threads: int = 1
) -> None:
    """Choose the inner rate that each row begins with: the same trials for each, on 100 validation tasks.

    Args:
        family: which. inner_steps: numbers of inner steps. rows: some only. threads: of torch.
    """
    torch.set_num_threads(threads)
    one, path = FAMILIES[family], RESULTS / f"{family}-chosen.json"
    RESULTS.mkdir(parents=True, exist_ok=True)
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, row in rows_of(family).items():
        for steps in inner_steps:
            if f"{name}-{steps}" in found or not adapts(name, row) or (rows and name not in rows):
                continue
            trials = {}
            for rate in one.rates:
                learner = make(one, row, 0, steps, rate)
                try:
                    train(one, row, learner, CHOSEN, 0, None)
                    trials[rate] = score(mp.evaluate(learner, one.splits(0)["val"], 100))
                except mp.NumericalError:
                    trials[rate] = float("-inf")
            found[f"{name}-{steps}"] = {"rate": max(trials, key=lambda rate: trials[rate]), "trials": trials}
            path.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{family}, {name}, {steps} steps: {trials}", flush=True)


def adapts(name: str, row: Row) -> bool:
    """Whether a row is trained with inner steps too: the main ones, not every ablation."""
    return row.least > 0 or row.direct > 0 or name == "constant"


@app.command
def run(
    family: str,
    row: str,
    budget: int = 1000,
    inner_steps: int = 0,
    seed: int = 0,
    runs: Path = Path("runs") / "generation",
    threads: int = 1,
    compiled: bool = True,
) -> None:
    """Train one row, evaluate it and its controls on fresh test tasks, and keep the result.

    Args:
        family, row: see `list`. budget: outer steps. inner_steps: in training and at test. seed: of everything.
        runs: where run folders go. threads: of torch. compiled: whether kernels are used where they fit.
    """
    torch.set_num_threads(threads)
    one, line = FAMILIES[family], rows_of(family)[row]
    begun = time.monotonic()
    if compiled:
        mp.use_compiled()
    folder = runs / place_of(family, row, inner_steps, budget, seed).stem
    test = one.splits(seed)["test"]
    formats, rate = None, rate_of(family, row, inner_steps)
    if line.ranks_from is not None:
        searched = mp.load(runs / place_of(family, line.ranks_from, inner_steps, budget, seed).stem)
        formats = rounded(searched, line.rule, seed)
    learner = make(one, line, seed, inner_steps, rate, formats)
    if line.a_kind:
        evaluations = {"own": of_each_kind(one, line, seed, inner_steps, rate, budget, folder)}
    else:
        train(one, line, learner, budget, seed, folder)
        evaluations = {"own": mp.evaluate(learner, test, one.episodes)}
        for shown in line.shown:
            evaluations[shown] = mp.evaluate(learner, test, one.episodes, shown=shown)
    seconds = time.monotonic() - begun
    kept = {
        "family": family, "row": row, "about": line.about, "budget": budget, "inner_steps": inner_steps, "seed": seed,
        "format": str(line.format), "formats": formats and {name: str(value) for name, value in formats.items()},
        "lr": one.lr, "tasks": one.tasks, "rate": rate,
        "parameters": sum(value.numel() for value in learner.trained.values()), "seconds": round(seconds, 1),
        "protocol": evaluations["own"].protocol.as_dict() if evaluations["own"].protocol else None,
        "environment": environment(), "compiled": compiled,
        "values": {name: [round(v, 4) for v in found.values.tolist()] for name, found in evaluations.items()},
    }  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    place_of(family, row, inner_steps, budget, seed).write_text(json.dumps(kept) + "\n")
    print(
        f"{family}, {row}, budget {budget}, {inner_steps} steps, seed {seed}: {evaluations['own']}",
        flush=True,
    )


def rounded(searched: Learner, rule: str, seed: int) -> Any:
    """Formats of half of all terms, by the selection of a trained learner."""
    logits = {name: searched.variables[f"selection.{name}"] for name in searched.selected}
    half = sum(len(value) for value in logits.values()) // 2
    found = (
        mp.ranks(logits, rule, total=half, seed=seed)
        if rule == "shuffled"
        else mp.ranks(logits, rule, total=half)
    )
    return mp.at_ranks(searched.model, found)


def of_each_kind(
    family: Family, row: Row, seed: int, inner_steps: int, rate: float | None, budget: int, folder: Path
) -> Any:
    """A model for each kind of task, evaluated on the test tasks of that kind; the values of all tasks in order."""
    test = family.splits(seed)["test"]
    kinds = test.kind_of(range(family.episodes))
    values, found = torch.zeros(family.episodes), None
    for kind in range(len(test.kinds)):
        learner = make(family, row, seed, inner_steps, rate)
        train(family, row, learner, budget, seed, folder.with_name(f"{folder.name}-{kind}"), kind)
        found = mp.evaluate(learner, test, family.episodes)
        values = torch.where(torch.from_numpy(kinds) == kind, found.values, values)
    if found is None:
        raise ValueError("the test tasks know no kinds")
    return replace(found, values=values, losses=values if family.regression else found.losses)


@app.command(name="all")
def every(
    family: str,
    rows: tuple[str, ...] = (),
    budgets: tuple[int, ...] = BUDGETS,
    inner_steps: tuple[int, ...] = STEPS,
    seeds: tuple[int, ...] = SEEDS,
    threads: int = 1,
) -> None:
    """Every row that is not there yet: all budgets at 0 inner steps, ablations and inner steps at one of them.

    Args:
        family: which. rows: some only. budgets, inner_steps, seeds: of them. threads: of torch.
    """
    for steps in inner_steps:
        for budget in budgets:
            for seed in seeds:
                for name, row in rows_of(family).items():
                    side = (name.count("-") > 1 or steps) and budget != ONE_BUDGET
                    left_out = (steps and not adapts(name, row)) or steps < row.least or side
                    if left_out or (rows and name not in rows):
                        continue
                    if not place_of(family, name, steps, budget, seed).exists():
                        run(family, name, budget, steps, seed, threads=threads)


@app.command
def ceiling(family: str, threads: int = 1) -> None:
    """What is had without meta-learning: on pairs by a rule that knows the halves, on functions by a ridge regression.

    Args:
        family: which. threads: of torch.
    """
    torch.set_num_threads(threads)
    one = FAMILIES[family]
    found = ridge_of(one) if one.regression else ceiling_of(one)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{family}-ceiling.json").write_text(
        json.dumps({**found, "environment": environment()}) + "\n"
    )
    print({name: sum(values) / len(values) for name, values in found["values"].items()})


@app.command(name="times")
def step_times(threads: int = 1) -> None:
    """What a generator costs in a training step at five inner steps, beside the constant seed.

    Args:
        threads: of torch.
    """
    torch.set_num_threads(threads)
    found = times()
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "times.json").write_text(json.dumps({**found, "environment": environment()}, indent=1) + "\n")
    print({name: round(ratio, 3) for name, ratio in found["ratios"].items()})


@app.command(name="list")
def names(family: str = "glyph-pairs") -> None:
    """The rows of a family.

    Args:
        family: which.
    """
    print(f"families: {', '.join(FAMILIES)}")
    for name, row in rows_of(family).items():
        print(f"{name:28}{row.about}")


if __name__ == "__main__":
    app()
