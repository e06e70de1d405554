"""Where the time of a meta-step goes, by kind of operation: python -m benchmarks.speed_profile [--only W1]

One thread, torch's profiler; the share of each kind is of the profiled operations' own time. Convolutions also have a
rate, their counted floating-point operations a second over those of a float32 matrix product: what is left to gain.
With compiled kernels (`--compiled`), which count as a kind, beside without.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
from cyclopts import App, Parameter
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import backward_operations, matrix_rate
from benchmarks.speed_peers import Step, metapeft
from benchmarks.speed_problems import WORKLOADS
from metapeft.inner import descent
from metapeft.training.runs.environment import environment
from metapeft.updates.layers.compiled.switch import use_compiled

app = App(help=__doc__, version_flags=[])
RESULTS = Path(__file__).parent / "results" / "profile.json"
#: kind -> what the names of its operations begin with
KINDS = {
    "convolutions": ("mkldnn_convolution", "convolution", "slow_conv", "thnn_conv"),
    "matrix products": ("bmm", "mm", "addmm", "baddbmm", "addbmm", "mkldnn_linear"),
    "pooling": ("max_pool", "gather", "scatter"),
    "copies and layout": ("copy_", "im2col", "col2im", "cat", "clone", "contiguous"),
    "filling with zeros": ("fill_", "zero"),
    "elementwise and sums": (
        "add", "mul", "sub", "div", "relu", "threshold", "clamp", "sum", "rsqrt", "mean", "exp", "batch_norm",
        "native_batch_norm", "gelu", "softmax", "_softmax", "log", "_log", "sqrt", "neg", "pow", "where", "sigmoid",
        "tanh", "var", "native_layer_norm", "lt", "gt", "le", "ge", "eq", "ne",
    ),
}  # fmt: skip
REST = "bookkeeping (views, autograd, Python)"


def kind_of(operation: str) -> str:
    """The kind of an operation, by its name.

    Example:
        >>> kind_of("aten::mkldnn_convolution"), kind_of("aten::view")
        ('convolutions', 'bookkeeping (views, autograd, Python)')
    """
    if operation.lstrip("_").startswith(("Chain", "BatchChain", "BatchPool", "Gradients", "Change")):
        return "compiled kernels"
    name = operation.removeprefix("aten::")
    if name == operation:
        return REST
    matches = [
        (len(start), kind) for kind, starts in KINDS.items() for start in starts if name.startswith(start)
    ]
    return max(matches)[1] if matches else REST


def convolution_operations(step: Step) -> int:
    """Floating-point operations of a step's convolutions."""
    mapping = {torch.ops.aten.convolution_backward: backward_operations}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        step()
    return sum(
        count for name, count in counter.get_flop_counts()["Global"].items() if "convolution" in str(name)
    )


def updates_share(step: Step) -> float:
    """The share of a step's time that `w - rate * direction` takes, of all inner variables: what fusing could save."""
    own, spent = descent.descend, 0.0

    def timed(w: Tensor, direction: Tensor, rate: float | Tensor) -> Tensor:
        nonlocal spent
        begun = time.perf_counter()
        found = own(w, direction, rate)
        spent += time.perf_counter() - begun
        return found

    with mock.patch.object(descent, "descend", timed):
        begun = time.perf_counter()
        step()
        return spent / (time.perf_counter() - begun)


@app.default
def main(
    *,
    only: list[str] | None = None,
    json_file: Annotated[Path, Parameter(name="--json")] = RESULTS,
    compiled: bool = False,
) -> None:
    """Profile workloads.

    Args:
        only: names of workloads; W1, its frozen form and MAML if left out. json_file: where the shares go.
        compiled: whether each is profiled with compiled kernels too.
    """
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    forms = {False: "", True: ", compiled"} if compiled else {False: ""}
    for name, kernels in product(only or ["W1", "W1 frozen", "MAML"], forms):
        use_compiled(kernels)
        workload = WORKLOADS[name]
        step = metapeft(workload.learner(workload.body()), workload.batch())
        step()
        times = []
        for _ in range(3):
            begun = time.perf_counter()
            step()
            times.append(time.perf_counter() - begun)
        rates = [matrix_rate()]
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            step()
        own: Counter[str] = Counter()
        for event in profiled.key_averages():
            own[kind_of(event.key)] += event.self_cpu_time_total
        total = sum(own.values())
        shares = {kind: value / total for kind, value in own.most_common()}
        rates.append(matrix_rate())
        spent = own["convolutions"] / 1e6
        rate = None if kernels else convolution_operations(step) / spent / max(rates)
        row: dict[str, Any] = {
            "median_s": statistics.median(times), "shares": shares, "convolution_rate": rate,
            "updates_share": updates_share(step),
        }  # fmt: skip
        found[f"{name}{forms[kernels]}"] = row
        print(f"{name}{forms[kernels]}: {row['median_s']:.2f} s, one thread")
        for kind, share in shares.items():
            print(f"  {100 * share:5.1f} %  {kind}")
        print(f"  {100 * row['updates_share']:5.2f} %  updates of the inner variables")
        if rate is not None:
            print(f"  convolutions run at {100 * rate:.0f} % of the matrix rate")
    content = {"workloads": found, "environment": environment()}
    json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
