"""Batch statistics: a task's own, handed back with the result, moving the buffers once a step by their mean."""

from __future__ import annotations

from typing import Any

import torch

import metapeft as mp
from metapeft.training.accumulation import accumulated
from metapeft.training.running_statistics import move_buffers
from tests.learner.helpers import assert_same, images, learner_of
from tests.learner.plain import Net


def buffers(learner: mp.Learner) -> dict[str, torch.Tensor]:
    return {name: value for name, value in learner.state().items() if name.startswith("buffers.")}


def protonet(net: Any = None) -> mp.Learner:
    return mp.methods.protonet(Net() if net is None else net)


def test_one_task_moves_the_buffers_as_train_mode_does() -> None:
    net, batch = Net(), images(tasks=1)
    learner = protonet(net)
    move_buffers(learner.model.module, accumulated(learner, batch, None).statistics)
    net.train()(torch.cat([batch.support_x[0], batch.query_x[0]]))
    for name, value in net.named_buffers():
        torch.testing.assert_close(learner.state()[f"buffers.{name}"], value, rtol=1e-12, atol=1e-14)


def test_several_tasks_move_them_once_by_the_mean() -> None:
    batch, found = images(tasks=3), []
    for t in range(3):
        net = Net().train()
        net(torch.cat([batch.support_x[t], batch.query_x[t]]))
        found.append(net.norm.running_var.clone())
    learner = protonet()
    move_buffers(learner.model.module, accumulated(learner, batch, None).statistics)
    own = buffers(learner)
    torch.testing.assert_close(
        own["buffers.norm.running_var"], torch.stack(found).mean(0), rtol=1e-12, atol=0
    )
    assert int(own["buffers.norm.num_batches_tracked"]) == 1


def test_a_cumulative_average_counts_steps() -> None:
    net = Net()
    net.norm.momentum = None
    learner, expected = protonet(net), []
    for seed in (0, 1):
        batch = images(tasks=1, seed=seed)
        move_buffers(learner.model.module, accumulated(learner, batch, None).statistics)
        net.train()(torch.cat([batch.support_x[0], batch.query_x[0]]))
        expected.append(net.norm.running_mean.clone())
    torch.testing.assert_close(
        buffers(learner)["buffers.norm.running_mean"], expected[-1], rtol=1e-12, atol=1e-14
    )


def test_chunks_change_neither_gradients_nor_statistics() -> None:
    for learner in (
        protonet(),
        learner_of("cp", inner=mp.inner.SGD(2, 0.1), head="prototype-init", outer=("weights", "factors"))[0],
    ):
        batch = images(tasks=5)
        whole = accumulated(learner, batch, None)
        for chunk in (1, 2, 5, 9):
            parts = accumulated(learner, batch, chunk)
            assert_same(parts.grads, whole.grads)
            assert set(parts.statistics) == set(whole.statistics)
            for name, values in whole.statistics.items():
                torch.testing.assert_close(parts.statistics[name], values, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(parts.values, whole.values, rtol=1e-12, atol=0)


def test_statistics_are_those_of_items_that_count() -> None:
    batch = images(masked=True)
    found = protonet().hypergradient(batch).log["statistics"]["norm"]
    net = Net()
    x = torch.cat([batch.support_x[0][batch.support_mask[0]], batch.query_x[0][batch.query_mask[0]]])
    seen = net.conv(x)
    torch.testing.assert_close(found[0][0], seen.mean((0, 2, 3)).detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        found[1][0], seen.var((0, 2, 3), correction=0).detach(), rtol=1e-10, atol=1e-12
    )
    assert not any(value.requires_grad for value in found)


def test_methods_with_an_inner_loop_leave_the_buffers() -> None:
    for norm in ("running", "support"):
        learner, _ = learner_of("lora", norm, inner=mp.inner.SGD(2, 0.1), head="prototype-init")
        assert not learner.hypergradient(images()).log["statistics"]
    frozen, _ = learner_of("cp", head="prototypes", outer=("factors",))
    assert not frozen.hypergradient(images()).log["statistics"]


def test_evaluation_leaves_everything() -> None:
    learner, before = protonet(), protonet().state()
    batch = images()
    learner.adapt_many(batch.support_x, batch.support_y)(batch.query_x)
    assert all(torch.equal(value, before[name]) for name, value in learner.state().items())
