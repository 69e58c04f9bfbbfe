"""Continues prompts: greedily, by sampling or by beam search."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ftjax import tree
from ftjax.decode.beam import beam_search
from ftjax.decode.loop import Prompt, advance, for_steps, row_keys, start
from ftjax.decode.options import Options, check
from ftjax.decode.text import Stops
from ftjax.errors import UserError
from ftjax.models import transformer
from ftjax.models.transformer import Transformer, sites
from ftjax.nn.core import few

BETWEEN_LOOKS = 8  # tokens decoded before stop strings are looked for


class Continuations(NamedTuple):
    """R sequences of N tokens at most for each of B prompts; the best first where beams were searched."""

    tokens: np.ndarray  # int32 [B, R, N], `pad_token_id` behind the end
    lengths: np.ndarray  # [B, R], an end included
    scores: np.ndarray  # fp32 [B, R]: a beam's score; else the log-probability of the tokens under the model


class Request(NamedTuple):
    """Prompts and how to continue them, checked."""

    model: Transformer
    variables: Any
    prompt: Prompt
    examples: np.ndarray  # [B]
    seed: int
    new: int
    ends: tuple[int, ...]
    pad: int
    options: Options
    readers: list[Stops]  # one a prompt; none where tokens are not read

    def cut(self, tokens: np.ndarray) -> list[int]:
        """The new tokens of one sequence, up to its length, without the end token: `[n]` -> n or n - 1 of them."""
        return tokens[: len(tokens) - int(tokens[-1] in self.ends)].tolist()


def generate(model: Transformer, params: Any, input_ids: Any, attention_mask: Any = None, **options: Any) -> jax.Array:
    """The prompts and their continuations; arguments and errors as of `request`.

    Returns:
      int32 `[B x num_return_sequences, T + max_new_tokens]`: the prompts as given, then the new tokens; of an
      encoder-decoder `[..., 1 + max_new_tokens]`, from the decoder's start.
    """
    tokens = continuations(model, params, input_ids, attention_mask, **options).tokens
    first = input_ids if model.cfg.encoder is None else [[options["decoder_start_token_id"]]] * len(tokens)
    ids = jnp.repeat(jnp.asarray(first, jnp.int32), tokens.shape[1], 0)
    return jnp.concatenate([ids, tokens.reshape(len(ids), -1)], 1)


def continuations(
    model: Transformer, params: Any, input_ids: Any, attention_mask: Any = None, **options: Any
) -> Continuations:
    """The new tokens and their scores; arguments and errors as of `request`."""
    return finish(request(model, params, input_ids, attention_mask, **options))


def finish(asked: Request) -> Continuations:
    """The new tokens and their scores.

    Compiles once per shape and set of options. On CPU a long answer of a larger model comes twice as fast with
    `scan_unroll=-1`.
    """
    if not asked.options.beams:
        *_, last = pieces(asked, BETWEEN_LOOKS if any(asked.readers) else asked.new)
        return last
    variables = for_steps(asked.model, asked.variables, 1, few(len(asked.examples) * asked.options.num_beams))
    tokens, scores = map(np.asarray, beam_search(
        asked.model, asked.variables, variables, asked.prompt, asked.pad, new=asked.new, options=asked.options,
        ends=asked.ends,
    ))  # fmt: skip
    ended = _ended(tokens, asked.ends)
    return Continuations(tokens, np.where(ended, ended, asked.new), scores)


def pieces(asked: Request, every: int) -> Iterator[Continuations]:
    """What there is of the continuations after every so many tokens, until all have ended. Not by beams."""
    model, prompt, pad, new, options, ends = asked.model, asked.prompt, asked.pad, asked.new, asked.options, asked.ends
    n = options.num_return_sequences
    keys = row_keys(asked.seed, asked.examples, n)
    variables = for_steps(model, asked.variables, n, few(len(keys)))
    state = start(model, asked.variables, prompt, keys, pad, new=new, options=options, ends=ends)
    looked, lengths = 0, np.zeros(len(keys), int)  # 0: has not ended
    while looked < new and not lengths.all():
        until = min(looked + every, new)
        state = advance(model, variables, prompt, keys, pad, state, until, options=options, ends=ends)
        tokens = np.asarray(state.tokens)[:, :until]
        ended = _ended(tokens, ends)
        if any(asked.readers):
            for row in np.flatnonzero(lengths == 0):
                there = tokens[row, : ended[row] or until].tolist()
                ended[row] = asked.readers[row // n].length(there, looked) or ended[row]
            state = state._replace(done=jnp.asarray((lengths > 0) | (ended > 0)))
        lengths, looked = np.where(lengths, lengths, ended), until
        so_far = np.where(lengths, lengths, until)
        real = np.arange(new) < so_far[:, None]
        scores = np.where(real, np.asarray(state.logprobs), 0).sum(1)
        found = (np.where(real, np.asarray(state.tokens), pad), so_far, scores)
        yield Continuations(*(x.reshape(-1, n, *x.shape[1:]) for x in found))


def _ended(tokens: np.ndarray, ends: tuple[int, ...]) -> np.ndarray:
    """The length of each sequence up to its first end, 0 without one: `[..., N]` -> `[...]`."""
    hit = np.isin(tokens, ends)
    return np.where(hit.any(-1), hit.argmax(-1) + 1, 0)


def request(
    model: Transformer,
    params: Any,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    adapters: Any = None,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
    decoder_start_token_id: int | None = None,
    seed: int = 0,
    example_ids: Any = None,
    stops: Stops | None = None,
    **options: Any,
) -> Request:
    """Checks and lays out what is to be continued.

    Args:
      input_ids: int `[B, T]`, padded left or right as `attention_mask` says; of an encoder-decoder, the encoder's.
      attention_mask: `[B, T]`, 0 on padding; None for none.
      adapters: the `adapters` collection in its site form, or None.
      max_new_tokens: fewer where every row meets an `eos_token_id` (kept) before; `pad_token_id` fills what is left.
      eos_token_id: one id or several, of any integer type.
      decoder_start_token_id: of an encoder-decoder: what its decoder continues.
      seed, example_ids: sequence r of row b is drawn from (seed, example_ids[b], r) alone, whatever else is in the
        batch; `[B]`, by default the row numbers.
      stops: how new tokens are read, behind the prompt's last token (an encoder-decoder's: alone), and strings that
        end a sequence too, with the token that completes one.
      options: the fields of `ftjax.decode.options.Options`.
    Raises:
      UserError: a model that is no causal language model, an empty prompt, more positions than the model has, a
        token that it does not have, stop strings for beams, or an option out of range or at odds with another.
    """
    cfg = model.cfg
    if not cfg.causal or cfg.head != "lm":
        raise UserError(f"generate needs a causal model with head='lm', got causal={cfg.causal}, head={cfg.head!r}")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if (cfg.encoder is None) != (decoder_start_token_id is None):
        raise UserError(
            f"decoder_start_token_id={decoder_start_token_id}: give one to an encoder-decoder, and to no other model"
        )
    if not -(2**31) <= seed < 2**31:
        raise UserError(f"seed={seed} must be in [-2**31, 2**31)")
    ends = tuple(dict.fromkeys(np.atleast_1d(() if eos_token_id is None else eos_token_id).tolist()))
    named = {"eos_token_id": ends, "pad_token_id": pad_token_id, "decoder_start_token_id": decoder_start_token_id}
    named |= {name: options.get(name) for name in ("forced_bos_token_id", "forced_eos_token_id")}
    for name, ids in named.items():
        tokens = np.atleast_1d(() if ids is None else ids).tolist()
        if wrong := [str(token) for token in tokens if token not in range(cfg.vocab_size)]:
            raise UserError(f"{name}={', '.join(wrong)}: the model's tokens are 0 to {cfg.vocab_size - 1}")
    how = Options(**options)
    check(how, ends, max_new_tokens)
    if stops and how.beams:
        raise UserError("stop strings do not go with beams: give stop ids (eos_token_id), or num_beams=1")
    ids = np.asarray(input_ids, np.int32)
    mask = np.ones_like(ids) if attention_mask is None else (np.asarray(attention_mask) != 0).astype(np.int32)
    if ids.ndim != 2 or mask.shape != ids.shape:
        raise UserError(f"input_ids and attention_mask must be [B, T], got {ids.shape} and {mask.shape}")
    lengths = mask.sum(1)
    if not lengths.all():
        raise UserError(f"row {int(np.argmin(lengths))} of the prompts has no token")
    variables = {"params": params, **({"adapters": adapters} if adapters else {})}
    if adapters:
        check_adapters(model, adapters, ids)
    longest, most = int(lengths.max()), room(model, adapters, max_new_tokens)
    if longest > most:
        raise UserError(
            f"the longest prompt has {longest} tokens; with max_new_tokens={max_new_tokens} there is room for {most}"
        )
    examples = np.arange(len(ids)) if example_ids is None else np.asarray(example_ids, np.int32)
    left = np.argsort(mask, 1, kind="stable")  # padding first, then the tokens in their order
    ids, mask = (np.take_along_axis(x, left, 1) for x in (ids, mask))
    readers = [] if stops is None else [stops if cfg.encoder else stops.behind(t) for t in ids[:, -1].tolist()]
    packed = (jnp.asarray(ids), jnp.asarray(mask))
    if decoder_start_token_id is None:
        prompt = Prompt(*packed)
    else:
        one = jnp.ones((len(ids), 1), jnp.int32)
        prompt = Prompt(one * decoder_start_token_id, one, *packed)
    return Request(model, variables, prompt, examples, seed, max_new_tokens, ends, pad_token_id, how, readers)


def room(model: Transformer, adapters: Any, max_new_tokens: int) -> int:
    """How many tokens a prompt may have, by the positions of the model and what the adapters take of them.

    Raises:
      UserError: not even one.
    """
    free = transformer.room(model, adapters) - max_new_tokens
    if free < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} leaves no room in the model's {model.cfg.room} positions")
    return free if model.cfg.encoder is None else transformer.room(model, adapters, encoder=True)


def most_new_tokens(model: Transformer, adapters: Any, prompt: int) -> int:
    """How many tokens may follow a prompt of so many; fewer than one where there is no room."""
    return transformer.room(model, adapters) - (prompt if model.cfg.encoder is None else 1)


def check_adapters(model: Transformer, adapters: Any, ids: np.ndarray) -> None:
    """UserError for what would silently be the base model: an adapter where no site asks for it or in trained form, and
    a soft prompt whose virtual ids were forgotten."""
    known = sites(model)
    for key, adapter in jax.tree_util.tree_leaves_with_path(adapters, is_leaf=lambda x: not isinstance(x, Mapping)):
        path = re.sub(r"\blayers/\d+:\d+/", "layers/", tree.path_name(key[:-1]))
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
