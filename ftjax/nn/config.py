"""What a Transformer can be: the named options of the one block that every model family is made of."""

import dataclasses
import sys
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp


class RopeScaling(NamedTuple):
    """Slower rotations for longer contexts: all by `factor` ('linear', Chen et al. 2023), or those of low frequency
    only, with a ramp between ('llama3', Grattafiori et al. 2024)."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192


DROPOUTS = ("embed_dropout", "attention_dropout", "hidden_dropout", "ffn_dropout", "final_dropout")  # of the body
OF_BOTH = ("dtype", "attention", "max_segments", "scan_unroll", "remat", *DROPOUTS)  # a decoder's and its encoder's


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape and options of a Transformer: a decoder (`causal`), an encoder, or the decoder of an `encoder`.

    Dropout rates are the model's own. `dtype` is the compute dtype: parameters keep the dtype they are stored in, and
    norms, softmax, logits and losses are fp32 whatever it is. `scan_unroll` rows of the layer stack run per scan
    iteration; -1 runs them without a scan (in decoding: the steps, not the prefill). `family` is the Hugging Face
    model_type that a checkpoint of this model has.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    max_positions: int
    family: str = ""
    causal: bool = True
    encoder: "Config | None" = None  # attended to in every layer; it shares the token embedding
    shared_layers: bool = False  # one layer's parameters (and adapters) serve all `num_layers` (ALBERT)

    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: float = 1e-5
    norm_bias: bool = True  # of a layernorm
    norm_plus_one: bool = False  # scales by 1 + scale (Gemma)
    norm_order: Literal["pre", "post", "sandwich", "reordered"] = "pre"  # see `ftjax.nn.block`
    first_norm: bool = True  # before the first layer's attention (not in ModernBERT)

    positions: Literal["learned", "rotary", "t5", "disentangled"] = "learned"
    position_offset: int = 0  # rows of the learned table before position 0
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    relative_buckets: int = 32  # of t5 and disentangled positions
    relative_distance: int = 128  # where the last bucket begins
    conv_size: int = 0  # of a convolution of the embeddings beside the first layer (DeBERTa v2 XL); odd; 0: none
    window: int = 0  # how many tokens a query sees, itself included (an encoder's: on each side); 0: all
    global_layers: tuple[int, ...] = ()  # layers without the window
    window_rope_theta: float = 0.0  # of layers with the window, without scaling; 0: as the others

    embed_size: int = 0  # of the token table, then projected to hidden_size; 0: hidden_size
    embed_scale: float = 1.0
    token_types: int = 0
    embed_norm: bool = False

    qk_norm: Literal["none", "head", "all"] = "none"  # queries and keys are normed: each head's, or all heads as one
    attention_scale: float = 0.0  # 0: head_dim ** -0.5
    attention_softcap: float = 0.0  # tanh cap of the scores (Gemma 2); 0: none
    activation: Literal["gelu", "gelu_tanh", "silu", "relu"] = "gelu_tanh"
    gated: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    ffn_bias: bool = True

    embed_dropout: float = 0.0
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    ffn_dropout: float = 0.0  # of the activations
    final_dropout: float = 0.0  # after the final norm (T5)
    init_std: float = 0.02

    head: Literal["lm", "mlm", "pretraining", "rtd", "classification", "tagging", "span", "none"] = "lm"
    tied_head: bool = True
    head_bias: bool = False  # of the vocabulary logits
    head_scale: float = 1.0  # of the hidden states before a vocabulary head (T5 with a tied one)
    logit_softcap: float = 0.0
    transform_bias: bool = True  # of the dense layer before masked-word logits
    num_classes: int = 0
    classifier_bias: bool = True
    classifier_dropout: float = 0.0
    pooling: Literal["first", "last", "mean", "max"] = "last"
    pooler: Literal["none", "dense", "transform"] = "none"  # before the classifier; or the masked head's
    pooler_activation: Literal["tanh", "gelu", "gelu_tanh", "silu", "relu"] = "tanh"
    pooler_dropout: float = 0.0  # before it

    dtype: Any = jnp.float32
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"  # see `ftjax.nn.kernels`
    max_segments: int | None = None  # examples that a row of segment_ids packs at most, where it is known (cudnn)
    scan_unroll: int = 1
    remat: bool = False

    def replace(self, **fields: Any) -> "Config":
        """The same model with other options; how it computes, and dropouts, are its encoder's too."""
        new = dataclasses.replace(self, **fields)
        if new.encoder is None:
            return new
        shared = {name: value for name, value in fields.items() if name in OF_BOTH}
        return dataclasses.replace(new, encoder=dataclasses.replace(new.encoder, **shared))

    @property
    def embed_width(self) -> int:
        """Features of the token table."""
        return self.embed_size or self.hidden_size

    @property
    def head_is_embedding(self) -> bool:
        """Whether a vocabulary head reads the token table."""
        return self.tied_head and self.head in ("lm", "mlm", "pretraining")

    @property
    def room(self) -> int:
        """How many positions there are for a text; T5's, which are relative, go on."""
        return sys.maxsize if self.positions == "t5" else self.max_positions

    @property
    def rows(self) -> int:
        """Layers that have parameters of their own: how many rows the stack holds."""
        return 1 if self.shared_layers else self.num_layers
