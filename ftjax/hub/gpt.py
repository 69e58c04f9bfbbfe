"""GPT (Radford et al. 2018): GPT-2's names but for the embeddings, with its norms after the residuals."""

from collections.abc import Mapping
from typing import Any

from ftjax.errors import UserError
from ftjax.hub import gpt2
from ftjax.hub.family import LAST_TOKEN, Head, Weight, head_dim, linear, plain_heads
from ftjax.nn.config import Config

ACTIVATIONS = {"gelu": "gelu_tanh", "silu": "silu", "swish": "silu", "relu": "relu"}  # of `afn`


def to_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    act = hf.get("afn", "gelu")
    if act not in ACTIVATIONS:
        raise UserError(f"config.json: afn={act!r} is not supported; known: {', '.join(ACTIVATIONS)}")
    return {
        "num_kv_heads": hf["n_head"],
        "head_dim": head_dim(hf["n_embd"], hf["n_head"]),
        "ffn_size": 4 * hf["n_embd"],
        "activation": ACTIVATIONS[act],
    }


def to_hf(cfg: Config) -> dict[str, Any]:
    plain_heads(cfg, "openai-gpt")
    act = next((theirs for theirs, ours in ACTIVATIONS.items() if ours == cfg.activation), None)
    if act is None or cfg.ffn_size != 4 * cfg.hidden_size:
        raise UserError(
            f"an openai-gpt checkpoint needs ffn_size = 4 hidden_size and an activation of "
            f"{', '.join(ACTIVATIONS.values())}, got {cfg.ffn_size} and {cfg.activation}"
        )
    return {"afn": act}


FAMILY = gpt2.FAMILY._replace(
    model_type="openai-gpt",
    heads={
        "lm": Head(("OpenAIGPTLMHeadModel",), linear("head", "lm_head", bias=False)),
        "classification": Head(
            ("OpenAIGPTForSequenceClassification",), linear("classifier", "score", bias=False), LAST_TOKEN
        ),
        "none": Head(("OpenAIGPTModel",)),
    },
    unsupported={},
    fixed={**gpt2.FAMILY.fixed, "norm_order": "post"},
    weights={path: weight for path, weight in gpt2.FAMILY.weights.items() if "final_norm" not in path}
    | {
        "embed/tokens/embedding": Weight("tokens_embed.weight"),
        "embed/positions/embedding": Weight("positions_embed.weight"),
    },
    ignored=r"h\.\d+\.attn\.bias|position_ids",
    copies={"lm_head.weight": "transformer.tokens_embed.weight"},
    to_config=to_config,
    to_hf=to_hf,
)
