"""Language models of transformers, from configurations of a few hundred weights."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from benchmarks.models.case import Case, ids, integers, words
from metapeft.base.machine.torchvision_operators import import_torchvision

#: sizes under the names that most configurations have
SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 64, "num_labels": 3, "pad_token_id": 0,
}  # fmt: skip


def hf(model: str, config: str, **settings: Any) -> nn.Module:
    """A model of transformers by the names of its class and of its configuration's."""
    if importlib.util.find_spec("torchvision") is not None:  # which transformers imports where it is there
        import_torchvision()
    import transformers

    made = getattr(transformers, config)(**settings)
    made._attn_implementation = made._experts_implementation = "eager"
    found: nn.Module = getattr(transformers, model)(made)
    return found


def case(name: str, model: str, config: str, inputs: Any, **settings: Any) -> Case:
    """A case from `hf`."""
    return Case(name, lambda: hf(model, config, **settings), inputs)


def usual(name: str, model: str, config: str, inputs: Any = None, **settings: Any) -> Case:
    """A case whose configuration has the usual names of sizes."""
    return case(name, model, config, inputs or words(), **{**SIZES, **settings})


def causal(name: str, model: str, config: str, inputs: Any = None, **settings: Any) -> Case:
    """A decoder with a few heads that it shares."""
    own = {
        **SIZES,
        "num_key_value_heads": 1,
        "use_cache": False,
        "head_dim": 8,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return case(name, model, config, inputs or words(), **{**own, **settings})


def _answers() -> nn.Module:
    return hf("BertForQuestionAnswering", "BertConfig", **{**SIZES, "num_labels": 2})


def _bert_without_head() -> nn.Module:
    return hf("BertModel", "BertConfig", **SIZES)


ENCODERS = [
    usual("Bert seqcls", "BertForSequenceClassification", "BertConfig"),
    usual("Bert tokcls", "BertForTokenClassification", "BertConfig"),
    usual("Bert MLM tied", "BertForMaskedLM", "BertConfig"),
    usual(
        "Bert seqcls, token_type",
        "BertForSequenceClassification",
        "BertConfig",
        words(token_type_ids=integers(2, 6)),
    ),
    usual("Roberta seqcls", "RobertaForSequenceClassification", "RobertaConfig"),
    case(
        "DistilBert seqcls",
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        words(),
        vocab_size=40,
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=24,
        num_labels=3,
        max_position_embeddings=64,
    ),
    usual("Albert seqcls (shared)", "AlbertForSequenceClassification", "AlbertConfig", embedding_size=8),
    usual(
        "DebertaV2 seqcls",
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=4,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        type_vocab_size=0,
    ),
    usual(
        "Deberta(v1) seqcls",
        "DebertaForSequenceClassification",
        "DebertaConfig",
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
        max_relative_positions=8,
    ),
    usual("Electra seqcls", "ElectraForSequenceClassification", "ElectraConfig", embedding_size=8),
    usual("MPNet seqcls", "MPNetForSequenceClassification", "MPNetConfig", pad_token_id=1),
    usual(
        "ModernBert seqcls",
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        local_attention=4,
        cls_token_id=1,
        sep_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
    ),
    usual("FNet seqcls", "FNetForSequenceClassification", "FNetConfig", ids()),
    usual(
        "Longformer seqcls",
        "LongformerForSequenceClassification",
        "LongformerConfig",
        attention_window=[4, 4],
        pad_token_id=1,
    ),
    case(
        "XLNet seqcls",
        "XLNetForSequenceClassification",
        "XLNetConfig",
        words(),
        vocab_size=40,
        d_model=16,
        n_layer=2,
        n_head=2,
        d_inner=24,
        num_labels=3,
        use_mems_eval=False,
    ),
    Case("BertModel (base, no head)", _bert_without_head, words()),
    Case("Bert QA", _answers, words(), options={"output": lambda found: torch.stack(found.to_tuple(), -1)}),
    case(
        "Perceiver seqcls",
        "PerceiverForSequenceClassification",
        "PerceiverConfig",
        lambda source, rows: {"inputs": integers(40, 6)(source, rows)},
        vocab_size=40,
        d_model=16,
        d_latents=16,
        num_latents=4,
        num_blocks=1,
        num_self_attends_per_block=1,
        num_self_attention_heads=2,
        num_cross_attention_heads=2,
        max_position_embeddings=6,
        num_labels=3,
        qk_channels=16,
        v_channels=16,
    ),
]
GROUPS = {"encoders": ENCODERS}
