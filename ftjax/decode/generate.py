"""Decoding with a static key-value cache: one prefill, then one compiled loop until every row has ended."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftjax import tree
from ftjax.decode.sampling import Sampling, check, choose
from ftjax.errors import UserError
from ftjax.models.transformer import Transformer, empty_cache, shifted, sites
from ftjax.nn.layers import cut, uncut


def generate(
    model: Transformer,
    params: Any,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    adapters: Any = None,
    max_new_tokens: int,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
    seed: int = 0,
    example_ids: Any = None,
) -> jax.Array:
    """Continues prompts, greedily or by sampling.

    Compiles once per shape. On CPU a long answer of a larger model comes twice as fast with `scan_unroll=-1`.

    Args:
      input_ids: int `[B, T]`, padded left or right as `attention_mask` says.
      attention_mask: `[B, T]`, 0 on padding; None for none.
      adapters: the `adapters` collection in its site form, or None.
      max_new_tokens: fewer where every row meets an `eos_token_id` (kept) before; `pad_token_id` fills what is left.
      temperature, top_k, top_p: only with `do_sample`; see `ftjax.decode.sampling`.
      seed, example_ids: row b draws from (seed, example_ids[b]) alone, whatever else is in the batch; `[B]`, by
        default the row numbers.
    Returns:
      int32 `[B, T + max_new_tokens]`: the prompts as given, then the new tokens.
    Raises:
      UserError: a model that is no causal language model, an empty prompt, more positions than the model has, or
        a sampling option out of range.
    """
    how = Sampling(do_sample, temperature, top_k, top_p)
    check(how)
    cfg = model.cfg
    if not cfg.causal or cfg.head != "lm":
        raise UserError(f"generate needs a causal model with head='lm', got causal={cfg.causal}, head={cfg.head!r}")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1")
    ids = np.asarray(input_ids, np.int32)
    mask = np.ones_like(ids) if attention_mask is None else (np.asarray(attention_mask) != 0).astype(np.int32)
    if ids.ndim != 2 or mask.shape != ids.shape:
        raise UserError(f"input_ids and attention_mask must be [B, T], got {ids.shape} and {mask.shape}")
    lengths = mask.sum(1)
    if not lengths.all():
        raise UserError(f"row {int(np.argmin(lengths))} of the prompts has no token")
    variables = {"params": params, **({"adapters": adapters} if adapters else {})}
    last = int(lengths.max()) + max_new_tokens - 1
    if adapters:
        _check(model, adapters, ids)
        last = shifted(model, variables, last, len(ids))
    if last >= cfg.max_positions:
        raise UserError(
            f"the longest prompt ({int(lengths.max())} tokens) and max_new_tokens={max_new_tokens} need {last + 1} "
            f"positions, the model has {cfg.max_positions}"
        )
    ends = (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id or ())
    rows = np.arange(len(ids)) if example_ids is None else np.asarray(example_ids, np.int32)
    key = jax.random.key(seed)
    return _generate(model, variables, ids, mask, rows, key, pad_token_id, new=max_new_tokens, how=how, ends=ends)


def _check(model: Transformer, adapters: Any, ids: np.ndarray) -> None:
    """UserError for what would silently be the base model: an adapter where no site asks for it or in trained form, and
    a soft prompt whose virtual ids were forgotten."""
    known = sites(model)
    for key, adapter in jax.tree_util.tree_leaves_with_path(adapters, is_leaf=lambda x: not isinstance(x, Mapping)):
        path = re.sub(r"^layers/\d+:\d+/", "layers/", tree.path_name(key[:-1]))
        if not any(hasattr(adapter, hook) for hook in known.get(path, ())):
            raise UserError(
                f"adapters: nothing at {path or 'the root'!r} asks for a {type(adapter).__name__}; give the model's own"
                " adapters, in site form (Method.expand)"
            )
        first = getattr(getattr(adapter, "each", adapter), "vocab", None)
        if first is not None and not (ids >= first).any(1).all():
            raise UserError(
                f"the adapters have a soft prompt, whose virtual ids (from {first}) are not in every prompt"
            )


def _unrolled(model: Transformer, variables: Any) -> Any:
    """The variables with each layer's parameters apart: a step then reads them in place, where a scan on CPU first
    copies every layer's slice (GPT-2 small: half the time a token, for 8 s more of compilation)."""
    rows, params = model.cfg.num_layers, variables["params"]
    return {**variables, "params": {**params, "layers": cut(uncut(params["layers"], rows), rows, range(1, rows))}}


@functools.partial(jax.jit, static_argnames=("model", "new", "how", "ends"))
def _generate(
    model: Transformer,
    variables: Any,
    ids: jax.Array,
    mask: jax.Array,
    rows: jax.Array,
    key: jax.Array,
    pad: jax.Array,
    *,
    new: int,
    how: Sampling,
    ends: tuple[int, ...],
) -> jax.Array:
    b, t = ids.shape
    step_variables = _unrolled(model, variables) if model.cfg.scan_unroll < 0 else variables
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
    lengths = mask.sum(1)
    stop = jnp.asarray(ends, jnp.int32)

    def token(hidden: jax.Array, step: jax.Array | int) -> jax.Array:
        logits: Any = model.apply(variables, hidden, method="logits")
        return choose(logits, how, keys, step)

    def ended(tokens: jax.Array) -> jax.Array:
        return (tokens[:, None] == stop).any(-1)

    cache = empty_cache(model.cfg, b, t + new - 1)
    out: Any = model.apply(variables, ids, mask, cache=cache, method="hidden")
    newest = t - 1 - jnp.argmax(mask[:, ::-1], 1)  # the last real token
    first = token(jnp.take_along_axis(out.last_hidden, newest[:, None, None], 1)[:, 0], 0)
    tokens = jnp.full((b, new), pad, jnp.int32).at[:, 0].set(first)

    def going(state: Any) -> jax.Array:
        step, _, done, _ = state
        return (step < new) & ~done.all()

    def advance(state: Any) -> Any:
        step, tokens, done, cache = state
        fed = jax.lax.dynamic_index_in_dim(tokens, step - 1, 1)
        at = (lengths + step - 1)[:, None]
        out: Any = model.apply(step_variables, fed, position_ids=at, cache=cache, method="hidden")
        chosen = jnp.where(done, pad, token(out.last_hidden[:, 0], step))
        tokens = jax.lax.dynamic_update_index_in_dim(tokens, chosen, step, 1)
        return step + 1, tokens, done | ended(chosen), out.cache

    _, tokens, _, _ = jax.lax.while_loop(going, advance, (1, tokens, ended(first), out.cache))
    return jnp.concatenate([ids, tokens], 1)
