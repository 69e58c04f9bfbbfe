"""Prompt tuning: P learned vectors among the embedded tokens (Lester et al. 2021, https://arxiv.org/abs/2104.08691).

[P; X]: all else is frozen. The prompt's places are virtual ids V, V+1, ... that the template puts into the data: before
the text, and on an encoder after its [CLS], so that the pooled token stays. Trainable parameters: P D.

`init` (section 3.2.1): `random`, U(-0.5, 0.5); `vocab`, embeddings of tokens sampled from the first 5,000 without
repetition; `classes`, a row a class name, the mean of its tokens' embeddings, and sampled tokens for the other rows;
`text`, the embeddings of `method.text`'s tokens, repeated or cut to the length.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ftjax import tree
from ftjax.errors import UserError
from ftjax.methods.base import Context, Method, Template, choose, hooked, place, positive, tokens, unmergeable
from ftjax.nn.config import Config
from ftjax.nn.hooks import Site

INITS = ("random", "vocab", "classes", "text")
COMMONEST = 5000  # tokens to sample from


@flax.struct.dataclass
class SoftPrompt:
    """The rows that stand in for the virtual ids."""

    rows: jax.Array  # [P, D]
    vocab: int = flax.struct.field(pytree_node=False)  # V: the first virtual id

    def embed(self, ids: jax.Array, h: jax.Array, site: Site) -> jax.Array:
        """h with row i where the id is V + i; ids `[B, T]`, h `[B, T, D]`."""
        rows = self.rows[jnp.clip(ids - self.vocab, 0, len(self.rows) - 1)]
        return jnp.where((ids >= self.vocab)[..., None], rows.astype(h.dtype), h)


def init(ctx: Context, cfg: Any, key: jax.Array) -> dict:
    """A prompt of `cfg.length` rows.

    Raises:
      UserError: a length below 1, an unknown init, a class name or text without tokens, too few tokens to sample.
    """
    positive("length", cfg.length)
    choose("init", cfg.init, INITS)
    if cfg.text and cfg.init != "text":
        raise UserError(f"method.text is for method.init='text', this is {cfg.init!r}")
    site = "encoder/embed" if ctx.cfg.encoder else "embed"  # the text that an encoder-decoder is given
    vocab, width = hooked(ctx, "embed")[site]
    table = ctx.params["embed"]["tokens"]["embedding"]
    if cfg.init == "random":
        rows = jax.random.uniform(key, (cfg.length, width), minval=-0.5, maxval=0.5)
    elif cfg.init == "text":
        ids = tokens(ctx, "method.text", cfg.text)
        rows = table[jnp.asarray((ids * cfg.length)[: cfg.length])]
    else:
        named = _class_rows(ctx, table) if cfg.init == "classes" else []
        if len(named) > cfg.length:
            raise UserError(f"method.length={cfg.length}: {len(named)} classes need a row each")
        left = cfg.length - len(named)
        if left > min(COMMONEST, vocab):
            raise UserError(
                f"method.length={cfg.length}: only {min(COMMONEST, vocab)} tokens to sample; take init=random"
            )
        sampled = table[jax.random.choice(key, min(COMMONEST, vocab), (left,), replace=False)]
        rows = jnp.concatenate([*[row[None] for row in named], sampled])
    return place({site: SoftPrompt(rows.astype(jnp.float32), vocab)}, "prompt")


def _class_rows(ctx: Context, table: jax.Array) -> list[jax.Array]:
    if not ctx.classes:
        raise UserError("method.init='classes' needs a classification task; take vocab, text or random")
    ids = (tokens(ctx, "method.init='classes'", name) for name in ctx.classes)
    return [table[jnp.asarray(one)].mean(0) for one in ids]


def labels(variables: Any, cfg: Any) -> Any:
    """The rows train."""
    return tree.label(variables, [(r"^adapters/(encoder/)?embed/prompt/rows$", "prompt"), ("", tree.FREEZE)])


def template(cfg: Any, model: Config) -> Template:
    """The prompt before the text; on an encoder after [CLS], unless `cfg.inside` says otherwise."""
    inside = not model.causal if cfg.inside is None else cfg.inside
    return Template(tuple(range(model.vocab_size, model.vocab_size + cfg.length)), inside=inside)


METHOD = Method(
    init=init,
    labels=labels,
    merge=unmergeable("soft prompts are inputs, not weights; keep the adapter"),
    template=template,
    paper="Lester et al. 2021",
    at_start="another model",
)
