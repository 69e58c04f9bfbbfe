"""Qwen2 and 2.5 (Yang et al. 2024) with biases of queries, keys and values; Qwen3 (Yang et al. 2025) with their norms.

Both may have a window in some layers: the last ones, where no list says which.
"""

from collections.abc import Mapping
from typing import Any

from ftjax.hub import llama
from ftjax.hub.family import hf_activation
from ftjax.nn.config import Config


def to_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    window = hf.get("sliding_window", 4096) if hf.get("use_sliding_window", False) else None
    first = hf.get("max_window_layers", 28)
    windows = llama.windows(hf, window, lambda i: window is None or i < first)
    return {**llama.shape({"num_key_value_heads": 32, **hf}), **llama.rope(hf), **windows}


def to_hf(cfg: Config) -> dict[str, Any]:
    types = llama.hf_layer_types(cfg)
    return {
        "hidden_act": hf_activation(cfg.activation),
        "use_sliding_window": cfg.window > 0,
        "sliding_window": cfg.window or None,
        "max_window_layers": types.count(llama.FULL),
        "layer_types": types,
        **llama.hf_rope(cfg),
    }


def to_config3(hf: Mapping[str, Any]) -> dict[str, Any]:
    bias = hf.get("attention_bias", False)
    return {**to_config({"head_dim": 128, **hf}), "qkv_bias": bias, "out_bias": bias}


def to_hf3(cfg: Config) -> dict[str, Any]:
    return {**llama.to_hf(cfg), **to_hf(cfg)}


QWEN2 = llama.FAMILY._replace(
    model_type="qwen2",
    heads=llama.heads("Qwen2"),
    options=llama.OPTIONS,
    fixed={**llama.fixed_but("window", "global_layers"), "qkv_bias": True, "out_bias": False, "ffn_bias": False},
    to_config=to_config,
    to_hf=to_hf,
)
QWEN3 = llama.FAMILY._replace(
    model_type="qwen3",
    heads=llama.heads("Qwen3"),
    options=llama.OPTIONS,
    fixed={**llama.fixed_but("window", "global_layers"), "qk_norm": "head", "ffn_bias": False},
    weights={**llama.FAMILY.weights, **llama.QK_NORMS},
    to_config=to_config3,
    to_hf=to_hf3,
)
