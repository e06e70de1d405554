"""A setting that says it is huge, in a call or in a run's config: a sentence, and no memory."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import metapeft as mp
from metapeft.base.machine.room import refuse_large
from metapeft.cli import run
from metapeft.training.runs.learner_in_run import save

NETS = mp.backbones
HUGE = 10**7


def small(**options: Any) -> mp.Learner:
    return mp.Learner(mp.attach(NETS.mlp(4, 3, hidden=(8,)), mp.CP(1)), head="zero", **options)


CALLS: dict[str, Callable[[], Any]] = {
    "conv4 width": lambda: NETS.conv4(width=HUGE),
    "conv4 size": lambda: NETS.conv4(size=10**8),
    "conv4 ways": lambda: NETS.conv4(ways=10**11),
    "conv4 channels": lambda: NETS.conv4(channels=10**9),
    "conv4 neck": lambda: NETS.conv4(neck=10**11),
    "conv4 blocks": lambda: NETS.conv4(blocks=10**12),
    "beyond 64 bits": lambda: NETS.conv4(width=10**30),
    "resnet12 width": lambda: NETS.resnet12(width=HUGE),
    "mixer width": lambda: NETS.mixer(width=HUGE),
    "mixer hidden": lambda: NETS.mixer(channel_hidden=10**12),
    "mixer depth": lambda: NETS.mixer(depth=10**9),
    "vit width": lambda: NETS.vit(width=HUGE),
    "vit depth": lambda: NETS.vit(depth=10**9),
    "mlp hidden": lambda: NETS.mlp(hidden=(HUGE, HUGE)),
    "mlp layers": lambda: NETS.mlp(hidden=[4] * 100_000),
    "MappingNet": lambda: small(generator=mp.generators.MappingNet(hidden=10**12)),
    "ClassEncoder": lambda: small(generator=mp.generators.ClassEncoder(hidden=10**12)),
    "AttentionEncoder": lambda: small(generator=mp.generators.AttentionEncoder(hidden=10**9)),
    "PairEncoder": lambda: small(generator=mp.generators.PairEncoder(size=8, hidden=10**12, features=None)),
    "steps with rates": lambda: small(inner=mp.inner.SGD(10**12, 0.1, rates="step")),
    "rates of elements": lambda: small(inner=mp.inner.SGD(10**11, 0.1, rates="element")),
    "RateNet": lambda: small(inner=mp.inner.RateNet(2, 0.1, hidden=10**12)),
    "dictionary": lambda: mp.attach(nn.Linear(4, 3), mp.CP(10**12, dictionary=True)).factors(),
    "ring": lambda: mp.attach(nn.Linear(4, 3), mp.TensorRing(10**7, dictionary=True)).factors(),
    "images": lambda: mp.load_dataset("folder", "nowhere", size=100_000),
    "images of a published set": lambda: mp.load_dataset("miniimagenet", "nowhere", size=100_000),
    "images of others": lambda: mp.ImageData.from_dataset([(torch.zeros(3, 8, 8), 0)], size=100_000),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name: str) -> None:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(
        ValueError, match=r"take (more memory|smaller|\d.*free)|allowed is a whole number from"
    ) as said:
        CALLS[name]()
    assert "\n" not in str(said.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18
    assert time.process_time() - began < 10


def test_the_sentence_names_the_largest_tensor() -> None:
    with pytest.raises(
        ValueError,
        match=r"the weights of a backbone of these sizes, of them conv2\.weight of shape \(10{6}, 10{6}, 3, 3\), take "
        r".* and .* are free: take smaller sizes",
    ):
        NETS.conv4(width=10**6)


def test_another_error_is_not_hidden() -> None:
    def broken() -> dict[str, torch.Tensor]:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        refuse_large(broken, "nothing")


def test_the_start_is_what_it_was() -> None:
    """Nothing of the check goes into the weights, and torch's own state stays."""
    state = torch.get_rng_state()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = nn.Linear(4, 8).weight
    assert torch.equal(NETS.mlp(4, 3, hidden=(8,), seed=3).linear1.weight, expected)
    assert torch.equal(torch.get_rng_state(), state)


def changed(config: dict[str, Any], path: str, value: Any) -> None:
    *parts, last = path.split(".")
    for part in parts:
        config = config[part]
    assert last in config
    config[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("backbone.arguments.width", 30_000_000),
        ("backbone.arguments.ways", 10**12),
        ("backbone.arguments.channels", 10**10),
        ("backbone.arguments.size", 10**9),
        ("backbone.arguments.seed", 10**40),
        ("inner.fields.steps", 10**13),
        ("generator.fields.hidden", 10**13),
    ],
)
def test_a_run_whose_config_was_changed(
    path: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = NETS.conv4(3, width=4, size=16)
    learner = mp.methods.metapeft(
        body, format=mp.CP(1), inner=mp.inner.SGD(2, 0.1, rates="step"), hidden=4, shots=1, norm="support"
    )
    save(learner, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config = {name: value for name, value in config.items() if name not in ("sealed", "sha256")}
    changed(config["learner"], path, value)
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert run(["evaluate", str(tmp_path / "run"), "--episodes", "2"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("metapeft: ")
    assert said.count("\n") == 1
    assert "--data" not in said  # which would be asked for next
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18
