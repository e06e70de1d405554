"""The matrix of architectures: its page, its shares, and a third of its models, one of every cause, each time."""

from __future__ import annotations

import importlib.util

import pytest

from benchmarks.models.check import check
from benchmarks.models.matrix import LIBRARIES, cases
from benchmarks.models.page import PAGE, page, read, shares

#: a third: what once failed, one model of each cause, and common ones; models whose check takes seconds
SAMPLE = (
    "Bert seqcls", "Bert MLM tied", "Albert seqcls (shared)", "DebertaV2 seqcls", "Deberta(v1) seqcls", "MPNet seqcls",
    "XLNet seqcls", "Longformer seqcls", "BertModel (base, no head)", "Bert QA", "Perceiver seqcls", "GPT2 LM",
    "Llama seqcls", "Gemma3 text LM", "Mixtral LM (experts)", "Qwen2Moe LM", "Mamba LM", "Mamba2 LM", "RWKV LM",
    "T5 cond.gen.", "Flan-T5 (gated) seqcls", "Bart cond.gen.", "PatchTST cls", "CLIPModel (contrastive)", "Swin",
    "Swinv2", "EfficientNet", "LeViT", "Wav2Vec2 seqcls", "WavLM seqcls", "Whisper enc-dec",
    "vit_tiny_patch16_224", "beit_base_patch16_224", "eva02_tiny_patch14_224", "vit_relpos_small_patch16_224",
    "xcit_nano_12_p16_224", "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_224", "mobilenetv3_small_050",
    "TransformerEncoder + loose cls,pos", "LSTM classifier", "LSTM bidirectional, 2 layers", "GRU", "RNN seq first",
    "GRUCell loop", "LSTM, Full", "Conv3d net", "ConvTranspose2d autoencoder LoRA", "weight_norm (parametrizations)",
    "weight_norm (old)", "spectral_norm", "orthogonal", "F.linear on own Parameter", "MoE top-1 by indexing",
    "EmbeddingBag", "output dict 'out'", "module 'head'", "Bilinear", "siamese", "subclass of Linear",
)  # fmt: skip


def test_the_page_is_that_of_the_results() -> None:
    rows = read()
    assert PAGE.read_text(encoding="utf-8") == page(rows)
    known = {(row["library"], row["name"]) for row in rows}
    every = [(library, case.name) for library, case in cases()]
    assert [(row["library"], row["name"]) for row in rows] == [key for key in every if key in known]


def test_shares_of_what_runs() -> None:
    """At least nine in ten whole, and 97 % whole or in part, each with its left-out layers; no numbers that differ."""
    rows = read()
    whole, carried = shares(rows)
    assert whole >= 0.9
    assert carried >= 0.97
    assert not [row for row in rows if row["state"] in ("wrong", "crash")]
    assert all(row["why"] for row in rows if row["state"] == "refused")


def test_the_sample_is_a_third_of_every_cause() -> None:
    names = [case.name for _, case in cases()]
    assert set(SAMPLE) <= set(names)
    assert len(SAMPLE) * 3 >= len(names)
    tried = {row["name"] for row in read() if row["state"] != "whole"}
    assert tried <= set(SAMPLE)


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.filterwarnings("ignore")
def test_a_third_of_them(library: str) -> None:
    """Each fares as its row says."""
    if library != "torch" and importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}: requirements-peers.txt and requirements-peers-nodeps.txt have it")
    known = {row["name"]: row["state"] for row in read()}
    for own, case in cases():
        if own == library and case.name in SAMPLE:
            found = check(case)
            assert found["state"] == known.get(case.name, "whole"), found
