"""One token after another with a static key-value cache: one prefill, then one compiled loop until all are done."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ftjax.decode.options import Options
from ftjax.decode.processors import history, process
from ftjax.decode.sampling import choose
from ftjax.methods.batched import PerExample
from ftjax.models.transformer import Transformer, empty_cache
from ftjax.nn.attention import Cache
from ftjax.nn.config import Config
from ftjax.nn.core import by_outputs
from ftjax.nn.layers import cut, uncut


class Prompt(NamedTuple):
    """Prompts padded left, so that every row's next token has the same column; of an encoder-decoder, the decoder's."""

    ids: jax.Array  # [B, T]
    mask: jax.Array  # [B, T], 0 on padding
    source: jax.Array | None = None  # [B, S] the encoder's tokens
    source_mask: jax.Array | None = None  # [B, S]

    def repeat(self, n: int) -> "Prompt":
        """Every row n times in a row, without the encoder's tokens, which the cache has."""
        return Prompt(jnp.repeat(self.ids, n, 0), jnp.repeat(self.mask, n, 0))


class State(NamedTuple):
    """R = B x num_return_sequences rows on their way to N new tokens."""

    step: jax.Array  # [] new tokens so far
    tokens: jax.Array  # [R, N]
    logprobs: jax.Array  # [R, N], the model's own, whatever the choice was made from
    done: jax.Array  # [R]
    cache: Cache


def prefill(model: Transformer, variables: Any, prompt: Prompt, slots: int) -> tuple[jax.Array, Cache]:
    """The prompts' next logits `[B, V]`, and a cache with `slots` more slots (the last new token is never fed).

    As the steps read it: each layer's part apart where the layers are run without a scan.
    """
    (b, t), sources = prompt.ids.shape, {}
    counted = lambda mask: jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)  # noqa: E731
    cache = empty_cache(model.cfg, b, t, 0 if prompt.source is None else prompt.source.shape[1])
    if prompt.source is not None:
        sources = {"encoder_input_ids": prompt.source, "encoder_attention_mask": prompt.source_mask}
        sources["encoder_position_ids"] = counted(prompt.source_mask)
    # positions are given, for padding may take a row past the model's where its tokens do not
    out: Any = model.apply(
        variables, prompt.ids, prompt.mask, position_ids=counted(prompt.mask), cache=cache, method="hidden", **sources
    )
    return model.apply(variables, out.last_hidden[:, -1], method="logits"), _grown(out.cache, slots, model.cfg)


def _grown(cache: Cache, slots: int, cfg: Config) -> Cache:
    """The cache with so many more slots, a layer's part apart where layers are run without a scan."""

    def grown(x: jax.Array, axis: int) -> jax.Array:
        return jnp.pad(x, [(0, slots * (i == axis % x.ndim)) for i in range(x.ndim)])

    def layer(k: jax.Array, v: jax.Array, *source: jax.Array) -> tuple[jax.Array, ...]:
        return grown(k, -1), grown(v, -2), *source

    apart = cfg.scan_unroll < 0
    return cache._replace(
        kv=[layer(*(x[i] for x in cache.kv)) for i in range(cfg.num_layers)] if apart else layer(*cache.kv),
        positions=grown(cache.positions, 1),
        segments=grown(cache.segments, 1),
    )


def feed(
    model: Transformer, variables: Any, tokens: jax.Array, positions: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Logits `[R, V]` after one more token a row."""
    out: Any = model.apply(variables, tokens[:, None], position_ids=positions[:, None], cache=cache, method="hidden")
    return model.apply(variables, out.last_hidden[:, 0], method="logits"), out.cache


def fan(cache: Cache, n: int) -> Cache:
    """The cache with every row n times in a row."""
    if n == 1:
        return cache
    # all layers' keys and values lead with the layers
    return jax.tree.map(lambda x: jnp.repeat(x, n, int(x.ndim > 4)) if x.ndim else x, cache)


@functools.partial(jax.jit, static_argnames="n")
def row_keys(seed: int, examples: jax.Array, n: int) -> jax.Array:
    """`[B x n]`: the random keys of n sequences of each example, of (seed, example, number) alone."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold, (0, None))(fold(jax.random.key(seed), examples), jnp.arange(n)).reshape(-1)


@functools.partial(jax.jit, static_argnames=("model", "n", "few"))
def for_steps(model: Transformer, variables: Any, n: int, few: bool) -> Any:
    """The variables as the steps read them: per-example adapters for n rows an example and, where the layers are run
    without a scan, each layer's parameters apart: a step then reads them in place, where a scan on CPU first copies
    every layer's slice (GPT-2 small: half the time a token, for 8 s more of compilation). Where all rows have `few`
    queries, weights lie by their outputs."""
    if model.cfg.scan_unroll < 0:
        rows, params = model.cfg.rows, variables["params"]
        if few:
            params = {name: by_outputs(x) if name in ("layers", "head") else x for name, x in params.items()}
        layers = cut(uncut(params["layers"]), rows, range(1, rows))
        variables = {**variables, "params": {**params, "layers": layers}}
    return jax.tree.map(
        lambda x: x.replace(index=jnp.repeat(x.index, n, -1)) if isinstance(x, PerExample) else x,
        variables,
        is_leaf=lambda x: isinstance(x, PerExample),
    )


def is_end(tokens: jax.Array, ends: tuple[int, ...]) -> jax.Array:
    """Bool of the tokens' shape."""
    return (tokens[..., None] == jnp.asarray(ends, jnp.int32)).any(-1)


def _pick(
    logits: jax.Array, prompt: Prompt, keys: jax.Array, pad: jax.Array, state: State, options: Options, ends: Any
) -> State:
    step, tokens, logprobs, done, cache = state
    seen = history(prompt.ids, prompt.mask, tokens, step)
    chosen = jnp.where(done, pad, choose(process(logits, seen, step, options, ends), options, keys, step))
    logprob = jnp.take_along_axis(jax.nn.log_softmax(logits, -1), chosen[:, None], 1)
    return State(
        step + 1,
        jax.lax.dynamic_update_index_in_dim(tokens, chosen, step, 1),
        jax.lax.dynamic_update_slice_in_dim(logprobs, logprob, step, 1),
        done | is_end(chosen, ends),
        cache,
    )


@functools.partial(jax.jit, static_argnames=("model", "new", "options", "ends"))
def start(
    model: Transformer, variables: Any, prompt: Prompt, keys: jax.Array, pad: int, *, new: int, options: Options,
    ends: tuple[int, ...],
) -> State:  # fmt: skip
    """The state with the first token of each of `keys [R]`."""
    n = options.num_return_sequences
    logits, cache = prefill(model, variables, prompt, new - 1)
    tokens = jnp.full((len(keys), new), pad, jnp.int32)
    state = State(jnp.zeros((), jnp.int32), tokens, jnp.zeros(tokens.shape), jnp.zeros(len(keys), bool), fan(cache, n))
    return _pick(jnp.repeat(logits, n, 0), prompt.repeat(n), keys, jnp.asarray(pad), state, options, ends)


@functools.partial(jax.jit, static_argnames=("model", "options", "ends"), donate_argnames="state")
def advance(
    model: Transformer, variables: Any, prompt: Prompt, keys: jax.Array, pad: int, state: State, until: int, *,
    options: Options, ends: tuple[int, ...],
) -> State:  # fmt: skip
    """The state, which is given up, at `until` tokens or when all rows are done. `variables` are `for_steps`'."""
    prompt = prompt.repeat(options.num_return_sequences)
    lengths = prompt.mask.sum(1)

    def going(state: State) -> jax.Array:
        return (state.step < until) & ~state.done.all()

    def body(state: State) -> State:
        last = jax.lax.dynamic_index_in_dim(state.tokens, state.step - 1, 1, keepdims=False)
        logits, cache = feed(model, variables, last, lengths + state.step - 1, state.cache)
        return _pick(logits, prompt, keys, jnp.asarray(pad), state._replace(cache=cache), options, ends)

    return jax.lax.while_loop(going, body, state)
