"""Gemma 2 (Gemma team 2024) and the text model of Gemma 3 (2025): norms before and after attention and FFN that scale
by 1 + weight, scaled embeddings, and windows in most layers. Gemma 2 caps scores and logits; Gemma 3 norms queries and
keys, and rotates by a base of its own where there is a window.
"""

from collections.abc import Mapping
from typing import Any

from ftjax.errors import UserError
from ftjax.hub import llama
from ftjax.hub.family import Weight, hf_activation
from ftjax.nn.config import Config


def _common(hf: Mapping[str, Any], every: int) -> dict[str, Any]:
    hf, bias = {"num_key_value_heads": 4, "head_dim": 256, **hf}, hf.get("attention_bias", False)
    return {
        **llama.shape(hf, "hidden_activation", "gelu_pytorch_tanh"),
        **llama.windows(hf, hf.get("sliding_window", 4096), lambda i: (i + 1) % every == 0),
        "qkv_bias": bias,
        "out_bias": bias,
        "embed_scale": hf["hidden_size"] ** 0.5,
        "attention_scale": hf.get("query_pre_attn_scalar", 256) ** -0.5,
    }


def _hf_common(cfg: Config) -> dict[str, Any]:
    scalar = round((cfg.attention_scale or cfg.head_dim**-0.5) ** -2)
    if cfg.embed_scale != cfg.hidden_size**0.5 or cfg.attention_scale not in (0, scalar**-0.5):
        raise UserError(
            f"a {cfg.family} checkpoint needs embed_scale = hidden_size ** 0.5 and attention_scale = n ** -0.5, got "
            f"{cfg.embed_scale} and {cfg.attention_scale}"
        )
    return {
        **llama.to_hf(cfg),
        "hidden_activation": hf_activation(cfg.activation),
        "query_pre_attn_scalar": scalar,
        "sliding_window": cfg.window or cfg.max_positions,
        "layer_types": llama.hf_layer_types(cfg),
        "final_logit_softcapping": cfg.logit_softcap or None,
    }


def to_config2(hf: Mapping[str, Any]) -> dict[str, Any]:
    caps = {
        "logit_softcap": hf.get("final_logit_softcapping", 30.0) or 0.0,
        "attention_softcap": hf.get("attn_logit_softcapping", 50.0) or 0.0,
    }
    return {**_common(hf, 2), **llama.rope(hf), **caps}


def to_hf2(cfg: Config) -> dict[str, Any]:
    return {**_hf_common(cfg), "attn_logit_softcapping": cfg.attention_softcap or None}


def to_config3(hf: Mapping[str, Any]) -> dict[str, Any]:
    cap = hf.get("final_logit_softcapping") or 0.0
    return {
        **_common(hf, hf.get("sliding_window_pattern", 6)),
        **llama.two_ropes(hf, ("rope_theta", 1e6), ("rope_local_base_freq", 1e4)),
        "logit_softcap": cap,
    }


def to_hf3(cfg: Config) -> dict[str, Any]:
    if cfg.rope_scaling is not None and not cfg.window_rope_theta:
        raise UserError("a gemma3_text checkpoint scales rotations without a window alone: it needs window_rope_theta")
    hf, near = _hf_common(cfg), cfg.window_rope_theta or cfg.rope_theta
    return {**hf, "rope_parameters": llama.hf_two_ropes(cfg, near), "rope_local_base_freq": near}


SCALES = ("window", "global_layers", "embed_scale", "attention_scale", "logit_softcap")
SANDWICH = {"norm_order": "sandwich", "norm_plus_one": True, "ffn_bias": False}
WEIGHTS = {
    **llama.FAMILY.weights,
    "layers/attn_post_norm/scale": Weight("layers.{i}.post_attention_layernorm.weight"),
    "layers/ffn_norm/scale": Weight("layers.{i}.pre_feedforward_layernorm.weight"),
    "layers/ffn_post_norm/scale": Weight("layers.{i}.post_feedforward_layernorm.weight"),
}
OPTIONS = {**llama.OPTIONS, "tied_head": ("tie_word_embeddings", True)}
HEADS3 = llama.heads("Gemma3Text")
GEMMA2 = llama.FAMILY._replace(
    model_type="gemma2",
    heads=llama.heads("Gemma2"),
    options=OPTIONS,
    unsupported={"use_bidirectional_attention": None},
    fixed={**llama.fixed_but(*SCALES, "attention_softcap"), **SANDWICH},
    weights=WEIGHTS,
    to_config=to_config2,
    to_hf=to_hf2,
)
GEMMA3 = llama.FAMILY._replace(
    model_type="gemma3_text",
    heads={"lm": llama.heads("Gemma3")["lm"], "classification": HEADS3["classification"], "none": HEADS3["none"]},
    options=OPTIONS,
    unsupported={"use_bidirectional_attention": False, "attn_logit_softcapping": None},
    fixed={**llama.fixed_but(*SCALES, "window_rope_theta"), **SANDWICH, "qk_norm": "head"},
    weights={**WEIGHTS, **llama.QK_NORMS},
    to_config=to_config3,
    to_hf=to_hf3,
)
