"""What a Transformer can be: the named options of the one block that every model family is made of."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape and options of a Transformer, decoder (`causal`) or encoder.

    Dropout rates are the model's own. `dtype` is the compute dtype: parameters keep the dtype they are stored in, and
    norms, softmax, logits and losses are fp32 whatever it is. `scan_unroll` rows of the layer stack run per scan
    iteration; -1 runs them without a scan (in decoding: the steps, not the prefill).
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    max_positions: int
    causal: bool = True
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: float = 1e-5
    norm_first: bool = True
    positions: Literal["learned", "rotary"] = "learned"
    rope_theta: float = 10000.0
    token_types: int = 0
    embed_norm: bool = False
    activation: Literal["gelu", "gelu_tanh", "silu", "relu"] = "gelu_tanh"
    gated: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    ffn_bias: bool = True
    tied_head: bool = True
    pooler: bool = False
    embed_dropout: float = 0.0
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    classifier_dropout: float = 0.0
    init_std: float = 0.02
    head: Literal["lm", "mlm", "classification", "none"] = "lm"
    num_classes: int = 0
    classifier_bias: bool = True
    pooling: Literal["first", "last", "mean"] = "last"
    dtype: Any = jnp.float32
    scan_unroll: int = 1
    remat: bool = False

    def replace(self, **fields: Any) -> "Config":
        """The same model with other options."""
        return dataclasses.replace(self, **fields)
