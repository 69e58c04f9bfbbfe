"""BERT (Devlin et al. 2018): names and options of its heads and its bare form."""

from collections.abc import Mapping
from typing import Any

from ftjax.hub.family import (
    REQUIRED,
    Family,
    Head,
    Weight,
    activation,
    head_dim,
    hf_activation,
    linear,
    norm,
    plain_heads,
)
from ftjax.nn.config import Config


def to_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    dropout = hf.get("classifier_dropout")
    return {
        "num_kv_heads": hf["num_attention_heads"],
        "head_dim": head_dim(hf["hidden_size"], hf["num_attention_heads"]),
        "activation": activation(hf, "hidden_act", "gelu"),
        "classifier_dropout": hf.get("hidden_dropout_prob", 0.1) if dropout is None else dropout,
    }


def to_hf(cfg: Config) -> dict[str, Any]:
    plain_heads(cfg, "bert")
    return {"hidden_act": hf_activation(cfg.activation), "classifier_dropout": cfg.classifier_dropout}


MASKED = {
    **linear("transform/dense", "cls.predictions.transform.dense"),
    **norm("transform/norm", "cls.predictions.transform.LayerNorm"),
    "head/bias": Weight("cls.predictions.bias"),
}
TIED = {"head_bias": True, "tied_head": True}
POOLED = {"pooler": "dense", "pooling": "first"}

FAMILY = Family(
    model_type="bert",
    prefix="bert.",
    heads={
        "mlm": Head(("BertForMaskedLM",), MASKED, TIED),
        "pretraining": Head(
            ("BertForPreTraining",),
            {**MASKED, **linear("pooler", "bert.pooler.dense"), **linear("classifier", "cls.seq_relationship")},
            {**TIED, **POOLED, "classifier_dropout": 0.0},
        ),
        "classification": Head(
            ("BertForSequenceClassification",),
            {**linear("pooler", "bert.pooler.dense"), **linear("classifier", "classifier")},
            POOLED,
        ),
        "tagging": Head(("BertForTokenClassification",), linear("classifier", "classifier")),
        "span": Head(("BertForQuestionAnswering",), linear("classifier", "qa_outputs"), {"classifier_dropout": 0.0}),
        "none": Head(("BertModel",)),
    },
    options={
        "vocab_size": ("vocab_size", REQUIRED),
        "hidden_size": ("hidden_size", REQUIRED),
        "num_layers": ("num_hidden_layers", REQUIRED),
        "num_heads": ("num_attention_heads", REQUIRED),
        "ffn_size": ("intermediate_size", REQUIRED),
        "max_positions": ("max_position_embeddings", REQUIRED),
        "token_types": ("type_vocab_size", 2),
        "norm_eps": ("layer_norm_eps", 1e-12),
        "hidden_dropout": ("hidden_dropout_prob", 0.1),
        "embed_dropout": ("hidden_dropout_prob", 0.1),
        "attention_dropout": ("attention_probs_dropout_prob", 0.1),
        "init_std": ("initializer_range", 0.02),
    },
    unsupported={
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "is_decoder": False,
        "add_cross_attention": False,
    },
    fixed={
        "causal": False,
        "norm": "layernorm",
        "norm_order": "post",
        "positions": "learned",
        "embed_norm": True,
        "gated": False,
        "qkv_bias": True,
        "out_bias": True,
        "ffn_bias": True,
    },
    weights={
        "embed/tokens/embedding": Weight("embeddings.word_embeddings.weight"),
        "embed/positions/embedding": Weight("embeddings.position_embeddings.weight"),
        "embed/types/embedding": Weight("embeddings.token_type_embeddings.weight"),
        **norm("embed/norm", "embeddings.LayerNorm"),
        **linear("layers/attn/q", "encoder.layer.{i}.attention.self.query"),
        **linear("layers/attn/k", "encoder.layer.{i}.attention.self.key"),
        **linear("layers/attn/v", "encoder.layer.{i}.attention.self.value"),
        **linear("layers/attn/o", "encoder.layer.{i}.attention.output.dense"),
        **norm("layers/attn_norm", "encoder.layer.{i}.attention.output.LayerNorm"),
        **linear("layers/ffn/up", "encoder.layer.{i}.intermediate.dense"),
        **linear("layers/ffn/down", "encoder.layer.{i}.output.dense"),
        **norm("layers/ffn_norm", "encoder.layer.{i}.output.LayerNorm"),
    },
    ignored=r"embeddings\.position_ids",
    copies={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    to_config=to_config,
    to_hf=to_hf,
)
