"""Llama (Touvron et al. 2023, Grattafiori et al. 2024): names and options, which other decoders share."""

from collections.abc import Callable, Mapping
from typing import Any

from ftjax.errors import UserError
from ftjax.hub.family import LAST_TOKEN, REQUIRED, Family, Head, Weight, activation, head_dim, hf_activation, linear
from ftjax.nn.config import Config, RopeScaling

FULL, SLIDING = "full_attention", "sliding_attention"
LLAMA3 = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def to_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    bias = hf.get("attention_bias", False)
    return {**shape(hf), **rope(hf), "qkv_bias": bias, "out_bias": bias}


def shape(hf: Mapping[str, Any], key: str = "hidden_act", act: str = "silu") -> dict[str, Any]:
    """Heads and activation (of that key), with their defaults."""
    heads = hf["num_attention_heads"]
    return {
        "num_kv_heads": hf.get("num_key_value_heads") or heads,
        "head_dim": hf.get("head_dim") or head_dim(hf["hidden_size"], heads),
        "activation": activation(hf, key, act),
    }


def rope(hf: Mapping[str, Any], theta: float = 10000.0) -> dict[str, Any]:
    """Rotary options; UserError for a scaling that we do not have. transformers 5 writes rope_parameters; files before
    it rope_theta and rope_scaling."""
    key = "rope_parameters" if hf.get("rope_parameters") else "rope_scaling"
    given = {"partial_rotary_factor": hf.get("partial_rotary_factor", 1.0), **(hf.get(key) or {})}
    return {"rope_theta": float(given.get("rope_theta", hf.get("rope_theta", theta))), **scaling(key, given)}


def scaling(key: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The scaling that one set of rope options asks for."""
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "linear", "llama3") or given.get("partial_rotary_factor", 1.0) != 1.0:
        known = "rope_type 'default', 'linear' or 'llama3' over the whole head"
        raise UserError(f"config.json: {key}={dict(given)!r} is not supported, only {known}")
    if kind == "default":
        return {"rope_scaling": None}
    wanted = ("factor", *(LLAMA3 if kind == "llama3" else ()))
    if missing := [name for name in wanted if name not in given]:
        raise UserError(f"config.json: {key} of rope_type {kind!r} needs {', '.join(missing)}")
    factor, *more = (given[name] for name in wanted)
    return {"rope_scaling": RopeScaling(kind, float(factor), *more)}


def hf_scaling(scaling: RopeScaling | None) -> dict[str, Any]:
    """Inverts `scaling`."""
    if scaling is None:
        return {"rope_type": "default"}
    more = dict(zip(LLAMA3, scaling[2:])) if scaling.kind == "llama3" else {}
    return {"rope_type": scaling.kind, "factor": scaling.factor, **more}


def hf_rope(cfg: Config) -> dict[str, Any]:
    """Inverts `rope`."""
    parameters = {"rope_theta": cfg.rope_theta, **hf_scaling(cfg.rope_scaling)}
    old = None if cfg.rope_scaling is None else hf_scaling(cfg.rope_scaling)
    return {"rope_parameters": parameters, "rope_theta": cfg.rope_theta, "rope_scaling": old}


def two_ropes(hf: Mapping[str, Any], full: tuple[str, float], near: tuple[str, float]) -> dict[str, Any]:
    """Rotary options where layers with a window have a base of their own. transformers 5 writes rope_parameters by kind
    of layer; files before it have a key of each base (given with its default), and a rope_scaling of the others."""
    given = hf.get("rope_parameters") or {}
    if not {FULL, SLIDING}.issuperset(given):
        raise UserError(f"config.json: rope_parameters={given!r} needs those of {FULL!r} and {SLIDING!r}")
    everywhere, nearby = (
        {"rope_theta": hf.get(key, default), **(given.get(kind) or {})}
        for kind, (key, default) in ((FULL, full), (SLIDING, near))
    )
    if scaling("rope_parameters", nearby)["rope_scaling"] is not None:
        raise UserError(f"config.json: rope_parameters={given!r} is not supported, only a scaling of {FULL!r}")
    everywhere |= hf.get("rope_scaling") or {}
    theta = float(everywhere["rope_theta"])
    bases = {"rope_theta": theta, "window_rope_theta": float(nearby["rope_theta"] or theta)}
    return {**bases, **scaling("rope_parameters", everywhere)}


def hf_two_ropes(cfg: Config, near: float) -> dict[str, Any]:
    """Inverts `two_ropes`: rope_parameters by kind of layer."""
    full = {"rope_theta": cfg.rope_theta, **hf_scaling(cfg.rope_scaling)}
    return {FULL: full, SLIDING: {"rope_theta": near, **hf_scaling(None)}}


def windows(hf: Mapping[str, Any], window: int | None, full: Callable[[int], bool]) -> dict[str, Any]:
    """The window, and the layers without it: those of `layer_types` or, in files before it, those that `full` says.

    Raises:
      UserError: layer types that we do not have, or a layer with a window that has no size.
    """
    layers = hf["num_hidden_layers"]
    types = hf.get("layer_types") or [FULL if full(i) else SLIDING for i in range(layers)]
    if len(types) != layers or not {FULL, SLIDING}.issuperset(types):
        raise UserError(f"config.json: layer_types={types!r} is not {FULL!r} or {SLIDING!r} of {layers} layers")
    everywhere = tuple(i for i, kind in enumerate(types) if kind == FULL)
    if len(everywhere) == layers:
        return {"window": 0, "global_layers": ()}
    if not window:
        raise UserError(f"config.json: layer_types={types!r} needs a sliding_window")
    return {"window": window, "global_layers": everywhere}


def hf_layer_types(cfg: Config) -> list[str]:
    """Inverts `windows`."""
    return [SLIDING if cfg.window and i not in cfg.global_layers else FULL for i in range(cfg.num_layers)]


def fixed_but(*fields: str) -> dict[str, Any]:
    """What never differs in Llama, but for these fields."""
    return {field: value for field, value in FAMILY.fixed.items() if field not in fields}


def to_hf(cfg: Config) -> dict[str, Any]:
    if cfg.qkv_bias != cfg.out_bias:
        raise UserError(
            f"a {cfg.family} checkpoint needs qkv_bias = out_bias (its attention_bias), got {cfg.qkv_bias} and "
            f"{cfg.out_bias}"
        )
    return {"attention_bias": cfg.qkv_bias, "hidden_act": hf_activation(cfg.activation), **hf_rope(cfg)}


def heads(name: str) -> dict[str, Head]:
    """The heads of a decoder whose classes begin with `name`."""
    return {
        "lm": Head((f"{name}ForCausalLM",), linear("head", "lm_head", bias=False)),
        "classification": Head(
            (f"{name}ForSequenceClassification",), linear("classifier", "score", bias=False), LAST_TOKEN
        ),
        "tagging": Head((f"{name}ForTokenClassification",), linear("classifier", "score")),
        "none": Head((f"{name}Model",)),
    }


OPTIONS = {
    "vocab_size": ("vocab_size", REQUIRED),
    "hidden_size": ("hidden_size", REQUIRED),
    "num_layers": ("num_hidden_layers", REQUIRED),
    "num_heads": ("num_attention_heads", REQUIRED),
    "num_kv_heads": ("num_key_value_heads", None),
    "head_dim": ("head_dim", None),
    "ffn_size": ("intermediate_size", REQUIRED),
    "max_positions": ("max_position_embeddings", REQUIRED),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "attention_dropout": ("attention_dropout", 0.0),
    "init_std": ("initializer_range", 0.02),
    "tied_head": ("tie_word_embeddings", False),
}
QK_NORMS = {f"layers/attn/{x}_norm/scale": Weight(f"layers.{{i}}.self_attn.{x}_norm.weight") for x in "qk"}
FAMILY = Family(
    model_type="llama",
    prefix="model.",
    heads=heads("Llama"),
    options={**OPTIONS, "ffn_bias": ("mlp_bias", False)},
    unsupported={},
    fixed={
        "causal": True,
        "norm": "rmsnorm",
        "norm_order": "pre",
        "norm_plus_one": False,
        "positions": "rotary",
        "window": 0,
        "global_layers": (),
        "window_rope_theta": 0.0,
        "token_types": 0,
        "embed_norm": False,
        "embed_scale": 1.0,
        "qk_norm": "none",
        "attention_scale": 0.0,
        "attention_softcap": 0.0,
        "logit_softcap": 0.0,
        "gated": True,
    },
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
    },
    ignored=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    copies={"lm_head.weight": "model.embed_tokens.weight"},
    to_config=to_config,
    to_hf=to_hf,
)
