"""From texts to token ids and labels."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ftjax.data.encoded import IGNORED, Collector, Encoded, Overlong
from ftjax.data.tasks.task import Labelled, Text
from ftjax.errors import UserError

BATCH = 1000  # texts per call of the tokenizer


def _batches(n: int) -> Iterator[range]:
    return (range(start, min(start + BATCH, n)) for start in range(0, n, BATCH))


def _bos(tokenizer: Any) -> list[int]:
    """The bos that the tokenizer itself would put first, if any."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def encode_lm(
    texts: Sequence[Text],
    tokenizer: Any,
    max_length: int,
    overlong: Overlong = "error",
    where: Sequence[str] | None = None,
) -> Encoded:
    """Encodes prompt + completion at once; a token is a label iff it starts within the completion.

    Bos comes first iff the tokenizer would add one and the text has none. The first token of an
    example is never a label, for nothing predicts it. Eos, part of the text, is a label whatever
    the pad token is.

    Args:
        texts: the examples.
        tokenizer: a fast tokenizer of transformers.
        max_length: the most tokens per example, bos and eos included.
        overlong: what to do beyond it: 'error', 'drop', or 'truncate' (keeps the start).
        where: each text's place, for messages.

    Raises:
        UserError: too long, a token that spans prompt and completion, no label, or a wrong eos.
    """
    out = Collector(max_length, overlong, where)
    bos = _bos(tokenizer)
    for batch in _batches(len(texts)):
        encoding = tokenizer(
            [texts[i].prompt + texts[i].completion for i in batch],
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        for row, ids, spans in zip(batch, encoding["input_ids"], encoding["offset_mapping"], strict=True):
            tokens, labels = _labelled(texts[row], ids, spans, tokenizer, bos, out.place(row))
            if not out.fits(row, len(tokens)):
                if overlong == "drop":
                    continue
                tokens, labels = tokens[:max_length], labels[:max_length]
                if (labels == IGNORED).all():
                    out.truncated -= 1
                    out.dropped += 1
                    continue
            out.add(row, tokens, labels)
    return out.encoded("lm", tokenizer.pad_token_id)


def _labelled(
    text: Text, ids: list[int], spans: list[tuple[int, int]], tokenizer: Any, bos: list[int], where: str
) -> tuple[np.ndarray, np.ndarray]:
    edge = len(text.prompt)
    tokens = np.asarray(ids, np.int32)
    starts, ends = np.asarray(spans, np.int64).reshape(-1, 2).T
    spanning = np.flatnonzero((starts < edge) & (ends > edge))
    if len(spanning):
        token = tokenizer.convert_ids_to_tokens(int(tokens[spanning[0]]))
        raise UserError(
            f"{where}: token '{token}' spans the prompt's end and the completion's start; "
            "begin the completion with the space, or end the prompt at a word"
        )
    labels = np.where(starts >= edge, tokens, np.int32(IGNORED))
    eos = tokenizer.eos_token_id
    closed = eos is not None and text.completion.endswith(tokenizer.eos_token)
    if closed and (tokens[-1] != eos or (labels[-2:] == eos).sum() != 1):
        raise UserError(f"{where}: the completion must end in one {tokenizer.eos_token}; give it once")
    if bos and tokens[:1].tolist() != bos:
        tokens = np.concatenate([np.asarray(bos, np.int32), tokens])
        labels = np.concatenate([np.asarray([IGNORED], np.int32), labels])
    labels[:1] = IGNORED
    if (labels == IGNORED).all():
        raise UserError(f"{where}: the completion has no token to learn; give it text")
    return tokens, labels


def encode_text_chunks(texts: Sequence[Text], tokenizer: Any, max_length: int) -> Encoded:
    """Cuts documents into chunks of max_length + 1 tokens without overlap.

    A chunk gives max_length inputs and as many labels, prompt and completion alike. A document's
    last chunk may be shorter; one of a single token, which predicts nothing, is left out. `rows`
    holds the document's index.

    Raises:
        UserError: no document has two tokens.
    """
    out = Collector(max_length + 1, "error", None)
    bos = _bos(tokenizer)
    for row, text in enumerate(texts):
        ids = tokenizer(text.prompt + text.completion, add_special_tokens=False, verbose=False)["input_ids"]
        tokens = np.asarray(ids if ids[:1] == bos else bos + ids, np.int32)
        for start in range(0, len(tokens) - 1, max_length + 1):
            chunk = tokens[start : start + max_length + 1]
            if len(chunk) > 1:
                labels = chunk.copy()
                labels[0] = IGNORED
                out.add(row, chunk, labels)
    return out.encoded("lm", tokenizer.pad_token_id)


def encode_classification(
    texts: Sequence[Labelled],
    tokenizer: Any,
    max_length: int,
    classes: Sequence[str],
    overlong: Overlong = "error",
    where: Sequence[str] | None = None,
) -> Encoded:
    """Encodes texts or text pairs with the tokenizer's own special tokens.

    A tokenizer without cls and sep (a decoder's) gives bos if it adds one, the text (a pair's two
    texts joined by a newline), and eos if it has one, so that the last real token is eos.
    'truncate' keeps the start of the text, and the special tokens.

    Args:
        texts: the examples; labels are indices or names of `classes`.
        tokenizer: a fast tokenizer of transformers.
        max_length: the most tokens per example, special tokens included.
        classes: the classes' names.
        overlong: what to do beyond it: 'error', 'drop' or 'truncate'.
        where: each text's place, for messages.

    Raises:
        UserError: too long, or a label outside the classes.
    """
    out = Collector(max_length, overlong, where)
    encoder = tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None
    encode = _encode_with_types if encoder else _encode_for_decoder
    pairs = encoder and any(text.text_pair is not None for text in texts)
    for batch in _batches(len(texts)):
        pieces = encode([texts[i] for i in batch], tokenizer, None)
        for row, (tokens, types) in zip(batch, pieces, strict=True):
            if not out.fits(row, len(tokens)):
                if overlong == "drop":
                    continue
                [(tokens, types)] = encode([texts[row]], tokenizer, max_length)
            out.add(row, tokens, _class_of(texts[row].label, classes, out.place(row)))
            if pairs:
                out.types.append(np.asarray(types, np.int32))
    return out.encoded("classification", tokenizer.pad_token_id)


def _class_of(label: int | str, classes: Sequence[str], where: str) -> int:
    index = label if isinstance(label, int) else classes.index(label) if label in classes else -1
    if not 0 <= index < len(classes):
        raise UserError(f"{where}: label '{label}' is none of the classes ({', '.join(classes)}); mend it")
    return index


def _encode_with_types(
    texts: Sequence[Labelled], tokenizer: Any, max_length: int | None
) -> list[tuple[list[int], list[int]]]:
    inputs = [text.text if text.text_pair is None else (text.text, text.text_pair) for text in texts]
    out = []
    for paired in (False, True):
        chosen = [index for index, value in enumerate(inputs) if isinstance(value, tuple) == paired]
        if chosen:
            encoding = tokenizer(
                [inputs[index] for index in chosen],
                truncation=max_length is not None,
                max_length=max_length,
                return_token_type_ids=True,
                verbose=False,
            )
            out += zip(chosen, encoding["input_ids"], encoding["token_type_ids"], strict=True)
    return [(ids, types) for _, ids, types in sorted(out)]


def _encode_for_decoder(
    texts: Sequence[Labelled], tokenizer: Any, max_length: int | None
) -> list[tuple[list[int], list[int]]]:
    joined = [text.text if text.text_pair is None else f"{text.text}\n{text.text_pair}" for text in texts]
    bos, eos = _bos(tokenizer), [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    encoding = tokenizer(joined, add_special_tokens=False, verbose=False)
    room = None if max_length is None else max_length - len(bos) - len(eos)
    return [(bos + ids[:room] + eos, []) for ids in encoding["input_ids"]]
