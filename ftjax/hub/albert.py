"""ALBERT (Lan et al. 2020): one layer's parameters in every layer, small embeddings projected to the hidden size."""

from collections.abc import Mapping
from typing import Any

from ftjax.errors import UserError
from ftjax.hub import bert
from ftjax.hub.family import Head, Weight, activation, head_dim, hf_activation, linear, norm, plain_heads
from ftjax.hub.roberta import heads
from ftjax.nn.config import Config


def to_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_kv_heads": hf["num_attention_heads"],
        "head_dim": head_dim(hf["hidden_size"], hf["num_attention_heads"]),
        "activation": activation(hf, "hidden_act", "gelu_new"),
    }


def to_hf(cfg: Config) -> dict[str, Any]:
    plain_heads(cfg, "albert")
    if not cfg.embed_size:
        raise UserError("an albert checkpoint projects its embeddings: it needs embed_size > 0, got 0")
    return {"hidden_act": hf_activation(cfg.activation)}


_LAYER = "encoder.albert_layer_groups.0.albert_layers.0"

FAMILY = bert.FAMILY._replace(
    model_type="albert",
    prefix="albert.",
    heads={
        "mlm": Head(
            ("AlbertForMaskedLM", "AlbertForPreTraining"),
            {
                **linear("transform/dense", "predictions.dense"),
                **norm("transform/norm", "predictions.LayerNorm"),
                "head/bias": Weight("predictions.bias"),
            },
            {"head_bias": True, "tied_head": True},
        ),
        "classification": Head(
            ("AlbertForSequenceClassification",),
            {**linear("pooler", "albert.pooler"), **linear("classifier", "classifier")},
            {"pooler": "dense", "pooling": "first"},
        ),
        **heads("Albert"),
    },
    options={
        **bert.FAMILY.options,
        "embed_size": ("embedding_size", 128),
        # hidden_dropout is also the FFN's, as in the authors' code; transformers' has none there.
        "hidden_dropout": ("hidden_dropout_prob", 0.0),
        "embed_dropout": ("hidden_dropout_prob", 0.0),
        "attention_dropout": ("attention_probs_dropout_prob", 0.0),
        "classifier_dropout": ("classifier_dropout_prob", 0.1),
    },
    unsupported={
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "num_hidden_groups": 1,
        "inner_group_num": 1,
    },
    fixed={**bert.FAMILY.fixed, "shared_layers": True},
    weights={
        **{path: weight for path, weight in bert.FAMILY.weights.items() if path.startswith("embed/")},
        **linear("embed/project", "encoder.embedding_hidden_mapping_in"),
        **linear("layers/attn/q", f"{_LAYER}.attention.query"),
        **linear("layers/attn/k", f"{_LAYER}.attention.key"),
        **linear("layers/attn/v", f"{_LAYER}.attention.value"),
        **linear("layers/attn/o", f"{_LAYER}.attention.dense"),
        **norm("layers/attn_norm", f"{_LAYER}.attention.LayerNorm"),
        **linear("layers/ffn/up", f"{_LAYER}.ffn"),
        **linear("layers/ffn/down", f"{_LAYER}.ffn_output"),
        **norm("layers/ffn_norm", f"{_LAYER}.full_layer_layer_norm"),
    },
    # The sentence-order head of the pre-training files is no part of any head here.
    others=r"sop_classifier\.classifier\.(weight|bias)",
    copies={
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    to_config=to_config,
    to_hf=to_hf,
)
