"""Vectors of texts, and of words in their context, from the hidden states of any model."""

import functools
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.align import first_pieces, words_of
from ftjax.data.around import Around, insert
from ftjax.data.encode import pieces
from ftjax.data.encoded import Collector, Encoded
from ftjax.data.loader import Loader
from ftjax.decode.generate import check_adapters, room
from ftjax.errors import UserError
from ftjax.models.transformer import Transformer

POOLINGS = ("mean", "first", "last", "max")
BATCH = 1000  # texts per call of the tokenizer
WORD = re.compile(r"\w(?:\S*\w)?|[^\w\s]+")
log = logging.getLogger(__name__)


class Words(NamedTuple):
    """The words of a text and their vectors `[n, D]`."""

    words: list[str]
    vectors: np.ndarray


def embed(
    model: Transformer, params: Any, tokenizer: Any, texts: Sequence[str], *, pooling: str = "mean", **options: Any
) -> np.ndarray:
    """A vector for each text, in the texts' order: `[n, D]` fp32, the `mean` or the `max` of the hidden states of its
    tokens, special ones included, or that of the `first` or `last` one (Reimers & Gurevych 2019, section 3).

    Args:
      params: the model's, whatever its head; of an encoder-decoder the encoder gives the vectors.
      options: as `_vectors` has them: `normalise=True` for vectors of length 1; `batch_size`; `max_length` in tokens,
        beyond which texts are cut and a warning says how many; `adapters` in site form, `around` of their method.
    Raises:
      UserError: no texts, an empty one, or an unknown pooling.
    """
    if pooling not in POOLINGS:
        raise UserError(f"pooling={pooling!r}: give {', '.join(POOLINGS)}")
    model = model.clone(cfg=model.cfg.replace(pooling=pooling))
    found = dict(_vectors(model, params, tokenizer, texts, _encode_texts, _pooled, **options)[1])
    return np.stack([found[i] for i in range(len(texts))])


def embed_words(model: Transformer, params: Any, tokenizer: Any, texts: Sequence[str], **options: Any) -> list[Words]:
    """The words of each text and their vectors, each the mean of the hidden states of the word's tokens.

    A word is what is between spaces but for the punctuation around it, which is a word of its own. Words that are cut
    off are left out. Arguments as `embed`.

    Raises:
      UserError: as `embed`; a word that the tokenizer makes nothing of.
    """
    encoded, vectors = _vectors(model, params, tokenizer, texts, _encode_words, _by_word, **options)
    numbers = [int(encoded.extras["word"][start:end].max()) for start, end in pairwise(encoded.offsets)]
    found = {i: vector[: numbers[i]].copy() for i, vector in vectors}  # a copy lets go of the padding
    return [Words(WORD.findall(text)[: numbers[i]], found[i]) for i, text in enumerate(texts)]


def _vectors(
    model: Transformer, params: Any, tokenizer: Any, texts: Sequence[str], encode: Any, reduce: Any, *,
    normalise: bool = False, batch_size: int = 64, max_length: int | None = None, where: Sequence[str] | None = None,
    adapters: Any = None, around: Around | None = None,
) -> tuple[Encoded, Iterator[tuple[int, np.ndarray]]]:  # fmt: skip
    """What was encoded, and what `reduce` makes of it: a text's number and vectors, those of like length together.
    `where` says each text's place, for messages."""
    if not len(texts):
        raise UserError("no texts to embed; give at least one")
    size = around.size if around else 0
    most = room(model, adapters, 0) - size
    if max_length is not None and not 3 <= max_length <= most:
        raise UserError(f"max_length={max_length}: give 3 or more, at most {most}, for which the model has room")
    out = Collector(most if max_length is None else max_length, "truncate", where)
    for row, text in enumerate(texts):
        if not text.strip():
            raise UserError(f"{out.place(row)}: the text is empty; give it words or remove it")
    encoded = encode(texts, tokenizer, out)
    if encoded.truncated:
        log.warning("%d of %d texts are cut to %d tokens", encoded.truncated, len(texts), out.max_length)
    if around:
        for row in range(len(texts)):
            if not around.fits(encoded[row].tokens):
                raise UserError(
                    f"{out.place(row)}: the method puts tokens next to a gap, so it applies to texts with one"
                    f" {tokenizer.mask_token} alone; take a model or a run without"
                )
        encoded = insert(encoded, around, chunked=False)
    check_adapters(model, adapters or {}, encoded[0].tokens[None])
    loader = Loader(
        encoded, "buckets", min(batch_size, len(texts)), shuffle=False, max_length=out.max_length + size,
        window=len(texts),
    )  # fmt: skip
    return encoded, _reduced(model, {"params": params, "adapters": adapters or {}}, loader, reduce, normalise)


def _reduced(
    model: Transformer, variables: Any, batches: Iterable[dict[str, np.ndarray]], reduce: Any, normalise: bool
) -> Iterator[tuple[int, np.ndarray]]:
    for batch in batches:
        example = batch.pop("example")
        values = np.asarray(reduce(model, variables, batch))
        if normalise:
            values = values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), np.finfo(np.float32).tiny)
        yield from ((i, value) for i, value in zip(example.tolist(), values) if i >= 0)


def _encode_texts(texts: Sequence[str], tokenizer: Any, out: Collector) -> Encoded:
    for row, (text, (ids, _)) in enumerate(zip(texts, pieces([(text, None) for text in texts], tokenizer))):
        if not out.fits(row, len(ids)):
            [(ids, _)] = pieces([(text, None)], tokenizer, out.max_length)
        out.add(row, [ids])
    return out.encoded("none", tokenizer.pad_token_id)


def _encode_words(texts: Sequence[str], tokenizer: Any, out: Collector) -> Encoded:
    """`word` is the number of each token's word, from 1; 0 of tokens of none."""
    for start in range(0, len(texts), BATCH):
        chunk = list(texts[start : start + BATCH])
        encoding = tokenizer(chunk, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
        for at, text in enumerate(chunk):
            ids, fixed = encoding["input_ids"][at], encoding["special_tokens_mask"][at]
            ends = [found.end() for found in WORD.finditer(text)]
            word_of = words_of(ends, encoding["offset_mapping"][at], fixed)
            first_pieces(WORD.findall(text), word_of, out.place(start + at))
            if not out.fits(start + at, len(ids)):
                last = int(fixed[-1])
                ids, word_of = ([*each[: out.max_length - last], *each[len(each) - last :]] for each in (ids, word_of))
            out.add(start + at, [ids], word=[np.asarray(word_of) + 1])
    return out.encoded("none", tokenizer.pad_token_id)


def _hidden(model: Transformer, variables: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    method = "hidden" if model.cfg.encoder is None else "encode"
    return model.apply(variables, batch["input_ids"], batch["segment_ids"], method=method).last_hidden


@functools.partial(jax.jit, static_argnums=0)
def _pooled(model: Transformer, variables: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """`[B, D]`."""
    hidden = _hidden(model, variables, batch).astype(jnp.float32)
    return model.apply(variables, hidden, batch["segment_ids"], method="pool")


@functools.partial(jax.jit, static_argnums=0)
def _by_word(model: Transformer, variables: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """`[B, T, D]`, the first words of them real."""
    hidden = _hidden(model, variables, batch).astype(jnp.float32)
    own = batch["word"][:, None] == 1 + jnp.arange(hidden.shape[1])[:, None]  # [B, words, T]
    sums = jnp.einsum("bwt,btd->bwd", own.astype(jnp.float32), hidden, precision="highest")
    return sums / jnp.maximum(own.sum(-1, keepdims=True), 1)
