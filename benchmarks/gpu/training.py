"""Training on the device: the CPU's numbers, going on after a stop, adapting many, bfloat16."""

from __future__ import annotations

import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

import metapeft as mp
from benchmarks.gpu.part import Context, Part, difference, row


def learner(device: torch.device, **options: Any) -> mp.Learner:
    """metapeft's whole method on a small Conv-4."""
    body = mp.backbones.conv4(5, width=8, size=28, seed=0)
    made: mp.Learner = mp.methods.metapeft(
        body, inner=mp.inner.SGD(2, 0.1, rates="step"), device=device, shots=5, **options
    )
    return made


def sampler(split: str = "train") -> mp.EpisodeSampler:
    """Episodes of glyphs, which need no file."""
    return mp.EpisodeSampler(mp.load_dataset("glyphs", split=split), 5, 5, 5, seed=0)


def trained(
    device: torch.device, folder: Path | None = None, stop_at: int | None = None, **options: Any
) -> mp.Learner:
    """After six outer steps, or the first of them."""
    made = learner(device, **options)
    trainer = mp.BilevelTrainer(made, lr=1e-3, tasks_per_step=2, progress=False)
    if folder is not None and trainer.has_run(folder):
        trainer.resume(folder, sampler())
    else:
        trainer.fit(sampler(), 6, run_dir=folder, checkpoint_every=1, stop_at=stop_at)
    return made


def as_on_the_cpu(context: Context) -> dict[str, Any]:
    """Six steps in float64 end at the same numbers, and 20 test episodes have the same accuracy."""
    there = trained(context.device, dtype=torch.float64)
    here = trained(torch.device("cpu"), dtype=torch.float64)
    apart = difference(there.state(), here.state())
    scores = [mp.evaluate(one, sampler("test"), 20).accuracy for one in (there, here)]
    return {"difference": apart, "accuracies": scores, "passed": apart <= 1e-8 and scores[0] == scores[1]}


def goes_on(context: Context) -> dict[str, Any]:
    """A run that stopped after three steps and goes on ends where one ends that did not stop."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        trained(context.device, run, stop_at=3)
        resumed = trained(context.device, run)
    apart = difference(resumed.state(), trained(context.device).state())
    # sums of atomic additions may be taken in another order: then a rounding error of float32 is left
    return {"difference": apart, "bitwise": apart == 0, "passed": apart <= 1e-5}


def many(context: Context) -> dict[str, Any]:
    """Four tasks adapted in one forward answer as one at a time."""
    made = learner(context.device, dtype=torch.float64)
    tasks = sampler("test").batch(0, 4).to(context.device)
    together = made.adapt_many(tasks.support_x, tasks.support_y)(tasks.query_x)
    alone = torch.stack(
        [made.adapt(tasks.support_x[t], tasks.support_y[t])(tasks.query_x[t]) for t in range(4)]
    )
    apart = difference({"logits": together}, {"logits": alone})
    return {"difference": apart, "passed": apart <= 1e-10}


def bfloat16(context: Context) -> dict[str, Any]:
    """Gradients under autocast point where those in float32 do, and six steps stay finite."""
    tasks = sampler().batch(0, 4)
    grads = []
    for kind in (None, torch.bfloat16):
        made = learner(context.device, autocast=kind)
        found = made.hypergradient(tasks.to(context.device)).grads
        grads.append(torch.cat([found[name].flatten().float().cpu() for name in sorted(found)]))
    cosine = float(torch.nn.functional.cosine_similarity(grads[0], grads[1], dim=0))
    state = trained(context.device, autocast=torch.bfloat16).state()
    finite = all(bool(value.isfinite().all()) for value in state.values())
    return {"cosine": cosine, "passed": finite and cosine > 0.9}


def retraining(context: Context) -> dict[str, Any]:
    """Standard retraining lowers its loss, and its copy lies on the device."""
    data = mp.load_dataset("glyphs")
    body, log = mp.pretrain(
        mp.backbones.conv4(5, width=8, seed=0), data, 40, group=32, groups=1, progress=False,
        device=context.device, augment=mp.Augment(crop=2),
    )  # fmt: skip
    losses = [line["loss"] for line in log]
    place = next(body.parameters()).device.type
    return {"losses": losses, "passed": losses[-1] < losses[0] < math.inf and place == context.device.type}


def plain_training(context: Context) -> dict[str, Any]:
    """`mp.finetune` on the device ends at the CPU's numbers in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=generator, dtype=torch.float64)
    y = x.sum(1).gt(0).long()
    fits = []
    for device in (context.device, torch.device("cpu")):
        body = mp.backbones.mlp(6, 2, hidden=(16,), seed=0).double()
        fits.append(
            mp.finetune(
                body, (x, y), format=mp.LoRA(2, 4.0), targets="all", steps=20, batch_size=16, lr=1e-2,
                device=device, progress=False,
            ).factors
        )  # fmt: skip
    apart = difference(dict(fits[0]), dict(fits[1]))
    return {"difference": apart, "passed": apart <= 1e-8}


CASES = {
    "as on the CPU": as_on_the_cpu, "going on": goes_on, "adapting many": many, "bfloat16": bfloat16,
    "retraining": retraining, "finetune": plain_training,
}  # fmt: skip
PARTS = (
    Part(
        "training",
        lambda context: [row(name, partial(run, context)) for name, run in CASES.items()],
    ),
)
