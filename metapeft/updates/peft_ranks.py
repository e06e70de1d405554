"""Ranks as PEFT's own settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from metapeft.base.arguments import by_name, is_whole, number
from metapeft.base.machine.torchvision_operators import help_torchvision


def lora_config(ranks: Mapping[str, int], alpha: float | None = None, **options: Any) -> Any:
    """`peft.LoraConfig` with the ranks of `mp.ranks`, for training elsewhere: transformers, TRL, axolotl.

    Every layer has `lora_alpha = alpha`, so `(alpha / r_l) B A`, as `LoRA(rank, alpha)` has it; without alpha
    `lora_alpha = r_l`, a scale of 1. Layers of rank 0, which PEFT refuses, are left out. Names are written as
    patterns that match the whole name, so that no layer gets another one's rank.

    Args:
        ranks: parameter -> rank, such as `{"layer.0.query.weight": 3}`. alpha: of every layer; None for its rank.
        options: further settings of `LoraConfig`, such as `modules_to_save=["classifier"]`.

    Raises:
        ValueError: ranks that are none, or all 0; parameters that are no weight of a layer.
        ImportError: PEFT is not installed.

    Example:
        >>> found = lora_config({"a.query.weight": 3, "a.value.weight": 0, "b.query.weight": 1}, alpha=16.0)
        >>> found.rank_pattern, found.target_modules
        ({'^a\\\\.query$': 3, '^b\\\\.query$': 1}, '(a\\\\.query|b\\\\.query)')
    """
    by_name("ranks", ranks=ranks)
    for name, rank in ranks.items():
        if not is_whole(rank, 0):
            raise ValueError(f"ranks[{name!r}]={rank!r}: allowed is a whole number of at least 0")
        if not name.endswith(".weight"):
            raise ValueError(f"ranks has {name!r}: PEFT's LoRA is on the weights of layers, '<layer>.weight'")
    if alpha is not None:
        number(above=True, alpha=alpha)
    own = {name.removesuffix(".weight"): rank for name, rank in ranks.items() if rank}
    if not own:
        raise ValueError("all ranks are 0: there is no adapter to configure")
    help_torchvision()
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("lora_config() makes a peft.LoraConfig: pip install 'metapeft[peft]'") from error
    keys = {layer: f"^{re.escape(layer)}$" for layer in own}
    return LoraConfig(
        r=max(own.values()),
        lora_alpha=_plain(max(own.values()) if alpha is None else alpha),
        target_modules=f"({'|'.join(re.escape(layer) for layer in own)})",
        rank_pattern={keys[layer]: rank for layer, rank in own.items()},
        alpha_pattern={} if alpha is not None else {keys[layer]: rank for layer, rank in own.items()},
        **options,
    )


def _plain(value: float) -> Any:
    return int(value) if float(value).is_integer() else value
