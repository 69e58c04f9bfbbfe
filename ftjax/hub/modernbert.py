"""ModernBERT (Warner et al. 2024): rotary positions, most layers with a window, no norm before the first attention."""

from collections.abc import Mapping
from typing import Any

from ftjax.errors import UserError
from ftjax.hub import llama
from ftjax.hub.family import REQUIRED, Family, Head, Weight, head_dim, linear, norm, plain_heads
from ftjax.nn.config import Config

POOLINGS = {"cls": "first", "mean": "mean"}


def to_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    heads, pooling = hf["num_attention_heads"], hf.get("classifier_pooling", "cls")
    if pooling not in POOLINGS:
        raise UserError(f"config.json: classifier_pooling={pooling!r} is not supported, only {', '.join(POOLINGS)}")
    bias, every = hf.get("attention_bias", False), hf.get("global_attn_every_n_layers", 3)
    return {
        "num_kv_heads": heads,
        "head_dim": head_dim(hf["hidden_size"], heads),
        "qkv_bias": bias,
        "out_bias": bias,
        "pooling": POOLINGS[pooling],
        **llama.windows(hf, hf.get("local_attention", 128) // 2 + 1, lambda i: i % every == 0),
        **llama.two_ropes(hf, ("global_rope_theta", 160000.0), ("local_rope_theta", 10000.0)),
    }


def to_hf(cfg: Config) -> dict[str, Any]:
    plain_heads(cfg, "modernbert")
    pooling = next((theirs for theirs, ours in POOLINGS.items() if ours == cfg.pooling), None)
    if pooling is None and cfg.head == "classification":
        raise UserError(f"a modernbert checkpoint cannot say pooling={cfg.pooling!r}, only 'first' or 'mean'")
    if cfg.qkv_bias != cfg.out_bias or not cfg.window or not cfg.window_rope_theta:
        raise UserError(
            "a modernbert checkpoint needs qkv_bias = out_bias, a window and a window_rope_theta, got "
            f"{cfg.qkv_bias}, {cfg.out_bias}, {cfg.window} and {cfg.window_rope_theta}"
        )
    return {
        "attention_bias": cfg.qkv_bias,
        "classifier_pooling": pooling or "cls",
        "local_attention": 2 * (cfg.window - 1),
        "layer_types": llama.hf_layer_types(cfg),
        "rope_parameters": llama.hf_two_ropes(cfg, cfg.window_rope_theta),
        "global_rope_theta": cfg.rope_theta,
        "local_rope_theta": cfg.window_rope_theta,
    }


def _fused(name: str, *paths: str) -> dict[str, Weight]:
    """Linears of ours whose features lie behind each other in one of torch."""
    return {
        path: weight._replace(part=part, parts=len(paths))
        for part, at in enumerate(paths)
        for path, weight in linear(at, name).items()
    }


def _first(weights: Mapping[str, Weight], first: int) -> dict[str, Weight]:
    return {path: weight._replace(first=first) for path, weight in weights.items()}


_TRANSFORM = {**linear("transform/dense", "head.dense"), **norm("transform/norm", "head.norm")}
_CLASSIFIER = {**_TRANSFORM, **linear("classifier", "classifier")}

FAMILY = Family(
    model_type="modernbert",
    prefix="model.",
    heads={
        "mlm": Head(
            ("ModernBertForMaskedLM",), {**_TRANSFORM, "head/bias": Weight("decoder.bias")}, {"tied_head": True}
        ),
        "classification": Head(("ModernBertForSequenceClassification",), _CLASSIFIER, {"pooler": "transform"}),
        "tagging": Head(("ModernBertForTokenClassification",), _CLASSIFIER, {"pooler": "transform"}),
        "span": Head(("ModernBertForQuestionAnswering",), _CLASSIFIER, {"pooler": "transform"}),
        "none": Head(("ModernBertModel",)),
    },
    options={
        "vocab_size": ("vocab_size", REQUIRED),
        "hidden_size": ("hidden_size", REQUIRED),
        "num_layers": ("num_hidden_layers", REQUIRED),
        "num_heads": ("num_attention_heads", REQUIRED),
        "ffn_size": ("intermediate_size", REQUIRED),
        "max_positions": ("max_position_embeddings", REQUIRED),
        "norm_eps": ("norm_eps", 1e-5),
        "norm_bias": ("norm_bias", False),
        "ffn_bias": ("mlp_bias", False),
        "head_bias": ("decoder_bias", True),
        "transform_bias": ("classifier_bias", False),
        "embed_dropout": ("embedding_dropout", 0.0),
        "ffn_dropout": ("mlp_dropout", 0.0),
        "classifier_dropout": ("classifier_dropout", 0.0),
        "init_std": ("initializer_range", 0.02),
    },
    unsupported={
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "attention_dropout": 0.0,  # also of attention's output there
        "tie_word_embeddings": True,
        "rope_scaling": None,
    },
    fixed={
        "causal": False,
        "norm": "layernorm",
        "norm_order": "pre",
        "first_norm": False,
        "positions": "rotary",
        "token_types": 0,
        "embed_norm": True,
        "gated": True,
        "activation": "gelu",
        "classifier_bias": True,
    },
    weights={
        "embed/tokens/embedding": Weight("embeddings.tok_embeddings.weight"),
        **norm("embed/norm", "embeddings.norm"),
        **_fused("layers.{i}.attn.Wqkv", "layers/attn/q", "layers/attn/k", "layers/attn/v"),
        **linear("layers/attn/o", "layers.{i}.attn.Wo"),
        **_fused("layers.{i}.mlp.Wi", "layers/ffn/gate", "layers/ffn/up"),
        **linear("layers/ffn/down", "layers.{i}.mlp.Wo"),
        **_first(norm("layers/attn_norm", "layers.{i}.attn_norm"), 1),
        **norm("layers/ffn_norm", "layers.{i}.mlp_norm"),
        **norm("final_norm", "final_norm"),
    },
    copies={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    to_config=to_config,
    to_hf=to_hf,
)
