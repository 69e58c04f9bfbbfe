"""DeBERTa v2 and v3 (He et al. 2021, 2023): disentangled attention to contents and relative positions."""

from collections.abc import Mapping
from typing import Any

from ftjax.errors import UserError
from ftjax.hub import bert
from ftjax.hub.family import REQUIRED, Head, Weight, activation, head_dim, hf_activation, linear, norm, plain_heads
from ftjax.hub.roberta import heads
from ftjax.nn.config import Config

NEEDED = {  # config.json key -> the only value that we support, which is not transformers' default
    "relative_attention": True,
    "position_biased_input": False,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
}


def _sizes(hidden: int, head: int) -> dict[str, int]:
    return {"embedding_size": hidden, "pooler_hidden_size": hidden, "attention_head_size": head}


def to_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    hidden, count = hf["hidden_size"], hf["num_attention_heads"]
    size = head_dim(hidden, count)
    needed = NEEDED | {k: v for k, v in _sizes(hidden, size).items() if k in hf}
    wrong = [f"{key}={hf.get(key)!r} (only {value!r})" for key, value in needed.items() if hf.get(key) != value]
    if wrong:
        raise UserError(f"config.json: not supported: {', '.join(wrong)}")
    kinds = hf.get("pos_att_type") or []
    if sorted(kinds.split("|") if isinstance(kinds, str) else kinds) != ["c2p", "p2c"]:
        raise UserError(f"config.json: pos_att_type={kinds!r} is not supported, only 'c2p|p2c'")
    if hf["position_buckets"] < 2:
        raise UserError(f"config.json: position_buckets={hf['position_buckets']} is not supported, only 2 or more")
    size_of_conv = hf.get("conv_kernel_size", 0)
    if size_of_conv and (size_of_conv % 2 == 0 or hf.get("conv_act", "tanh") != hf.get("hidden_act", "gelu")):
        raise UserError("config.json: not supported: an even conv_kernel_size, or conv_act that is not hidden_act")
    far, dropout = hf.get("max_relative_positions", -1), hf.get("cls_dropout")
    return {
        "num_kv_heads": count,
        "head_dim": size,
        "attention_scale": (3 * size) ** -0.5,
        "activation": activation(hf, "hidden_act", "gelu"),
        "relative_distance": far if far > 0 else hf["max_position_embeddings"],
        "pooler_activation": activation(hf, "pooler_hidden_act", "gelu"),
        "classifier_dropout": hf.get("hidden_dropout_prob", 0.1) if dropout is None else dropout,
    }


def to_hf(cfg: Config) -> dict[str, Any]:
    plain_heads(cfg, "deberta-v2")
    scale = (3 * cfg.head_dim) ** -0.5
    if cfg.attention_scale != scale:
        raise UserError(f"a deberta-v2 checkpoint needs attention_scale={scale!r}, got {cfg.attention_scale!r}")
    return {
        **NEEDED,
        "pos_att_type": ["p2c", "c2p"],
        "hidden_act": hf_activation(cfg.activation),
        "conv_act": hf_activation(cfg.activation),
        "max_relative_positions": cfg.relative_distance,
        "pooler_hidden_act": hf_activation(cfg.pooler_activation),
        "cls_dropout": cfg.classifier_dropout,
    }


FAMILY = bert.FAMILY._replace(
    model_type="deberta-v2",
    prefix="deberta.",
    heads={
        "mlm": bert.FAMILY.heads["mlm"]._replace(architectures=("DebertaV2ForMaskedLM",)),
        "classification": Head(
            ("DebertaV2ForSequenceClassification",),
            {**linear("pooler", "pooler.dense"), **linear("classifier", "classifier")},
            {"pooler": "dense", "pooling": "first"},
        ),
        **heads("DebertaV2"),
    },
    options={
        **bert.FAMILY.options,
        "token_types": ("type_vocab_size", 0),
        "norm_eps": ("layer_norm_eps", 1e-7),
        "relative_buckets": ("position_buckets", REQUIRED),
        "pooler_dropout": ("pooler_dropout", 0.0),
        "conv_size": ("conv_kernel_size", 0),
    },
    unsupported={"tie_word_embeddings": True, "legacy": True, "conv_groups": 1},
    fixed={**bert.FAMILY.fixed, "positions": "disentangled"},
    weights={
        **{path: weight for path, weight in bert.FAMILY.weights.items() if path != "embed/positions/embedding"},
        **linear("layers/attn/q", "encoder.layer.{i}.attention.self.query_proj"),
        **linear("layers/attn/k", "encoder.layer.{i}.attention.self.key_proj"),
        **linear("layers/attn/v", "encoder.layer.{i}.attention.self.value_proj"),
        "relative/embedding": Weight("encoder.rel_embeddings.weight"),
        **norm("relative/norm", "encoder.LayerNorm"),
        **linear("conv", "encoder.conv.conv"),
        **norm("conv/norm", "encoder.conv.LayerNorm"),
    },
    ignored=r"embeddings\.(position_ids|position_embeddings\.weight)",
    others=r"(lm_predictions|mask_predictions)\..*",
    copies={
        "cls.predictions.decoder.weight": "deberta.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    to_config=to_config,
    to_hf=to_hf,
)
