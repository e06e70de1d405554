"""Few-shot accuracy beside the literature's: one command a row, resumable, its learner and its result kept.

    python -m benchmarks.literature list
    python -m benchmarks.literature run miniimagenet-5w1s meta-baseline   (goes on where it stopped)
    python -m benchmarks.literature rerun miniimagenet-5w1s meta-baseline (evaluates the kept learner, in minutes)

Rows that are not from scratch stand on a start of `benchmarks.starts`. Data: $METAPEFT_DATA (see the README). With a
C++ compiler, training and adapting run through compiled kernels.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from cyclopts import App

import metapeft as mp
from benchmarks.literature_rows import ROWS, Problem, Row, optimizer, problems
from benchmarks.starts import RESULTS as STARTS
from benchmarks.starts import accuracies, features_of
from metapeft.base.intervals import mean_interval
from metapeft.training.runs.checkpoint import load, save
from metapeft.training.runs.environment import environment
from metapeft.training.tuning import calibrated_scale, grid, tune

app = App(help=__doc__, version_flags=[])
RESULTS = Path(__file__).parent / "results" / "literature"
QUERIES = 15


@app.command(name="list")
def names() -> None:
    """The rows and problems."""
    print("problems:", ", ".join(problems()))
    for name, row in ROWS.items():
        print(f"{name:16}{row.about}")


@app.command
def run(
    problem: str,
    row: str,
    runs: Path = Path("runs"),
    seed: int = 0,
    episodes: int = 2000,
    threads: int = 2,
    compiled: bool = True,
) -> None:
    """Train a row where it is trained, keep its learner, evaluate it on test classes and write its result.

    Args:
        problem, row: see `list`. runs: where run folders go. seed: of everything. episodes: of the test.
        threads: of torch. compiled: through compiled kernels.
    """
    asked, chosen = named(problem, row)
    prepare(threads, compiled)
    begun = time.monotonic()
    body = start_of(asked, chosen, seed)
    sampler = mp.EpisodeSampler(dataset(asked, "val"), asked.ways, asked.shots, QUERIES, seed=seed + 1)
    settings, trials = tuned(asked, chosen, body, sampler)
    learner = made(asked, chosen, body, settings)
    log = trained(asked, chosen, learner, sampler, runs / f"{problem}-{row}-{seed}", seed)
    if learner.reads_center:
        mp.fit_center(learner, dataset(asked, "train"))
    about = {
        "settings": settings, "trials": trials, "seconds_of_last_process": round(time.monotonic() - begun, 1),
        "log": [line for line in log if "validation_accuracy" in line],
    }  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    if learner.trained:
        save(RESULTS / f"{problem}-{row}-{seed}.safetensors", learner.state(), {"settings": settings})
    evaluated(asked, row, learner, seed, episodes, about)


@app.command
def rerun(
    problem: str, row: str, seed: int = 0, episodes: int = 2000, threads: int = 2, compiled: bool = True
) -> None:
    """Evaluate a row from what is kept of it, on the same test episodes, and write its result anew.

    Args:
        problem, row, seed, episodes, threads, compiled: as for `run`.
    """
    asked, chosen = named(problem, row)
    prepare(threads, compiled)
    before = json.loads((RESULTS / f"{problem}-{row}-{seed}.json").read_text("utf-8"))
    body = start_of(asked, chosen, seed)
    learner = made(asked, chosen, body, before["settings"])
    if learner.trained:
        learner.load_state(load(RESULTS / f"{problem}-{row}-{seed}.safetensors")[0])
    if learner.reads_center:
        mp.fit_center(learner, dataset(asked, "train"))
    kept = {name: before[name] for name in ("settings", "trials", "seconds_of_last_process", "log")}
    evaluated(asked, row, learner, seed, episodes, kept)


def named(problem: str, row: str) -> tuple[Problem, Row]:
    """The problem and the row of these names."""
    for kind, name, known in (("problem", problem, problems()), ("row", row, ROWS)):
        if name not in known:
            raise SystemExit(f"unknown {kind} {name!r}: known are {', '.join(known)}")
    return problems()[problem], ROWS[row]


def prepare(threads: int, compiled: bool) -> None:
    """Threads of torch, and compiled kernels where they are asked for."""
    torch.set_num_threads(threads)
    if compiled:
        mp.use_compiled()


def dataset(problem: Problem, split: str) -> Any:
    """The images of a split."""
    return mp.load_dataset(problem.data, split=split)


def start_of(problem: Problem, row: Row, seed: int) -> torch.nn.Module:
    """What a row starts from: random weights, the retraining that the problem names, or another row's weights."""
    body = problem.backbone(seed)
    if row.scratch:
        return body
    path = STARTS / f"{problem.start}-{seed}.safetensors"
    first = f"benchmarks.starts train {problem.start}"
    if row.trained_by is not None:
        path = RESULTS / f"{problem.name}-{row.trained_by}-{seed}.safetensors"
        first = f"benchmarks.literature run {problem.name} {row.trained_by}"
    if not path.exists():
        raise SystemExit(f"{path.name} is missing: run `python -m {first}` first")
    state = load(path)[0]
    if row.trained_by is not None:  # a learner's, whose head has the classifier's place
        own = {name.partition(".")[2]: value for name, value in state.items() if not name.startswith("head.")}
        state = {
            name: value if name.startswith("classifier.") else own[name]
            for name, value in body.state_dict().items()
        }
    body.load_state_dict(state)
    return body


def tuned(
    problem: Problem, row: Row, body: torch.nn.Module, validation: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The settings of a row's grid with the best accuracy on 100 validation episodes, and all trials."""
    if not row.grid:
        return {}, []
    fixed = {}
    if not row.scratch:
        read = mp.heads.Prototypes(normalize="l2")
        preprocess = validation.dataset.preprocess
        fixed["scale"] = calibrated_scale(body, validation, head=read, preprocess=preprocess)
    found = tune(
        lambda **given: made(problem, row, body, {**fixed, **given}), grid(**row.grid), validation, 100
    )
    return {**fixed, **found.settings}, found.trials


def made(problem: Problem, row: Row, body: torch.nn.Module, settings: dict[str, Any]) -> mp.Learner:
    """The learner of a row."""
    return row.make(body, problem, preprocess=dataset(problem, "train").preprocess, **settings)


def trained(
    problem: Problem, row: Row, learner: mp.Learner, validation: Any, folder: Path, seed: int
) -> list[dict[str, Any]]:
    """Train a learner as its row says, or go on with it; the log."""
    if row.training is None:
        return []
    plan = row.training[problem.data]
    kind, options = optimizer()
    trainer = mp.BilevelTrainer(
        learner, kind, plan.lr, tasks_per_step=plan.tasks, clip=10.0, schedule="cosine", ema=plan.ema,
        options={**options, "weight_decay": plan.decay},
    )  # fmt: skip
    augment = None if problem.augment is None else mp.Augment(**problem.augment)
    sampler = mp.EpisodeSampler(
        dataset(problem, "train"), plan.ways, problem.shots, plan.queries, seed=seed, augment=augment
    )
    if trainer.has_run(folder):
        return trainer.resume(folder, sampler, validation)
    return trainer.fit(
        sampler,
        plan.steps,
        validation,
        folder,
        validate_every=plan.validate_every,
        validate_start=not row.scratch,
    )


def evaluated(
    problem: Problem, row: str, learner: mp.Learner, seed: int, episodes: int, about: dict[str, Any]
) -> None:
    """Score a learner on test classes and write the row; what adapts nothing is read from features looked up once."""
    data = dataset(problem, "test")
    sampler = mp.EpisodeSampler(data, problem.ways, problem.shots, QUERIES, seed=seed + 2)
    begun = time.monotonic()
    if learner.inner is None:
        own = {n.removeprefix("head."): v for n, v in learner.variables.items() if n.startswith("head.")}
        values = accuracies(
            features_of(learner.body, data), sampler, learner.head, learner.center, episodes, learned=own
        )
        norm = learner.model.norm
        protocol = mp.Protocol.of(sampler, episodes, norm=norm, head=learner.head_name).as_dict()
    else:
        result = mp.evaluate(learner, sampler, episodes, diverged="wrong")
        values, protocol = (
            result.values.double(),
            {} if result.protocol is None else result.protocol.as_dict(),
        )
    mean, half = mean_interval(values)
    trained_by = ROWS[ROWS[row].trained_by or row]
    training = (trained_by.training or {}).get(problem.data)
    seen = (
        0
        if training is None
        else training.steps * training.tasks * training.ways * (problem.shots + training.queries)
    )
    found = {
        "problem": problem.name, "row": row, "seed": seed, "accuracy": mean, "ci95": half, "protocol": protocol,
        "images": seen, "setting": ROWS[row].as_dict(problem), "base": ROWS[row].base, **about,
        "seconds_of_evaluation": round(time.monotonic() - begun, 1), "environment": environment(),
        "values": [round(value, 4) for value in values.tolist()],
    }  # fmt: skip
    (RESULTS / f"{problem.name}-{row}-{seed}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"{row} on {problem.name}: {100 * mean:.2f} +- {100 * half:.2f} %")


if __name__ == "__main__":
    app()
