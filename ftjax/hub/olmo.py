"""OLMo 2 (OLMo team 2024): Llama with norms after attention and FFN, and of all queries and of all keys."""

from ftjax.hub import llama
from ftjax.hub.family import Weight

HEADS = llama.heads("Olmo2")
REORDERED = {
    "layers/attn_norm/scale": Weight("layers.{i}.post_attention_layernorm.weight"),
    "layers/ffn_norm/scale": Weight("layers.{i}.post_feedforward_layernorm.weight"),
}
FAMILY = llama.FAMILY._replace(
    model_type="olmo2",
    heads={head: HEADS[head] for head in ("lm", "classification", "none")},
    options={**llama.OPTIONS, "norm_eps": ("rms_norm_eps", 1e-5)},
    fixed={**llama.fixed_but(), "norm_order": "reordered", "qk_norm": "all", "ffn_bias": False},
    weights={**llama.FAMILY.weights, **llama.QK_NORMS, **REORDERED},
)
