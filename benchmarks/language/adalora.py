"""AdaLoRA as PEFT has it: its layers, its penalty, its allocator, in the loop that its manual shows."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from metapeft.training.finetuning.items import read_rows
from metapeft.training.finetuning.order import Draw


def trained(
    net: nn.Module,
    train: Any,
    targets: list[str],
    largest: int,
    total: int,
    layers: int,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> tuple[nn.Module, dict[str, int], float]:
    """A backbone with AdaLoRA at the end of its training.

    Args:
        net: a backbone, of which a copy is trained. train: rows. targets: names of its layers, as PEFT takes them.
        largest: rank of a layer at the start. total: of all layers at the end. layers: how many there are.

    Returns: the model, the ranks that are left, and the loss of the last epoch.
    """
    from peft import AdaLoraConfig, get_peft_model

    rows = read_rows(train, net)
    draw = Draw(rows, batch_size, seed, True)
    steps = epochs * draw.steps
    config = AdaLoraConfig(
        target_r=total // layers, init_r=largest, lora_alpha=largest, target_modules=targets,
        modules_to_save=["classifier"], tinit=steps // 10, tfinal=steps // 3, deltaT=5, total_step=steps,
        lora_dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model: Any = get_peft_model(copy.deepcopy(net), config)
    model.eval()  # without dropout, as the others
    parameters = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))
    losses = []
    for step in range(steps):
        batch = draw.batch(step)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.base_model.model(**batch.x)
        loss = F.cross_entropy(logits.float(), batch.y)
        losses.append(float(loss.detach()))
        total_loss = loss + config.orth_reg_weight * _orthogonality(model)
        total_loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    return model, _ranks(model), sum(losses[-draw.steps :]) / draw.steps


def _orthogonality(model: nn.Module) -> torch.Tensor:
    """The penalty of PEFT's own forward, which models of transformers alone get from it."""
    found = []
    for name, value in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = value @ value.T if "lora_A" in name else value.T @ value
            found.append((gram - torch.eye(len(gram))).norm())
    return torch.stack(found).mean()


def _ranks(model: nn.Module) -> dict[str, int]:
    return {
        name.partition(".lora_E")[0].removeprefix("base_model.model."): int((value.detach() != 0).sum())
        for name, value in model.named_parameters()
        if "lora_E" in name
    }
