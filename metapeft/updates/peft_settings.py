"""The settings of an adapter of PEFT: which of them we understand, and what its patterns say of a layer."""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any

#: settings that change nothing of what a trained adapter computes, or that are read elsewhere
_READ = frozenset((
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config",
    "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora",
))  # fmt: skip
#: starts of A and B that leave the base weight as it is, so that the adapter is all that was added to it
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")

_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?:|\{\d*,?\d*\}|.", re.DOTALL)
_LONGEST = 1000
_WAYS = 10**8


#: settings that numbers are computed with; others may be changed in an adapter's file
_NUMBERS = ("alpha_pattern", "lora_alpha", "use_rslora")


def settings_digest(config: Mapping[str, Any]) -> str:
    """The SHA-256 of those settings that an adapter's numbers depend on.

    Example:
        >>> settings_digest({"lora_alpha": 4}) == settings_digest({"lora_alpha": 4, "task_type": "SEQ_CLS"})
        True
    """
    own = {name: config.get(name) or None for name in _NUMBERS}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def check_settings(config: Mapping[str, Any], folder: object) -> None:
    """Raise ValueError for what is neither plain LoRA nor DoRA, and for every setting that is unknown and not off.

    Example:
        >>> check_settings({"peft_type": "LORA", "init_lora_weights": True, "use_dora": False}, "adapter")
        >>> check_settings({"peft_type": "LORA", "use_tomorrows_idea": 3}, "adapter")
        Traceback (most recent call last):
        ValueError: adapter has use_tomorrows_idea=3: only plain LoRA and DoRA can be read, which this may not be
    """
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{folder} is a {config.get('peft_type')} adapter: only LORA can be read")
    start = config.get("init_lora_weights")
    if not any(start is known or (isinstance(start, str) and start.lower() == known) for known in _STARTS):
        raise ValueError(
            f"{folder} has init_lora_weights={start!r}, which may have changed the base weights too: save the "
            "adapter with PEFT's save_pretrained(folder, path_initial_model_for_weight_conversion=...), which makes "
            "it a plain LoRA"
        )
    for key, value in config.items():
        off = value is None or value is False or value in ("none", [], {})
        if key not in _READ and key != "init_lora_weights" and not off:
            raise ValueError(
                f"{folder} has {key}={value!r}: only plain LoRA and DoRA can be read, which this may not be"
            )


def alphas(config: Mapping[str, Any], layers: Collection[str], folder: object) -> dict[str, float]:
    """Each layer's `lora_alpha`, by PEFT's rule: the first pattern that matches a suffix of its name.

    PEFT looks the whole name up last, as it stands, which finds names that are no pattern of themselves (`c++`).

    Raises:
        ValueError: a pattern that is no regular expression, or that could take too long to match; a value that
            is no number.

    Example:
        >>> alphas({"lora_alpha": 8, "alpha_pattern": {"k|v": 4}}, ["attention.q", "attention.v"], "adapter")
        {'attention.q': 8.0, 'attention.v': 4.0}
    """
    given = config.get("alpha_pattern") or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"{folder} has alpha_pattern={given!r}: allowed is {{pattern: number}}")
    patterns = {pattern: _compiled(pattern, layers, f"{folder}: alpha_pattern") for pattern in given}
    result: dict[str, float] = {}
    for layer in layers:
        found = (given[key] for key, pattern in patterns.items() if _matches(pattern, layer))
        value = next(found, given.get(layer, config.get("lora_alpha")))
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{folder} has alpha {value!r} for {layer!r}: allowed is a finite number")
        result[layer] = float(value)
    return result


def _matches(pattern: re.Pattern[str], layer: str) -> bool:
    """As `(.*\\.)?(pattern)$` does, which is PEFT's."""
    return any(pattern.match(layer, start) for start in _starts(layer))


def _starts(layer: str) -> Iterator[int]:
    yield 0
    yield from (place + 1 for place, letter in enumerate(layer) if letter == ".")


def _compiled(pattern: str, layers: Collection[str], where: str) -> re.Pattern[str]:
    """A pattern of others, if it can be matched with all layers within a limit."""
    shown = pattern if len(pattern) < 80 else f"{pattern[:80]}..."
    work = 0.0
    if len(pattern) <= _LONGEST:
        work = sum(ways(pattern, len(layer)) * (layer.count(".") + 1) for layer in layers)
    if len(pattern) > _LONGEST or work > _WAYS:
        raise ValueError(
            f"{where} has the pattern {shown!r}, which could take for ever to match: allowed are names, and regular "
            "expressions with a few repeats, none inside another"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)  # alone too: "a)|(b" closes what it did not open
            return re.compile(f"({pattern})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{where} has the pattern {shown!r}, no regular expression: {error}") from error


def ways(pattern: str, length: int) -> float:
    """How many ways of matching a text of some length may have to be tried; infinite where repeats are nested.

    Example:
        >>> ways("layers.(0|1).*proj", 20), ways("(a+)+b", 20)
        (42.0, inf)
    """
    open_groups: list[tuple[float, float]] = []
    others, own = 0.0, 1.0  # of this group: the branches before, and this one
    before = ""
    for token in _TOKEN.findall(pattern):
        repeats = token in ("*", "+") or (token[0] == "{" and len(token) > 2)
        if before == "repeat" and (token == "?" or token == "+"):
            before = ""  # only says which way is tried first
            continue
        if before == "(" and token == "?":
            return math.inf  # looks around, names a group, sets a flag
        if re.fullmatch(r"\\[0-9]", token) or (repeats and before in (")", "repeat")):
            return math.inf
        if token in ("(", "(?:"):
            open_groups.append((others, own))
            others, own = 0.0, 1.0
        elif token == ")" and open_groups:
            group = others + own
            others, own = open_groups.pop()
            own *= group
        elif token == "|":
            others, own = others + own, 1.0
        elif repeats:
            own *= length + 1
        elif token == "?":
            own *= 2
        before = "repeat" if repeats or token == "?" else token
    return others + own
