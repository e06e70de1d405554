"""What a change of the code brings: the same meta-step at two commits, in alternating processes.

    python -m benchmarks.before_after BEFORE AFTER --about "what was changed" --only W1 --only MAML

Each commit is checked out into a folder of its own; every round is a fresh process a commit, one untimed step first.
Both get today's workloads. Appends to benchmarks/results/before-after.json.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cyclopts import App

from metapeft.training.runs.environment import environment

app = App(help=__doc__, version_flags=[])
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "before-after.json"
STEP = """
import sys, time, torch
from benchmarks.speed_peers import metapeft
from benchmarks.speed_problems import WORKLOADS
name, threads, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if sys.argv[4] == "True":
    import metapeft as mp
    if hasattr(mp, "use_compiled"):
        mp.use_compiled()
torch.set_num_threads(threads)
workload = WORKLOADS[name]
step = metapeft(workload.learner(workload.body()), workload.batch())
step()
for _ in range(steps):
    begun = time.perf_counter()
    step()
    print(time.perf_counter() - begun)
"""


def git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def seconds(tree: Path, workload: str, threads: int, steps: int, compiled: bool) -> tuple[list[float], int]:
    """Seconds of each step of one process that runs the code of a tree, and the bytes that it had at most."""
    variables = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", STEP, workload, str(threads), str(steps), str(compiled)]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=tree, env=variables, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        lines = said.read().splitlines()
    if process.returncode:
        raise RuntimeError(f"{tree} on {workload}: " + " ".join(lines[-3:]))
    return [float(line) for line in lines[-steps:]], 1024 * used.ru_maxrss


@app.default
def main(
    before: str,
    after: str,
    *,
    about: str,
    only: list[str] | None = None,
    rounds: int = 5,
    steps: int = 3,
    threads: int = 2,
    compiled: bool = False,
) -> None:
    """Time workloads of benchmarks/speed_problems.py at two commits.

    Args:
        before, after: commits. about: one line on what lies between them. only: workloads; W1 if left out.
        rounds: processes a commit. steps: timed in each. threads: of torch.
        compiled: whether compiled kernels are used, at commits that have them.
    """
    commits = {"before": git("rev-parse", before), "after": git("rev-parse", after)}
    entries: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        trees = {which: Path(folder) / which for which in commits}
        try:
            for which, commit in commits.items():
                git("worktree", "add", "--detach", str(trees[which]), commit)
                shutil.copytree(ROOT / "benchmarks", trees[which] / "benchmarks", dirs_exist_ok=True)
            for workload in only or ["W1"]:
                times: dict[str, list[float]] = {which: [] for which in commits}
                peaks: dict[str, list[int]] = {which: [] for which in commits}
                for _ in range(rounds):
                    for which in commits:
                        found, peak = seconds(trees[which], workload, threads, steps, compiled)
                        times[which] += found
                        peaks[which].append(peak)
                medians = {which: statistics.median(found) for which, found in times.items()}
                ratio = medians["before"] / medians["after"]
                entries.append({
                    "about": about, "workload": workload, "threads": threads, "commits": commits,
                    "median_s": medians, "least_s": {which: min(found) for which, found in times.items()},
                    "ratio": ratio, "seconds": times, "environment": environment(),
                    "process_bytes": {which: statistics.median(found) for which, found in peaks.items()},
                })  # fmt: skip
                print(f"{workload:22} {medians['before']:.3f} -> {medians['after']:.3f} s, {ratio:.2f} x")
        finally:
            for tree in trees.values():
                subprocess.run(
                    ["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=False
                )
    RESULTS.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
