"""Llama (Touvron et al. 2023): names and options, with grouped keys and values and any head_dim."""

from collections.abc import Mapping
from typing import Any

from ftjax.errors import UserError
from ftjax.hub.family import REQUIRED, Family, Weight, activation, head_dim, hf_activation, linear
from ftjax.nn.config import Config


def to_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    heads, bias = hf["num_attention_heads"], hf.get("attention_bias", False)
    return {
        "num_kv_heads": hf.get("num_key_value_heads") or heads,
        "head_dim": hf.get("head_dim") or head_dim(hf["hidden_size"], heads),
        "rope_theta": _rope_theta(hf),
        "activation": activation(hf, "hidden_act", "silu"),
        "qkv_bias": bias,
        "out_bias": bias,
    }


def _rope_theta(hf: Mapping[str, Any]) -> float:
    # transformers 5 writes rope_parameters; files before it rope_theta and rope_scaling.
    key = "rope_parameters" if hf.get("rope_parameters") else "rope_scaling"
    rope = hf.get(key) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"config.json: {key}={rope!r} is not supported, only rope_type 'default' over the whole head")
    return float(rope.get("rope_theta", hf.get("rope_theta", 10000.0)))


def to_hf(cfg: Config) -> dict[str, Any]:
    if cfg.qkv_bias != cfg.out_bias:
        raise UserError(
            f"a llama checkpoint needs qkv_bias = out_bias (its attention_bias), got {cfg.qkv_bias} and {cfg.out_bias}"
        )
    return {
        "attention_bias": cfg.qkv_bias,
        "hidden_act": hf_activation(cfg.activation),
        "rope_parameters": {"rope_theta": cfg.rope_theta, "rope_type": "default"},
        "rope_theta": cfg.rope_theta,
    }


FAMILY = Family(
    model_type="llama",
    prefix="model.",
    architectures={"LlamaForCausalLM": "lm", "LlamaForSequenceClassification": "classification", "LlamaModel": "none"},
    options={
        "vocab_size": ("vocab_size", REQUIRED),
        "hidden_size": ("hidden_size", REQUIRED),
        "num_layers": ("num_hidden_layers", REQUIRED),
        "num_heads": ("num_attention_heads", REQUIRED),
        "num_kv_heads": ("num_key_value_heads", None),
        "head_dim": ("head_dim", None),
        "ffn_size": ("intermediate_size", REQUIRED),
        "max_positions": ("max_position_embeddings", REQUIRED),
        "norm_eps": ("rms_norm_eps", 1e-6),
        "ffn_bias": ("mlp_bias", False),
        "attention_dropout": ("attention_dropout", 0.0),
        "init_std": ("initializer_range", 0.02),
        "tied_head": ("tie_word_embeddings", False),
    },
    unsupported={},
    fixed={
        "causal": True,
        "norm": "rmsnorm",
        "norm_first": True,
        "positions": "rotary",
        "token_types": 0,
        "embed_norm": False,
        "gated": True,
    },
    classification={"pooler": False, "classifier_bias": False, "pooling": "last"},
    weights={
        "embed/tokens/embedding": Weight("embed_tokens.weight"),
        **linear("layers/attn/q", "layers.{i}.self_attn.q_proj"),
        **linear("layers/attn/k", "layers.{i}.self_attn.k_proj"),
        **linear("layers/attn/v", "layers.{i}.self_attn.v_proj"),
        **linear("layers/attn/o", "layers.{i}.self_attn.o_proj"),
        **linear("layers/ffn/gate", "layers.{i}.mlp.gate_proj"),
        **linear("layers/ffn/up", "layers.{i}.mlp.up_proj"),
        **linear("layers/ffn/down", "layers.{i}.mlp.down_proj"),
        "layers/attn_norm/scale": Weight("layers.{i}.input_layernorm.weight"),
        "layers/ffn_norm/scale": Weight("layers.{i}.post_attention_layernorm.weight"),
        "final_norm/scale": Weight("norm.weight"),
        "head/kernel": Weight("lm_head.weight", transpose=True),
        "classifier/kernel": Weight("score.weight", transpose=True),
    },
    ignored=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    copies={"lm_head.weight": "embed_tokens.weight"},
    renamed={},
    to_config=to_config,
    to_hf=to_hf,
)
