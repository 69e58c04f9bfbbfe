"""Mistral (Jiang et al. 2023): Llama without biases, with one window in all layers."""

from collections.abc import Mapping
from typing import Any

from ftjax.errors import UserError
from ftjax.hub import llama
from ftjax.hub.family import hf_activation
from ftjax.nn.config import Config


def to_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    if hf.get("layer_types") is not None:
        raise UserError("config.json: layer_types is not supported, a mistral model has one window in all layers")
    window = hf.get("sliding_window", 4096) or 0
    return {**llama.shape({"num_key_value_heads": 8, **hf}), **llama.rope(hf), "window": window}


def to_hf(cfg: Config) -> dict[str, Any]:
    return {"hidden_act": hf_activation(cfg.activation), "sliding_window": cfg.window or None, **llama.hf_rope(cfg)}


FAMILY = llama.FAMILY._replace(
    model_type="mistral",
    heads=llama.heads("Mistral"),
    options=llama.OPTIONS,
    fixed={**llama.fixed_but("window"), "qkv_bias": False, "out_bias": False, "ffn_bias": False},
    to_config=to_config,
    to_hf=to_hf,
)
