"""The README of an adapter folder: what it is, what it belongs to, and the lines that load it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from metapeft.base.version import __version__
from metapeft.updates.peft_base import source_of

_MOST_CLASSES = 100  # that a card lists; metapeft.json has all


@dataclass(frozen=True)
class Card:
    """What a folder says about an adapter.

    Args:
        backbone: that it belongs to. config: PEFT's settings of it. extra: what `metapeft.json` has.
        base: whether the folder has `base/`. classes: names of its outputs.
        image: channels, height and width of its images, where they are known.
    """

    backbone: nn.Module
    config: Mapping[str, Any]
    extra: Mapping[str, Any]
    base: bool
    classes: Sequence[str] | None
    image: tuple[int, int, int] | None

    def markdown(self) -> str:
        """The page, with the header that the Hugging Face hub reads.

        Example:
            >>> card = Card(nn.Linear(2, 2), {"rank_pattern": {}}, {}, False, ["cat", "dog"], None)
            >>> [line for line in card.markdown().splitlines() if line.startswith("- classes")]
            ['- classes (2): "cat", "dog"']
        """
        ranks = list(self.config["rank_pattern"].values())
        name, revision = source_of(self.backbone)
        header = ["library_name: peft", "tags: [lora, metapeft]"]
        if name:
            header.insert(0, f"base_model: {json.dumps(name)}")
        lines = ["---", *header, "---", "", "# A LoRA adapter", ""]
        lines += [f"Written by metapeft {__version__}; PEFT loads it too.", ""]
        lines += [f"- base model: {self._base_model(name, revision)}"]
        if "backbone_sha256" in self.extra:
            lines += [
                f"- SHA-256 of its weights: `{self.extra['backbone_sha256']}`; metapeft refuses other weights"
            ]
        if self.base:
            lines += [
                f"- its weights were trained too, or its head has another shape: `base/` has them, SHA-256 "
                f"`{self.extra['base_sha256']}`"
            ]
        if ranks:
            lines += [f"- {len(ranks)} layers, ranks {min(ranks)} to {max(ranks)}, {sum(ranks)} in all"]
        if self.classes:
            shown = ", ".join(json.dumps(one, ensure_ascii=False) for one in self.classes[:_MOST_CLASSES])
            more = ", ..." if len(self.classes) > _MOST_CLASSES else ""
            lines += [f"- classes ({len(self.classes)}): {shown}{more}"]
        if self.image:
            channels, height, width = self.image
            lines += [
                f"- images: {channels} channel(s), {height} x {width} pixels, uint8 or as the training had them"
            ]
        tokenizer = self._tokenizer(name)
        if tokenizer:
            lines += [f"- tokenizer: {tokenizer}"]
        return "\n".join([*lines, "", *self._loading(name, revision), ""])

    def _base_model(self, name: str | None, revision: str | None) -> str:
        kind = type(self.backbone).__name__
        if name:
            return (
                f"{json.dumps(name)}, revision {json.dumps(revision) if revision else 'not known'} ({kind})"
            )
        made_by = getattr(self.backbone, "made_by", None)
        return f"`{_call(made_by)}`" if made_by else f"a {kind} of the one who trained it"

    def _tokenizer(self, name: str | None) -> str | None:
        vocabulary = getattr(getattr(self.backbone, "config", None), "vocab_size", None)
        if vocabulary is None:
            return None
        return f"that of {json.dumps(name) if name else 'the base model'}, {vocabulary} tokens"

    def _loading(self, name: str | None, revision: str | None) -> list[str]:
        """The lines that load it."""
        made_by = getattr(self.backbone, "made_by", None)
        kind = type(self.backbone).__name__
        lines = ["## Load it", "", "```python", "import metapeft as mp", ""]
        if name and name.startswith("timm/"):
            lines += [
                "import timm",
                f"backbone = timm.create_model({json.dumps(name.removeprefix('timm/'))})",
            ]
        elif name:
            pinned = f", revision={json.dumps(revision)}" if revision else ""
            lines += [f"from transformers import {kind}"]
            lines += [f"backbone = {kind}.from_pretrained({json.dumps(name)}{pinned})"]
        elif made_by:
            lines += [f"backbone = {_call(made_by)}"]
            if not self.base:
                lines += ["backbone.load_state_dict(...)  # the weights that it had"]
        else:
            lines += [f"backbone = ...  # the {kind} that it was trained on"]
        if self.base:
            lines += ["mp.load_base(backbone, FOLDER)"]
        lines += ["model, factors = mp.from_peft(backbone, FOLDER)  # FOLDER: this one"]
        lines += ["plain = model.merged({name: value[0] for name, value in factors.items()})  # an nn.Module"]
        theirs = ["from peft import PeftModel", "model = PeftModel.from_pretrained(backbone, FOLDER)"]
        return [*lines, "```", "", "Or with PEFT, on the same backbone:", "", "```python", *theirs, "```"]


def checked_classes(classes: Sequence[str]) -> list[str]:
    """Names of outputs as a list; ValueError for anything else.

    Example:
        >>> checked_classes("cat")
        Traceback (most recent call last):
        ValueError: classes='cat': allowed is a list of names, one for each output
    """
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes={classes!r}: allowed is a list of names, one for each output")
    return list(classes)


def _call(made_by: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in made_by["arguments"].items())
    return f"mp.backbones.{made_by['name']}({arguments})"
