"""Prefix-tuning: P learned keys and values a layer, seen by every token (Li & Liang 2021, https://arxiv.org/abs/2101.00190).

The prefix is not rotated and not in the cache, and the text's positions start at P. It changes step 0: even zero keys
take a share of the softmax.

`definition = 'paper'` (section 4.3): the prefix is an MLP of P embeddings, D -> hidden -> tanh -> 2 L K hd, folded
into plain keys and values for inference. Trained: P D + (D + 1) hidden + (hidden + 1) 2 L K hd; kept: 2 P L K hd.
An encoder-decoder has three: for the encoder, for the decoder's attention to itself and for that to the encoder.
`'peft'`: the keys and values themselves, from N(0, 1), none for an encoder that a decoder follows.
`init = 'words'`: the base's keys and values of the words of `method.text` (section 7.4); the MLP is fitted to them
first, by 500 steps on the squared error, as in the authors' code.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ftjax import tree
from ftjax.errors import UserError
from ftjax.methods.base import Context, Found, Method, choose, hooked, place, positive, replace, tokens, unmergeable
from ftjax.nn.hooks import Site

FIT_STEPS, FIT_RATE = 500, 5e-3


@flax.struct.dataclass
class Prefix:
    """Keys and values, `[L, P, K, hd]` in the stack."""

    k: jax.Array
    v: jax.Array

    def keys_values(self, site: Site) -> tuple[jax.Array, jax.Array]:
        """k, v `[P, K, hd]`."""
        return self.k, self.v


@flax.struct.dataclass
class Shift:
    """Moves the text's positions behind the prefix."""

    length: int = flax.struct.field(pytree_node=False)

    def positions(self, positions: Any, site: Site) -> Any:
        """positions + P."""
        return positions + self.length


@flax.struct.dataclass
class PrefixMLP:
    """The trained form of the paper's prefix."""

    embedding: jax.Array  # [P, D]
    down: dict[str, jax.Array]  # kernel [D, hidden], bias
    up: dict[str, jax.Array]  # kernel [hidden, 2 L K hd], bias
    shape: tuple[int, int, int] = flax.struct.field(pytree_node=False)  # L, K, hd

    def fold(self) -> Prefix:
        """The keys and values that it stands for."""
        h = jnp.tanh(self.embedding @ self.down["kernel"] + self.down["bias"])
        return unpack(h @ self.up["kernel"] + self.up["bias"], *self.shape)


def unpack(flat: jax.Array, layers: int, heads: int, head_dim: int) -> Prefix:
    """`[P, 2 L K hd]` as PEFT lays it out, slot 2l the keys of layer l and 2l + 1 its values."""
    x = flat.reshape(len(flat), layers, 2, heads, head_dim).transpose(2, 1, 0, 3, 4)
    return Prefix(x[0], x[1])


def pack(prefix: Prefix) -> jax.Array:
    """Inverts `unpack`."""
    x = jnp.stack([prefix.k, prefix.v]).transpose(2, 1, 0, 3, 4)
    return x.reshape(len(x), -1)


def init(ctx: Context, cfg: Any, key: jax.Array) -> dict:
    """A prefix of `cfg.length`.

    Raises:
      UserError: an unknown definition or init, a length below 1, words without tokens.
    """
    choose("definition", cfg.definition, ("paper", "peft"))
    choose("init", cfg.init, ("random", "words"))
    positive("length", cfg.length)
    if bool(cfg.text) != (cfg.init == "words"):
        raise UserError("method.text and method.init='words' go together: the words to start from")
    target = None
    if cfg.init == "words":
        if ctx.cfg.encoder is not None or ctx.cfg.shared_layers:
            raise UserError("method.init='words' needs one stack of layers with weights of their own; take random")
        ids = tokens(ctx, "method.text", cfg.text)
        found = ctx.keys_values((ids * cfg.length)[: cfg.length])
        target = Prefix(*(x.astype(jnp.float32) for x in found))
    if cfg.definition == "paper":
        positive("hidden", cfg.hidden)
    adapters: dict[str, Any] = {}
    for path, (heads, head_dim) in hooked(ctx, "keys_values").items():
        key, sub = jax.random.split(key)
        shape = (ctx.rows(path), heads, head_dim)
        if cfg.definition == "paper":
            mlp = _mlp(ctx.cfg.hidden_size, cfg.length, cfg.hidden, shape, sub)
            adapters[path.replace("layers/", "")] = mlp if target is None else _fitted(mlp, target)
        elif path.startswith("layers/"):
            random = unpack(jax.random.normal(sub, (cfg.length, 2 * shape[0] * heads * head_dim)), *shape)
            adapters |= {path: target or random, "": Shift(cfg.length)}
    return place(adapters, "prefix")


def _mlp(width: int, length: int, hidden: int, shape: tuple[int, int, int], key: jax.Array) -> PrefixMLP:
    keys = jax.random.split(key, 5)

    def linear(k: jax.Array, kb: jax.Array, size_in: int, size_out: int) -> dict[str, jax.Array]:
        bound = size_in**-0.5
        draw = lambda key, *s: jax.random.uniform(key, s, minval=-bound, maxval=bound)  # noqa: E731
        return {"kernel": draw(k, size_in, size_out), "bias": draw(kb, size_out)}

    layers, heads, head_dim = shape
    return PrefixMLP(
        embedding=jax.random.normal(keys[0], (length, width)),
        down=linear(keys[1], keys[2], width, hidden),
        up=linear(keys[3], keys[4], hidden, 2 * layers * heads * head_dim),
        shape=shape,
    )


@jax.jit
def _fitted(mlp: PrefixMLP, target: Prefix) -> PrefixMLP:
    tx = optax.adam(FIT_RATE)

    def error(mlp: PrefixMLP) -> jax.Array:
        return optax.tree.norm(jax.tree.map(jnp.subtract, mlp.fold(), target), squared=True) / target.k.size

    def step(_: Any, state: tuple[PrefixMLP, Any]) -> tuple[PrefixMLP, Any]:
        mlp, opt = state
        updates, opt = tx.update(jax.grad(error)(mlp), opt)
        return optax.apply_updates(mlp, updates), opt  # type: ignore[return-value]

    return jax.lax.fori_loop(0, FIT_STEPS, step, (mlp, tx.init(mlp)))[0]  # type: ignore[arg-type]


def labels(variables: Any, cfg: Any) -> Any:
    """The prefix, or the MLP that makes it, trains."""
    return tree.label(variables, [(r"^adapters/(.*/)?prefix/", "prefix"), ("", tree.FREEZE)])


def expand(adapters: Any, params: Any) -> Any:
    """The MLP folded into keys and values, and the shift of the positions."""

    def fold(found: Found) -> dict[str, Any]:
        *stack, attention = found.site.split("/")  # attn, cross or encoder/attn
        made = {"/".join((*stack, "layers", attention, "prefix")): found.adapter.fold()}
        if attention == "attn":  # whose text stands behind it
            made["/".join((*stack, "prefix"))] = Shift(len(found.adapter.embedding))
        return made

    return replace(adapters, PrefixMLP, fold)


METHOD = Method(
    init=init,
    labels=labels,
    merge=unmergeable("a prefix adds keys and values, which no plain weights do; keep the adapter"),
    expand=expand,
    paper="Li & Liang 2021",
    at_start="another model",
)
