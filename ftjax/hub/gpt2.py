"""GPT-2 (Radford et al. 2019): names and options. Its Conv1D kernels are [in, out] as ours, q, k and v fused."""

from collections.abc import Mapping
from typing import Any

from ftjax.hub.family import (
    LAST_TOKEN,
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
    return {
        "num_kv_heads": hf["n_head"],
        "head_dim": head_dim(hf["n_embd"], hf["n_head"]),
        "ffn_size": hf.get("n_inner") or 4 * hf["n_embd"],
        "activation": activation(hf, "activation_function", "gelu_new"),
    }


def to_hf(cfg: Config) -> dict[str, Any]:
    plain_heads(cfg, "gpt2")
    return {"n_inner": cfg.ffn_size, "activation_function": hf_activation(cfg.activation)}


def _attention(leaf: str, name: str) -> dict[str, Weight]:
    fused = {f"layers/attn/{x}/{leaf}": Weight(f"h.{{i}}.attn.c_attn.{name}", False, n, 3) for n, x in enumerate("qkv")}
    return {**fused, f"layers/attn/o/{leaf}": Weight(f"h.{{i}}.attn.c_proj.{name}")}


FAMILY = Family(
    model_type="gpt2",
    prefix="transformer.",
    heads={
        "lm": Head(("GPT2LMHeadModel",), {"head/kernel": Weight("lm_head.weight", transpose=True)}),
        "classification": Head(
            ("GPT2ForSequenceClassification",), linear("classifier", "score", bias=False), LAST_TOKEN
        ),
        "tagging": Head(("GPT2ForTokenClassification",), linear("classifier", "classifier")),
        "none": Head(("GPT2Model",)),
    },
    options={
        "vocab_size": ("vocab_size", REQUIRED),
        "hidden_size": ("n_embd", REQUIRED),
        "num_layers": ("n_layer", REQUIRED),
        "num_heads": ("n_head", REQUIRED),
        "max_positions": ("n_positions", REQUIRED),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "embed_dropout": ("embd_pdrop", 0.1),
        "attention_dropout": ("attn_pdrop", 0.1),
        "hidden_dropout": ("resid_pdrop", 0.1),
        "init_std": ("initializer_range", 0.02),
        "tied_head": ("tie_word_embeddings", True),
    },
    unsupported={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    fixed={
        "causal": True,
        "norm": "layernorm",
        "norm_order": "pre",
        "positions": "learned",
        "token_types": 0,
        "embed_norm": False,
        "gated": False,
        "qkv_bias": True,
        "out_bias": True,
        "ffn_bias": True,
    },
    weights={
        "embed/tokens/embedding": Weight("wte.weight"),
        "embed/positions/embedding": Weight("wpe.weight"),
        **_attention("kernel", "weight"),
        **_attention("bias", "bias"),
        **norm("layers/attn_norm", "h.{i}.ln_1"),
        **norm("layers/ffn_norm", "h.{i}.ln_2"),
        "layers/ffn/up/kernel": Weight("h.{i}.mlp.c_fc.weight"),
        "layers/ffn/up/bias": Weight("h.{i}.mlp.c_fc.bias"),
        "layers/ffn/down/kernel": Weight("h.{i}.mlp.c_proj.weight"),
        "layers/ffn/down/bias": Weight("h.{i}.mlp.c_proj.bias"),
        **norm("final_norm", "ln_f"),
    },
    ignored=r"h\.\d+\.attn\.(bias|masked_bias)",
    copies={"lm_head.weight": "transformer.wte.weight"},
    to_config=to_config,
    to_hf=to_hf,
)
