"""BART (Lewis et al. 2020) and mBART (Liu et al. 2020): names and options of the encoder-decoders.

Learned positions begin at row 2 of their tables. BART norms after each sublayer, mBART before, and once at the end.
"""

from collections.abc import Mapping
from typing import Any

from ftjax.errors import UserError
from ftjax.hub.family import REQUIRED, Family, Head, Weight, activation, head_dim, hf_activation, linear, norm
from ftjax.nn.config import Config


def _side(hf: Mapping[str, Any], side: str) -> dict[str, Any]:
    heads = hf.get(f"{side}_attention_heads", 16)
    return {
        "num_layers": hf.get(f"{side}_layers", 12),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": head_dim(hf["d_model"], heads),
        "ffn_size": hf.get(f"{side}_ffn_dim", 4096),
    }


def to_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_side(hf, "decoder"),
        "activation": activation(hf, "activation_function", "gelu"),
        "embed_scale": hf["d_model"] ** 0.5 if hf.get("scale_embedding") else 1.0,
    }


def encoder(hf: Mapping[str, Any]) -> dict[str, Any]:
    return {**_side(hf, "encoder"), "causal": False}


def to_hf(cfg: Config) -> dict[str, Any]:
    assert cfg.encoder is not None
    if cfg.embed_scale not in (1.0, cfg.hidden_size**0.5):
        raise UserError(f"a {cfg.family} checkpoint scales its embeddings by 1 or D ** 0.5, not {cfg.embed_scale:g}")
    sides = {
        f"{side}_{key}": getattr(one, field)
        for side, one in (("encoder", cfg.encoder), ("decoder", cfg))
        for key, field in (("layers", "num_layers"), ("attention_heads", "num_heads"), ("ffn_dim", "ffn_size"))
    }
    return {
        **sides,
        "activation_function": hf_activation(cfg.activation),
        "scale_embedding": cfg.embed_scale != 1,
        "is_encoder_decoder": True,
    }


def _stack(ours: str, theirs: str, cross: bool) -> dict[str, Weight]:
    layer = f"{theirs}.layers.{{i}}"
    weights = {
        f"{ours}embed/positions/embedding": Weight(f"{theirs}.embed_positions.weight"),
        **norm(f"{ours}embed/norm", f"{theirs}.layernorm_embedding"),
        **linear(f"{ours}layers/ffn/up", f"{layer}.fc1"),
        **linear(f"{ours}layers/ffn/down", f"{layer}.fc2"),
        **norm(f"{ours}layers/ffn_norm", f"{layer}.final_layer_norm"),
        **norm(f"{ours}final_norm", f"{theirs}.layer_norm"),
    }
    for name, module in [("attn", "self_attn"), *([("cross", "encoder_attn")] if cross else [])]:
        for x in "qkvo":
            weights |= linear(f"{ours}layers/{name}/{x}", f"{layer}.{module}.{'out' if x == 'o' else x}_proj")
        weights |= norm(f"{ours}layers/{name}_norm", f"{layer}.{module}_layer_norm")
    return weights


def _heads(name: str) -> dict[str, Head]:
    bias = Weight("final_logits_bias", lead=True)
    lm = {**linear("head", "lm_head", bias=False), "head/bias": bias}
    return {
        "lm": Head((f"{name}ForConditionalGeneration",), lm, {"head_bias": True}),
        "none": Head((f"{name}Model",)),
    }


BART = Family(
    model_type="bart",
    prefix="model.",
    heads=_heads("Bart"),
    options={
        "vocab_size": ("vocab_size", REQUIRED),
        "hidden_size": ("d_model", REQUIRED),
        "max_positions": ("max_position_embeddings", 1024),
        "hidden_dropout": ("dropout", 0.1),
        "embed_dropout": ("dropout", 0.1),
        "attention_dropout": ("attention_dropout", 0.0),
        "ffn_dropout": ("activation_dropout", 0.0),
        "init_std": ("init_std", 0.02),
        "tied_head": ("tie_word_embeddings", True),
    },
    unsupported={"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "is_decoder": False},
    fixed={
        "causal": True,
        "norm": "layernorm",
        "norm_order": "post",
        "positions": "learned",
        "position_offset": 2,
        "token_types": 0,
        "embed_norm": True,
        "gated": False,
        "qkv_bias": True,
        "out_bias": True,
        "ffn_bias": True,
    },
    weights={
        "embed/tokens/embedding": Weight("shared.weight"),
        **_stack("encoder/", "encoder", cross=False),
        **_stack("", "decoder", cross=True),
    },
    to_config=to_config,
    to_hf=to_hf,
    encoder=encoder,
    copies={
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
        "lm_head.weight": "model.shared.weight",
    },
    decoding={"forced_eos_token_id": 2},
)
MBART = BART._replace(model_type="mbart", heads=_heads("MBart"), fixed={**BART.fixed, "norm_order": "pre"})
