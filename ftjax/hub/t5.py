"""T5 and T5 v1.1 (Raffel et al. 2020; Shazeer 2020): names and options of the encoder-decoder.

Relative positions, no biases, no scaling of the scores. The first T5 ties the head and scales what it reads by
D ** -0.5; v1.1 gates its FFN, with a head of its own and unscaled.
"""

from collections.abc import Mapping
from typing import Any

from ftjax.errors import UserError
from ftjax.hub.family import ACTIVATIONS, REQUIRED, Family, Head, Weight, hf_activation, linear
from ftjax.nn.config import Config


def to_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    name = hf.get("feed_forward_proj", "relu")
    act = "gelu_new" if name == "gated-gelu" else name.removeprefix("gated-")
    if act not in ACTIVATIONS:
        raise UserError(f"config.json: feed_forward_proj={name!r} is not supported; known: {', '.join(ACTIVATIONS)}")
    tied = hf.get("tie_word_embeddings", True)
    return {
        "num_layers": hf.get("num_decoder_layers") or hf["num_layers"],
        "num_kv_heads": hf["num_heads"],
        "max_positions": hf.get("n_positions", 512),
        "activation": ACTIVATIONS[act],
        "gated": name.startswith("gated-"),
        "head_scale": hf["d_model"] ** -0.5 if hf.get("scale_decoder_outputs", tied) else 1.0,
        "tied_head": tied,
    }


def encoder(hf: Mapping[str, Any]) -> dict[str, Any]:
    return {"causal": False, "num_layers": hf["num_layers"], "head_scale": 1.0}


def to_hf(cfg: Config) -> dict[str, Any]:
    assert cfg.encoder is not None
    act = hf_activation(cfg.activation)
    gate = "gated-gelu" if act == "gelu_new" else f"gated-{act}"
    return {
        "feed_forward_proj": gate if cfg.gated else act,
        "num_layers": cfg.encoder.num_layers,
        "num_decoder_layers": cfg.num_layers,
        "n_positions": cfg.max_positions,
        "tie_word_embeddings": cfg.tied_head,
        "scale_decoder_outputs": cfg.head_scale != 1,
        "is_encoder_decoder": True,
        "decoder_start_token_id": 0,
    }


RELATIVE = "SelfAttention.relative_attention_bias.weight"


def _stack(ours: str, theirs: str, cross: bool, up: str) -> dict[str, Weight]:
    names = [("attn", "SelfAttention"), *([("cross", "EncDecAttention")] if cross else [])]
    attention = {
        f"{ours}layers/{name}/{x}/kernel": Weight(f"{theirs}.block.{{i}}.layer.{n}.{module}.{x}.weight", True)
        for n, (name, module) in enumerate(names)
        for x in "qkvo"
    }
    norms = {
        f"{ours}layers/{name}_norm/scale": Weight(f"{theirs}.block.{{i}}.layer.{n}.layer_norm.weight")
        for n, name in enumerate([*(name for name, _ in names), "ffn"])
    }
    ffn = f"{theirs}.block.{{i}}.layer.{len(names)}.DenseReluDense"
    return {
        f"{ours}relative/bias/embedding": Weight(f"{theirs}.block.0.layer.0.{RELATIVE}"),
        **attention,
        **norms,
        **linear(f"{ours}layers/ffn/gate", f"{ffn}.wi_0", bias=False),
        f"{ours}layers/ffn/up/kernel": Weight(f"{ffn}.{up}.weight", transpose=True),
        **linear(f"{ours}layers/ffn/down", f"{ffn}.wo", bias=False),
        f"{ours}final_norm/scale": Weight(f"{theirs}.final_layer_norm.weight"),
    }


def _weights(up: str) -> dict[str, Weight]:
    return {**_stack("encoder/", "encoder", cross=False, up=up), **_stack("", "decoder", cross=True, up=up)}


FAMILY = Family(
    model_type="t5",
    prefix="",
    heads={
        "lm": Head(("T5ForConditionalGeneration", "T5WithLMHeadModel"), linear("head", "lm_head", bias=False)),
        "none": Head(("T5Model",)),
    },
    options={
        "vocab_size": ("vocab_size", REQUIRED),
        "hidden_size": ("d_model", REQUIRED),
        "num_heads": ("num_heads", REQUIRED),
        "head_dim": ("d_kv", REQUIRED),
        "ffn_size": ("d_ff", REQUIRED),
        "relative_buckets": ("relative_attention_num_buckets", 32),
        "relative_distance": ("relative_attention_max_distance", 128),
        "norm_eps": ("layer_norm_epsilon", 1e-6),
        "hidden_dropout": ("dropout_rate", 0.1),
        "embed_dropout": ("dropout_rate", 0.1),
        "attention_dropout": ("dropout_rate", 0.1),
        "ffn_dropout": ("dropout_rate", 0.1),
        "final_dropout": ("dropout_rate", 0.1),
    },
    unsupported={},
    fixed={
        "causal": True,
        "norm": "rmsnorm",
        "norm_order": "pre",
        "positions": "t5",
        "attention_scale": 1.0,
        "token_types": 0,
        "embed_norm": False,
        "qkv_bias": False,
        "out_bias": False,
        "ffn_bias": False,
    },
    weights={"embed/tokens/embedding": Weight("shared.weight"), **_weights("wi")},
    gated=_weights("wi_1"),
    to_config=to_config,
    to_hf=to_hf,
    encoder=encoder,
    ignored=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    copies={
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    },
)
