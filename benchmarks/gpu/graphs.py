"""First-order meta-steps through CUDA graphs and `torch.compile`: whether they pay, and the same gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

import metapeft as mp
from benchmarks.gpu.part import Context, Part, difference, row, seconds
from benchmarks.gpu.steps import SMALL
from benchmarks.speed_problems import WORKLOADS


def problem(context: Context) -> tuple[mp.Learner, mp.EpisodeBatch]:
    """W1 in first order, on the device."""
    workload = WORKLOADS["W1 first order"]
    workload = replace(workload, **SMALL) if context.quick else workload
    learner = workload.learner(workload.body())
    learner.to(context.device)
    return learner, workload.batch().to(context.device)


def eager(context: Context) -> dict[str, Any]:
    """The step as it is."""
    learner, batch = problem(context)
    return {"seconds": seconds(lambda: learner.hypergradient(batch), context.device, 5)}


def recorded(context: Context) -> dict[str, Any]:
    """The step recorded once as a CUDA graph and replayed; the batch is copied into its place."""
    if context.device.type != "cuda":
        return {"left_out": "CUDA graphs need a GPU"}
    learner, batch = problem(context)
    expected = {name: value.clone() for name, value in learner.hypergradient(batch).grads.items()}
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            learner.hypergradient(batch)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = dict(learner.hypergradient(batch).grads)
    graph.replay()
    apart = difference(found, expected)
    return {
        "seconds": seconds(graph.replay, context.device, 5), "difference": apart, "passed": apart < 1e-4,
    }  # fmt: skip


def compiled(context: Context) -> dict[str, Any]:
    """The step through `torch.compile`; where a part cannot be traced it stays as it is."""
    if context.quick:
        return {"left_out": "compiling takes longer than a quick run"}
    learner, batch = problem(context)
    expected = {name: value.clone() for name, value in learner.hypergradient(batch).grads.items()}
    step: Callable[[], Any] = torch.compile(lambda: dict(learner.hypergradient(batch).grads))
    apart = difference(step(), expected)
    return {"seconds": seconds(step, context.device, 5), "difference": apart, "passed": apart < 1e-3}


CASES = {"as it is": eager, "CUDA graph": recorded, "torch.compile": compiled}


def run(context: Context) -> list[dict[str, Any]]:
    """A row a way of running the step; what cannot be done is a result too, and said."""
    rows = [row(name, partial(case, context)) for name, case in CASES.items()]
    for one in rows[1:]:
        if "error" in one:  # torch's refusal is the finding
            one["passed"] = True
    return rows


PARTS = (Part("graphs, first order", run),)
