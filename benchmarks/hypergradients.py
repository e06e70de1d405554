"""What each hypergradient costs, and how far it is from the exact one, against the number of inner steps K.

The problem: Conv-4 with LoRA (rank 2, all layers) after a short pretraining on glyphs, running statistics,
T = 4 episodes of 5-way 1-shot with 5 queries a class; the inner solver is gradient descent with a proximal
term; outer variables are the backbone's weights. Every engine and K runs in a process of its own, on one
thread: after one gradient with K = 1 (libraries loaded, kernels chosen) the processor time of one gradient is
taken, and the peak is the highest resident memory of the process during it (the operating system's VmHWM,
reset before) above what was resident before. Freed blocks go back to the system at once
(MALLOC_MMAP_THRESHOLD_), so that memory held from earlier does not hide any. Distances from the exact gradient
are also taken where updates are let go further: a weaker proximal term, a larger alpha.

    python -m benchmarks.hypergradients run                    # writes benchmarks/results/hypergradients.json
    python -m benchmarks.hypergradients pages [--check]        # the figure and the table in docs/
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from cyclopts import App
from safetensors.torch import load_file, save_file
from torch import Tensor

import metapeft as mp
from benchmarks.hypergradient_pages import RESULT, write_pages
from metapeft.hypergradients import CG, Exact, MultiStep, Neumann, Recompute, Truncated
from metapeft.hypergradients.problem import Result
from metapeft.learner.learner import Learner
from metapeft.training.runs.environment import environment

STEPS = (1, 5, 20, 100)
WIDTH, RANK, TASKS = 16, 2, 4
#: the inner rate, the proximal term, LoRA's alpha: where costs are measured, and a less tame problem
SETTINGS = {"held": (0.05, 2.0, 2.0), "free": (0.04, 1.0, 3.0)}
#: name -> engine, and the numbers of inner steps at which it is measured
ENGINES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "unroll": ("unroll", STEPS),
    "recompute": (Recompute(), STEPS),
    "recompute sqrt": (Recompute(every="sqrt"), STEPS),
    "truncated 5": (Truncated(5), STEPS),
    "forward": ("forward", STEPS),  # outer variables: the 10 selection logits
    "first-order": ("first-order", STEPS),
    "envelope": ("envelope", STEPS),
    "cg 10": (CG(10), STEPS),
    "cg 10, damping 1": (CG(10, damping=1.0), STEPS),
    "neumann 10": (Neumann(10, lr=0.05), STEPS),
    "exact": (Exact(), STEPS),
    "finite-difference": ("finite-difference", (1,)),  # defined for one step
    "autolora": ("autolora", STEPS),
    "multi-step": (MultiStep(), STEPS),  # here every step counts the same
    "reptile": ("reptile", STEPS),
}
#: other outer variables, or the gradient of another function: no distance from the exact one
INCOMPARABLE = ("reptile", "forward", "multi-step")
APPROXIMATE = (
    "truncated 5",
    "first-order",
    "envelope",
    "cg 10",
    "cg 10, damping 1",
    "neumann 10",
    "autolora",
)
PARTS = ("support_x", "support_y", "query_x", "query_y")
app = App(help=__doc__, version_flags=[])


def learner_of(name: str, steps: int, weights: dict[str, Tensor], setting: str = "held") -> Learner:
    """The learner of one measurement; Reptile trains the starts, forward mode the selection."""
    body = mp.backbones.conv4(ways=5, channels=1, width=WIDTH)
    body.load_state_dict(weights)
    rate, proximal, alpha = SETTINGS[setting]
    outer = {"reptile": "factors", "forward": "selection"}.get(name, "weights")
    engine = MultiStep([1 / steps] * steps) if name == "multi-step" else ENGINES[name][0]
    return Learner(
        mp.attach(body, mp.LoRA(RANK, alpha)),
        inner=mp.inner.SGD(steps, rate, proximal=proximal),
        hypergradient=engine,
        outer=(outer,),
        selection="softmax" if outer == "selection" else None,
    )


def resident(field: str) -> int:
    """Bytes that Linux reports for this process: `VmRSS` now, `VmHWM` at most since the last reset."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}: this measurement needs Linux")


@app.command
def one(name: str, steps: int, problem: Path, out: Path) -> None:
    """Measure one engine with one K in this process: a line of JSON, and its gradient as a file."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # NotConverged: said by the numbers themselves
    weights, batch = read_problem(problem)
    learner_of("cg 10" if name == "exact" else name, 1, weights).hypergradient(batch)
    learner = learner_of(name, steps, weights)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    held, begin = resident("VmRSS"), time.process_time()
    found: Result = learner.hypergradient(batch)
    row: dict[str, Any] = {"seconds": time.process_time() - begin, "bytes": resident("VmHWM") - held}
    if found.residual is not None:
        row["residual"] = float(found.residual.max())
    if "stationarity" in found.log:
        row["stationarity"] = float(found.log["stationarity"].max())
    row["inner_variables"] = sum(value[0].numel() for value in found.w.values())
    row["outer_variables"] = sum(value.numel() for value in found.grads.values())
    save_file({key: grad.contiguous() for key, grad in found.grads.items()}, out)
    print(json.dumps(row))


def make_problem(path: Path, pretraining: int) -> None:
    """Pretrain the backbone on glyphs, and write it to a file with one batch of episodes."""
    data = mp.load_dataset("glyphs")
    body, _ = mp.pretrain(mp.backbones.conv4(ways=5, channels=1, width=WIDTH), data, steps=pretraining)
    batch = mp.EpisodeSampler(data, ways=5, shots=1, queries=5, seed=0).batch(0, TASKS)
    parts = {part: getattr(batch, part) for part in (*PARTS, "classes")}
    save_file({**parts, **{key: value.contiguous() for key, value in body.state_dict().items()}}, path)


def read_problem(path: Path) -> tuple[dict[str, Tensor], mp.EpisodeBatch]:
    """The backbone's weights and the batch."""
    tensors = load_file(path)
    batch = mp.EpisodeBatch(**{part: tensors.pop(part) for part in PARTS}, classes=tensors.pop("classes"))
    return tensors, batch


def distance(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Cosine and relative norm of a gradient against the exact one, over all outer variables together."""
    a, b = (torch.cat([g[name].double().flatten() for name in sorted(exact)]) for g in (found, exact))
    return {"cosine": float(a @ b / (a.norm() * b.norm())), "relative_norm": float(a.norm() / b.norm())}


def distances(problem: Path, setting: str) -> list[dict[str, Any]]:
    """How far every approximation is from the exact gradient, in this process; failures as sentences."""
    weights, batch = read_problem(problem)
    rows: list[dict[str, Any]] = []
    for steps in STEPS:
        exact = learner_of("recompute", steps, weights, setting).hypergradient(batch).grads
        for name in APPROXIMATE:
            row: dict[str, Any] = {"setting": setting, "engine": name, "steps": steps}
            try:
                found = learner_of(name, steps, weights, setting).hypergradient(batch)
                row.update(distance(found.grads, exact))
            except mp.NumericalError as error:
                row["failed"] = str(error)
            rows.append(row)
    return rows


@app.command
def run(*, out: Path = RESULT, pretraining: int = 100) -> None:
    """Measure every engine at every K, then write the result file.

    Args:
        out: the result file.
        pretraining: steps of pretraining before.
    """
    torch.set_num_threads(1)
    began, rows = time.perf_counter(), []
    settings = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    with tempfile.TemporaryDirectory() as folder:
        problem = Path(folder) / "problem.safetensors"
        make_problem(problem, pretraining)
        for name, (_, counts) in ENGINES.items():
            for steps in counts:
                grads = Path(folder) / f"{name} {steps}.safetensors"
                command = [sys.executable, "-m", "benchmarks.hypergradients", "one", name, str(steps)]
                done = subprocess.run(
                    [*command, str(problem), str(grads)],
                    env={**os.environ, **settings},
                    capture_output=True,
                    text=True,
                )
                if done.returncode:
                    raise RuntimeError(f"{name} at K = {steps} failed:\n{done.stdout}{done.stderr}")
                row = {"engine": name, "steps": steps, **json.loads(done.stdout.splitlines()[-1])}
                if name not in INCOMPARABLE:
                    exact = Path(folder) / f"unroll {steps}.safetensors"
                    row.update(distance(load_file(grads), load_file(exact)))
                rows.append(row)
                print(
                    f"{name:18} K = {steps:3}  {row['seconds']:7.2f} s  {row['bytes'] / 2**20:8.1f} MiB",
                    flush=True,
                )
        warnings.simplefilter("ignore")
        apart = [row for setting in SETTINGS for row in distances(problem, setting)]
    about = {
        "problem": f"Conv-4, width {WIDTH}, 28x28, LoRA rank {RANK} on all layers, {TASKS} tasks of 5-way "
        f"1-shot, 5 queries a class, float32, {pretraining} steps of pretraining on glyphs",
        "settings": {
            name: dict(zip(("lr", "proximal", "alpha"), values)) for name, values in SETTINGS.items()
        },
        "memory": "peak resident memory (VmHWM) in one gradient above VmRSS before it, in a fresh process",
        "whole run, seconds": time.perf_counter() - began,
        "environment": environment(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**about, "rows": rows, "distances": apart}, indent=1) + "\n", encoding="utf-8")
    print(f"{out}: {about['whole run, seconds']:.0f} s")


@app.command
def pages(*, check: bool = False) -> None:
    """Draw the figure and fill the table of docs/hypergradients.md, or only say whether it is up to date."""
    write_pages(check)


if __name__ == "__main__":
    app()
