"""The same meta-step by metapeft and by its peers: gradients compared first, then timed in turn.

    python -m benchmarks.speed --quick --json FILE --check      # W1, its frozen and CP/TR forms, full MAML
    python -m benchmarks.speed --json FILE                      # all workloads, and memory
    python -m benchmarks.speed --only "SR 84 bfloat16" --no-memory  # a step of training without an inner loop
    python -m benchmarks.speed pictures FILE

Every ratio is one of medians of the same run: all libraries take turns in one process. A peer that is not
installed has a row that says so. `rate` is the part of the machine's own matrix-product rate (float32, measured
in the same run) that a library's counted floating-point operations come to; peak memory is that of a process of
its own. Where there is a C++ compiler, metapeft runs with its compiled kernels, and "uncompiled" is metapeft in
plain torch; both are credited with the operations of the latter, though the kernels need fewer. Freed memory stays
with these processes, as it does while metapeft trains: for all libraries alike.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed_bars import FASTER, NEVER_SLOWER, OTHER_GRADIENT, bars, short, unchecked
from benchmarks.speed_peers import LACKS, PEERS, Step, absent, metapeft
from benchmarks.speed_pictures import draw
from benchmarks.speed_problems import QUICK, WORKLOADS, Workload, plain
from benchmarks.speed_training import TRAININGS, Training, has_amx, steps_of_training
from metapeft.base.machine.freed_memory import keep_freed_memory
from metapeft.base.machine.memory import peak_bytes
from metapeft.training.runs.environment import environment
from metapeft.updates.layers.compiled.compiler import compiler
from metapeft.updates.layers.compiled.switch import compiled_used, in_use, use_compiled

ALL: dict[str, Workload | Training] = {**WORKLOADS, **TRAININGS}

app = App(help=__doc__, version_flags=[])


def own_step(step: Step, compiled: bool) -> Step:
    """A step of metapeft, with flat gradients, by compiled kernels or without."""

    def run() -> dict[str, Tensor]:
        with compiled_used(compiled):
            return {name: value.flatten() for name, value in step().items()}

    return run


def steps_of(
    workload: Workload | Training, only: Collection[str] | None = None, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Step], dict[str, str]]:
    """The steps of all (or some) libraries on a workload, by the plain module's names; and who cannot run, and why.

    `metapeft` uses compiled kernels where they are in use now; `uncompiled` is without, where that differs.
    """
    if isinstance(workload, Training):
        return steps_of_training(workload, only, dtype, in_use(), own_step), {}
    body, batch, steps, missing = workload.body().to(dtype), workload.batch(dtype), {}, {}
    learner = workload.learner(body)
    module = plain(workload, body, learner)
    for who, compiled in (("metapeft", in_use()), ("uncompiled", False)):
        differs = who == "metapeft" or (in_use() and workload.compiles)
        if differs and (only is None or who in only):
            steps[who] = own_step(metapeft(learner, batch), compiled)
    for name, (make, engines) in PEERS.items():
        if only is not None and name not in only:
            continue
        why = absent(name) if workload.engine in engines else LACKS[workload.engine][name]
        if why is not None:
            missing[name] = why
            continue
        step = make(workload, plain(workload, body, learner), batch)
        steps[name] = lambda step=step: {module.names[n]: v.flatten() for n, v in step().items()}  # type: ignore[misc]
    return steps, missing


def difference(found: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Relative distance of two gradients over all variables together, in float64."""
    a, b = (torch.cat([part[name].double() for name in sorted(reference)]) for part in (found, reference))
    return float((a - b).norm() / b.norm())


def differences(workload: Workload | Training, only: Collection[str] | None = None) -> dict[str, float]:
    """How far each library's gradient is from metapeft's, in float64, in the step that is timed (16 tasks at most)."""
    found = {who: step() for who, step in exact_steps(workload, only).items()}
    return {who: difference(grads, found["metapeft"]) for who, grads in found.items()}


def exact_steps(workload: Workload | Training, only: Collection[str] | None = None) -> dict[str, Step]:
    """The steps in float64, of 16 tasks at most."""
    return steps_of(replace(workload, tasks=min(workload.tasks, 16)), only, torch.float64)[0]


def timed(step: Step) -> float:
    """Seconds of one step."""
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


def matrix_rate(size: int = 1500, repeats: int = 15) -> float:
    """Floating-point operations a second of a float32 matrix product."""
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    return 2 * size**3 / min(timed(lambda: {"": a @ a}) for _ in range(repeats))


def backward_operations(
    y: list[int], x: list[int], weight: list[int], *options: Any, out_shape: Any = None
) -> int:
    """Operations of a convolution's backward: those of its forward for each derivative that is asked for.

    Torch's own count takes the derivative in the weight for one without groups.
    """
    wanted: list[bool] = options[7]
    return 2 * math.prod(y) * math.prod(weight[1:]) * sum(wanted[:2])


def counted(step: Step) -> tuple[int, dict[str, Tensor]]:
    """Floating-point operations of a step, and its gradient."""
    mapping = {torch.ops.aten.convolution_backward: backward_operations}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        found = step()
    return int(counter.get_total_flops()), found


def measure(name: str, repeats: int, least: float, quick: bool, memory: bool, threads: int) -> dict[str, Any]:
    """One workload: gradients compared, then rounds in which every library has one turn.

    There are `repeats` of them, and further ones until they have taken `least` seconds. `quick` keeps to the
    libraries that have a bar here, and takes the memory of two of them.
    """
    workload = ALL[name]
    only = {"metapeft", "uncompiled", *NEVER_SLOWER, *FASTER.get(name, {})} if quick else None
    apart = differences(workload, only)
    steps, missing = steps_of(workload, only)
    first = {who: counted(step) for who, step in steps.items()}  # not timed
    operations = {who: count for who, (count, _) in first.items()}
    operations["metapeft"] = operations.get(
        "uncompiled", operations["metapeft"]
    )  # compiled ones are not seen
    rounding = {who: difference(found, first["metapeft"][1]) for who, (_, found) in first.items()}
    brief: dict[str, float] = {}
    if isinstance(workload, Training):  # the steps that are timed, bfloat16 among them, against float64
        exact = exact_steps(workload, {"loop"})["loop"]()
        brief = {who: difference(found, exact) for who, (_, found) in first.items()}
    del first
    seconds: dict[str, list[float]] = {who: [] for who in steps}
    rates = [matrix_rate()]
    begun, rounds, names = time.monotonic(), 0, list(steps)
    while rounds < repeats or time.monotonic() - begun < least:
        for who in [
            *names[rounds % len(names) :],
            *names[: rounds % len(names)],
        ]:  # nobody is always the first
            seconds[who].append(timed(steps[who]))
        rates.append(matrix_rate())
        rounds += 1
    rows: dict[str, Any] = {}
    for who in steps:
        median = statistics.median(seconds[who])
        rows[who] = {
            "median_s": median,
            "seconds": seconds[who],
            "gradient_difference": apart[who],
            "float32_difference": rounding[who],
            **({"float64_difference": brief[who]} if brief else {}),
            "flop": operations[who],
            "rate": operations[who] / median / max(rates),
            "times_metapeft": median / statistics.median(seconds["metapeft"]),
        }
        if memory and (not quick or who in ("metapeft", "higher")):
            rows[who].update(peak(name, who, threads, in_use()))
        print(line(name, who, rows[who]), flush=True)
    for who, why in missing.items():
        rows[who] = {"absent": why}
        print(f"{name:22} {who:12} {why}", flush=True)
    return {
        "workload": vars(workload), "matrix_flops": max(rates), "repeats": rounds, "threads": threads, "rows": rows,
        "environment": environment(), "compiled": in_use() and workload.compiles, "amx": has_amx(),
    }  # fmt: skip


def line(name: str, who: str, row: dict[str, Any]) -> str:
    """One row for the screen."""
    memory = f"{row['peak_bytes'] / 2**20:7.0f} MiB" if "peak_bytes" in row else row.get("no_peak", "")
    apart = row["gradient_difference"]
    memory += "" if apart <= OTHER_GRADIENT else f"  (another gradient, by {apart:.0e})"
    return (
        f"{name:22} {who:12} {row['median_s']:8.3f} s  {row['times_metapeft']:5.2f} x  "
        f"{100 * row['rate']:5.1f} % of the matrix rate  {memory}"
    )


def peak(name: str, who: str, threads: int, compiled: bool) -> dict[str, Any]:
    """`peak_bytes`: resident of one step above what was before, in a fresh process; `no_peak`: why it ended instead."""
    command = [sys.executable, "-m", "benchmarks.speed", "one", name, who, "--threads", str(threads)]
    command += ["--compiled"] if compiled else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
        return {"no_peak": f"no peak: {said[0]}"}
    return {"peak_bytes": int(done.stdout.split()[-1])}


@app.command
def one(name: str, who: str, *, threads: int = 2, compiled: bool = False) -> None:
    """Print the peak memory of one library's step on one workload, in bytes; one task has run before."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    use_compiled(compiled)
    workload = ALL[name]
    steps_of(replace(workload, tasks=1), {who})[0][who]()  # kernels are chosen, libraries loaded
    step = steps_of(workload, {who})[0][who]
    # what the first step left with the allocator is given back first, or a step of the same size would seem free
    print(peak_bytes(step, torch.device("cpu")))


@app.default
def run(
    *,
    quick: bool = False,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
    check: bool = False,
    only: list[str] | None = None,
    repeats: int = 7,
    least: float = 20.0,
    threads: int = 2,
    memory: bool = True,
    compiled: bool | None = None,
) -> None:
    """Measure workloads.

    Args:
        quick: W1, its frozen and CP/TR forms and full MAML: under ten minutes on two cores. Of each, the libraries
            that a bar names.
        json_file: where the numbers go; its `rows` are the ratios and their bars (`speed_bars.bars`). With `only`, what
            the file says of other workloads stays.
        check: exit with 1 and a line for each ratio that falls short of its bar.
        only: names of workloads. repeats: rounds at least. least: seconds of them at least. threads: of torch.
        memory: whether peaks are taken. compiled: whether metapeft uses its compiled kernels; left out: if it can.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    use_compiled(compiler() is not None if compiled is None else compiled)
    print(f"metapeft {'with' if in_use() else 'without'} compiled kernels", flush=True)
    unknown = set(only or ()) - set(ALL)
    if unknown:
        raise SystemExit(f"unknown workload {sorted(unknown)}: known are {', '.join(ALL)}")
    begun, now = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%S%z")
    found: dict[str, Any] = {}
    if only and json_file is not None and json_file.exists():
        found = json.loads(json_file.read_text(encoding="utf-8"))["workloads"]
    earlier = set(found) - set(only or ())
    names = only or (QUICK if quick else tuple(ALL))
    for name in names:
        found[name] = {"run": now, **measure(name, repeats, least, quick, memory, threads)}
        if json_file is not None:  # after each: a long run that ends early keeps what it has
            json_file.parent.mkdir(parents=True, exist_ok=True)
            result = {"rows": bars(found), "seconds": round(time.monotonic() - begun, 1), "workloads": found}
            json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    rows = [row for row in bars(found) if row["workload"] not in earlier]
    missed = short(rows)
    for sentence in unchecked(found, rows):
        print(f"NOT CHECKED: {sentence}")
    for sentence in missed:
        print(f"SHORT: {sentence}")
    print(f"{time.monotonic() - begun:.0f} s")
    if check and missed:
        raise SystemExit(1)


@app.command
def pictures(file: Path) -> None:
    """Draw a result file: speed by workload and against tasks, memory."""
    draw(json.loads(file.read_text(encoding="utf-8")), file.with_suffix(".png"))


if __name__ == "__main__":
    app()
