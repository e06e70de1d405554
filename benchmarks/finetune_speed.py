"""A step of plain training against PEFT and a loop: python -m benchmarks.finetune_speed [--out FILE].

BERT of MiniLM's shape (6 layers of 384) with random weights, LoRA of rank 8 on query and value, the classifier trained
whole, 32 sentences of 64 tokens, AdamW, clipping. Both sides start alike and draw their batches from the same tensors,
and the losses of the last step say that they did the same. Eight updates at once against as many steps of PEFT, one
after the other. Times are medians of steps in turn, in seconds of the processor, which other programs do not lengthen
much; memory is the peak of a process of its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from cyclopts import App

import metapeft as mp
from metapeft.base.files import write_atomically
from metapeft.base.machine.precision import has_bfloat16
from metapeft.training.finetuning.adapter import Adapter
from metapeft.training.finetuning.items import read_rows
from metapeft.training.finetuning.joint_step import JointStep
from metapeft.training.finetuning.order import epoch_of_batches
from metapeft.training.finetuning.settings import FineTuning
from metapeft.training.finetuning.to_train import to_train
from metapeft.training.runs.environment import environment

app = App(help=__doc__, version_flags=[])
RESULT = Path(__file__).parent / "results" / "finetune_speed.json"
ROWS, BATCH, TOKENS, RANK, ALPHA, LR = 256, 32, 64, 8, 16.0, 1e-3
TARGETS = ["query", "value"]
CPU = torch.device("cpu")

Step = Callable[[], float]


def bert() -> torch.nn.Module:
    """MiniLM's shape, in eval mode: neither side drops anything."""
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12,
        "num_labels": 2,
    }  # fmt: skip
    made: Any = transformers.BertForSequenceClassification
    net: torch.nn.Module = made(transformers.BertConfig(**sizes))
    return net.eval()


def rows(seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Random tokens and labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 30000, (ROWS, TOKENS), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.randint(
        0, 2, (ROWS,), generator=generator
    )


def ours(updates: int, bfloat16: bool = False, device: torch.device = CPU) -> Step:
    """A step of `mp.finetune` on that many data sets."""
    settings = FineTuning(
        steps=10_000, batch_size=BATCH, lr=LR, clip=1.0, autocast=torch.bfloat16 if bfloat16 else None,
        options={"weight_decay": 0.0},
    )  # fmt: skip
    targets = [f"*.{name}" for name in TARGETS]
    model = to_train(bert(), mp.LoRA(RANK, ALPHA), targets, ("classifier.*",), 0, device)
    data = [read_rows(rows(seed), model.module) for seed in range(updates)]
    adapters = [Adapter(model.factors(), one, None, settings) for one in data]
    joint = JointStep(model, settings)

    def step() -> float:
        joint(adapters)
        return float(sum(one.averages.read()["loss"] for one in adapters)) / updates

    return step


def peft(updates: int, bfloat16: bool = False, device: torch.device = CPU) -> Step:
    """A step of as many models of PEFT, one after the other, in the loop that one would write."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=TARGETS, modules_to_save=["classifier"])
    start = to_train(bert(), mp.LoRA(RANK, ALPHA), [f"*.{name}" for name in TARGETS], (), 0, None).factors()
    runs = []
    for seed in range(updates):
        net = get_peft_model(bert(), config).eval()
        for name, value in net.named_parameters():
            if "lora_A" in name:
                key = name.removeprefix("base_model.model.").replace(".lora_A.default.weight", ".weight.A")
                value.data.copy_(start[key][0])
        net.to(device)
        trained = [value for value in net.parameters() if value.requires_grad]
        runs.append(
            (
                net,
                trained,
                torch.optim.AdamW(trained, lr=LR, weight_decay=0.0),
                rows(seed),
                iter(range(10_000)),
            )
        )
    precision = (lambda: torch.autocast(device.type, torch.bfloat16)) if bfloat16 else nullcontext

    def step() -> float:
        total = 0.0
        for net, trained, optimizer, (x, y), numbers in runs:
            epoch, place = divmod(next(numbers), ROWS // BATCH)
            batch = epoch_of_batches(ROWS, BATCH, 0, epoch)[place]
            with precision():
                tokens = {name: value[batch].to(device) for name, value in x.items()}
                loss = net(**tokens, labels=y[batch].to(device)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            total += loss.item() / updates
        return total

    return step


def timed(sides: dict[str, Step], count: int) -> dict[str, Any]:
    """Median processor seconds of each side's steps, in turn after one that warms up, and the losses of the last."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses = {name: step() for name, step in sides.items()}
    for _ in range(count):
        for name, step in sides.items():
            begun = time.process_time()
            losses[name] = step()
            seconds[name].append(time.process_time() - begun)
    return {
        "seconds": {n: statistics.median(v) for n, v in seconds.items()},
        "losses": losses,
        "steps": count,
    }


@app.command
def worker(side: str, updates: int) -> None:
    """Two steps of one side, and the peak memory of this process in MiB."""
    torch.set_num_threads(1)
    step = (ours if side == "metapeft" else peft)(updates)
    step(), step()
    # the system's own count of this program; ru_maxrss begins with that of the process that started it
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def peak(side: str, updates: int) -> float:
    """MiB of a process that only does this."""
    command = [sys.executable, "-m", "benchmarks.finetune_speed", "worker", side, str(updates)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


@app.default
def main(*, steps: int = 7, many: int = 8, out: Path = RESULT) -> None:
    """Measure, and write the file."""
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    cases = [("one update", 1, steps, False), (f"{many} updates at once", many, max(2, steps // 2), False)]
    if has_bfloat16(torch.device("cpu")):
        cases.append(("one update, bfloat16 forwards", 1, steps, True))
    for name, updates, count, bfloat16 in cases:
        row = timed({"metapeft": ours(updates, bfloat16), "peft": peft(updates, bfloat16)}, count)
        row["ratio"] = row["seconds"]["metapeft"] / row["seconds"]["peft"]
        if not bfloat16:
            row["peak_mib"] = {"metapeft": peak("metapeft", updates), "peft": peak("peft", updates)}
        found.append({"case": name, **row})
        print(json.dumps(found[-1]), flush=True)
        said = {
            "shape": f"{BATCH} x {TOKENS} tokens, rank {RANK}",
            "environment": environment(),
            "rows": found,
        }
        write_atomically(out, f"{json.dumps(said, indent=1)}\n".encode())


if __name__ == "__main__":
    app()
