"""Peak memory of a meta-step against the number of tasks, and of recomputing against keeping."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.part import Context, Part, row
from benchmarks.gpu.steps import SMALL
from benchmarks.speed_problems import WORKLOADS


def peak(context: Context, engine: str, tasks: int, steps: int) -> dict[str, Any]:
    """Bytes at the peak of one meta-step of W1, beyond weights and images."""
    workload = replace(WORKLOADS["W1"], **SMALL) if context.quick else WORKLOADS["W1"]
    workload = replace(workload, engine=engine, tasks=tasks, steps=steps)
    learner = workload.learner(workload.body())
    learner.to(context.device)
    batch = workload.batch().to(context.device)
    learner.hypergradient(batch)  # the first one also checks the forward against a loop
    if context.device.type != "cuda":
        return {"left_out": "torch counts the memory of a GPU alone"}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    learner.hypergradient(batch)
    torch.cuda.synchronize()
    return {"bytes": torch.cuda.max_memory_allocated() - before}


def run(context: Context) -> list[dict[str, Any]]:
    """A row an engine, number of tasks and of inner steps."""
    sizes = [(1, 2), (2, 2)] if context.quick else [(1, 5), (4, 5), (16, 5), (64, 5), (4, 20), (4, 50)]
    return [
        row(f"{engine}, T = {tasks}, K = {steps}", partial(peak, context, engine, tasks, steps))
        for engine in ("unroll", "recompute", "first-order")
        for tasks, steps in sizes
    ]


PARTS = (Part("memory", run),)
