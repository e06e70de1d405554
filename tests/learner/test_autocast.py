"""Forwards in bfloat16 with float32 inner variables, and compiled modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import metapeft as mp
from metapeft.hypergradients import CG
from metapeft.inner import SGD
from tests.learner.helpers import images
from tests.learner.plain import Net
from tests.training import helpers as trainers

METHODS = ["unroll", "recompute", "first-order", CG(5, damping=5.0)]


def learner(autocast: Any, method: Any, norm: str, head: str = "prototype-init", seed: int = 0) -> Any:
    model = mp.attach(Net(seed=seed).float(), mp.LoRA(2), norm=norm)
    inner = SGD(3, 0.1, proximal=2.0)
    return mp.Learner(model, inner, hypergradient=method, head=head, autocast=autocast)


def cosine(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Cosine of two gradients, and the relative difference of their norms."""
    x, y = (torch.cat([value[name].double().flatten() for name in sorted(a)]) for value in (a, b))
    return float(x @ y / (x.norm() * y.norm())), abs(float(x.norm() / y.norm()) - 1)


@pytest.mark.filterwarnings("ignore::metapeft.hypergradients.implicit.NotConverged")
@pytest.mark.parametrize("norm", ["running", "support"])
@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=() if m == "unroll" else pytest.mark.slow) for m in METHODS], ids=repr
)
def test_bf16_is_close_to_float32_and_the_inner_variables_are_float32(method: Any, norm: str) -> None:
    batch = images(tasks=4, shots=3)
    exact = learner(None, method, norm).hypergradient(batch)
    found = learner(torch.bfloat16, method, norm).hypergradient(batch)
    assert all(
        value.dtype == torch.float32 for value in (*found.w.values(), *found.grads.values(), found.value)
    )
    # 8 bits of mantissa: 0.4 % an operation, a handful of operations one after another
    assert found.value.item() == pytest.approx(exact.value.item(), rel=0.02)
    assert found.value.item() != exact.value.item()
    likeness, size = cosine(found.grads, exact.grads)
    assert likeness > 0.995
    assert size < 0.03


def test_steps_smaller_than_a_bf16_digit_are_kept() -> None:
    """In bfloat16 itself an inner variable of 1 would not move by 1e-4."""
    batch = images()
    one = learner(torch.bfloat16, "unroll", "running")
    for name, value in one.variables.items():
        if name.endswith(".B"):
            value.fill_(1.0)
    one.inner.lr = 1e-4
    moved = one.hypergradient(batch).w["hidden.weight.B"] - 1.0
    assert 0 < moved.abs().max() < 1e-3


def test_adaptation_and_evaluation_run_in_bf16_too() -> None:
    batch = images(tasks=2)
    one, other = learner(torch.bfloat16, "unroll", "running"), learner(None, "unroll", "running")
    outputs = [own.adapt_many(batch.support_x, batch.support_y)(batch.query_x) for own in (one, other)]
    assert outputs[0].dtype == torch.float32
    assert not torch.equal(*outputs)
    torch.testing.assert_close(*outputs, rtol=0.05, atol=0.05)


def test_batch_statistics_of_bf16_forwards_move_float32_buffers() -> None:
    found = []
    for autocast in (torch.bfloat16, None):
        own = trainers.learner("protonet", autocast=autocast)
        trainers.trainer(own, "protonet").fit(trainers.sampler(), 3)
        found.append({name: own.state()[name] for name in own.state() if name.startswith("buffers.")})
    assert {value.dtype for value in found[0].values()} == {torch.float32, torch.int64}
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=0.02, atol=0.02)  # 8 bits of mantissa


def test_what_autocast_does_not_do_is_refused() -> None:
    with pytest.raises(ValueError, match="float16 would need scaled losses"):
        learner(torch.float16, "unroll", "running")
    with pytest.raises(ValueError, match="parameters in float32"):
        mp.Learner(mp.attach(Net(), mp.LoRA(2)), SGD(1, 0.1), autocast=torch.bfloat16)


def test_the_setting_is_part_of_a_run() -> None:
    assert learner(torch.bfloat16, "unroll", "running").settings()["autocast"] == "bfloat16"
    assert learner(None, "unroll", "running").settings()["autocast"] is None


@pytest.mark.slow  # importing the compiler takes 5 s
def test_a_compiled_module_is_refused_by_name() -> None:
    whole = torch.compile(Net().float(), backend="eager")
    with pytest.raises(ValueError, match="compiled: attach the original module"):
        mp.Learner(mp.attach(whole, mp.LoRA(2)), SGD(1, 0.1))
    inside = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
    inside[1] = torch.compile(inside[1], backend="eager")
    with pytest.raises(ValueError, match=r"'?1'?.*compiled"):
        mp.methods.maml(inside)
