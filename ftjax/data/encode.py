"""From texts to token ids and labels."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from ftjax.data.encoded import IGNORED, Collector, Encoded
from ftjax.data.tasks.task import Labelled, Marked, Scored, Text, class_of
from ftjax.errors import UserError

BATCH = 1000  # texts per call of the tokenizer
JOIN = "\n"  # between the two texts of a pair, for a decoder


def _batches(n: int) -> Iterator[range]:
    return (range(start, min(start + BATCH, n)) for start in range(0, n, BATCH))


def bos_of(tokenizer: Any) -> list[int]:
    """The bos that the tokenizer itself would put first, if any."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def eos_of(tokenizer: Any) -> str:
    """The eos that the tokenizer itself would put behind a text; '' for none."""
    eos = tokenizer.eos_token_id
    return tokenizer.eos_token if eos is not None and eos in tokenizer("a")["input_ids"][1:] else ""


def prompt_ids(text: str, tokenizer: Any) -> list[int]:
    """The ids of a text that a decoder goes on from, as `encode_lm` begins an example: bos as it says, and no other
    special token that the tokenizer adds."""
    bos, ids = bos_of(tokenizer), tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids if ids[:1] == bos else bos + ids


def encode_lm(texts: Sequence[Text | Marked], tokenizer: Any, out: Collector) -> Encoded:
    """Encodes each text at once; a token is a label iff it starts within the completion, or a marked span.

    Bos comes first iff the tokenizer would add one and the text has none. The first token of an
    example is never a label, for nothing predicts it. Eos, part of the text, is a label whatever
    the pad token is. 'truncate' keeps the start, 'truncate_left' bos and the end, whose first token is no label, for
    what it followed is gone. An example that keeps no label, or nothing of the prompt that it has, is left out.

    Args:
        texts: the examples.
        tokenizer: a fast tokenizer of transformers.
        out: gathers them; its max_length counts bos and eos.

    Raises:
        UserError: too long, a token that spans prompt and completion, no label, or a wrong eos.
    """
    bos = bos_of(tokenizer)
    for batch in _batches(len(texts)):
        marked = [_marked(texts[i]) for i in batch]
        encoding = tokenizer(
            [m.text for m in marked], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        for row, text, ids, spans in zip(batch, marked, encoding["input_ids"], encoding["offset_mapping"]):
            with out.bad:
                tokens, labels = _labelled(text, ids, spans, tokenizer, bos, out.place(row))
                if not out.fits(row, len(tokens)):
                    if not out.cuts:
                        continue
                    first = int(tokens[0] == tokenizer.bos_token_id)
                    kept = out.kept(len(tokens), first, 0)
                    begins = int(np.argmax(labels != IGNORED))
                    asked = isinstance(example := texts[row], Text) and example.prompt
                    tokens, labels = tokens[kept], labels[kept]
                    if out.left:
                        labels[: first + 1] = IGNORED
                    if (labels == IGNORED).all() or (asked and first < begins <= kept[first]):
                        out.nothing_left()
                        continue
                out.add(row, [tokens], labels)
    return out.encoded("next", tokenizer.pad_token_id)


def _marked(text: Text | Marked) -> Marked:
    if isinstance(text, Marked):
        return text
    whole = text.prompt + text.completion
    return Marked(whole, ((len(text.prompt), len(whole)),))


def _labelled(
    text: Marked, ids: list[int], spans: list[tuple[int, int]], tokenizer: Any, bos: list[int], where: str
) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.asarray(ids, np.int32)
    starts, ends = np.asarray(spans, np.int64).reshape(-1, 2).T
    learned = np.zeros(len(tokens), bool)
    for first, last in text.learned:
        for edge in (first, last):
            spanning = np.flatnonzero((starts < edge) & (ends > edge))
            if len(spanning):
                token = tokenizer.convert_ids_to_tokens(int(tokens[spanning[0]]))
                raise UserError(
                    f"{where}: token '{token}' spans the prompt's end and the completion's start; "
                    "begin the completion with the space, or end the prompt at a word"
                )
        learned |= (starts >= first) & (starts < last)
    labels = np.where(learned, tokens, np.int32(IGNORED))
    eos = tokenizer.eos_token_id
    closed = eos is not None and text.text.endswith(tokenizer.eos_token) and text.learned[-1:] != ()
    if closed and text.learned[-1][1] == len(text.text) and (tokens[-1] != eos or (labels[-2:] == eos).sum() != 1):
        raise UserError(f"{where}: the completion must end in one {tokenizer.eos_token}; give it once")
    if bos and tokens[:1].tolist() != bos:
        tokens = np.concatenate([np.asarray(bos, np.int32), tokens])
        labels = np.concatenate([np.asarray([IGNORED], np.int32), labels])
    labels[:1] = IGNORED
    if (labels == IGNORED).all():
        raise UserError(f"{where}: the completion has no token to learn; give it text")
    return tokens, labels


def encode_seq2seq(texts: Sequence[Text], tokenizer: Any, start: int, out: Collector) -> Encoded:
    """For encoder-decoders: the encoder reads the prompt, the decoder writes the completion after the token `start`.

    Both sides get the special tokens that the tokenizer gives a source and a target; an eos that their texts end in is
    not one more. `max_length` bounds each side; 'truncate' keeps the starts and the special tokens; 'truncate_left' a
    source's end, and a target's start, for the decoder begins there.

    Raises:
        UserError: too long, or a completion without text.
    """
    sources: list[list[int]] = []
    eos, own = tokenizer.eos_token or "", eos_of(tokenizer)
    for batch in _batches(len(texts)):
        prompts = [texts[i].prompt.removesuffix(own) for i in batch]
        completions = [texts[i].completion.removesuffix(eos).strip() for i in batch]
        read = tokenizer(prompts, verbose=False)["input_ids"]
        written = tokenizer(text_target=completions, verbose=False)["input_ids"]
        for row, prompt, completion, source, target in zip(batch, prompts, completions, read, written):
            with out.bad:
                if not completion:
                    raise UserError(f"{out.place(row)}: the completion has no token to learn; give it text")
                if not out.fits(row, max(len(source), len(target))):
                    if not out.cuts:
                        continue
                    limit = dict(truncation=True, max_length=out.max_length, verbose=False)
                    with truncating(tokenizer, out.left):
                        source = tokenizer(prompt, **limit)["input_ids"]
                    with truncating(tokenizer, left=False):
                        target = tokenizer(text_target=completion, **limit)["input_ids"]
                tokens = np.asarray([start, *target], np.int32)
                out.add(row, [tokens], np.concatenate([[IGNORED], tokens[1:]]))
                sources.append(source)
    flat = Encoded(
        by="none",
        tokens=np.concatenate([np.asarray(s, np.int32) for s in sources]) if sources else np.zeros(0, np.int32),
        offsets=np.cumsum([0, *map(len, sources)], dtype=np.int64),
        labels=np.zeros(0, np.int32),
        rows=np.arange(len(sources), dtype=np.int32),
        pad_id=tokenizer.pad_token_id or 0,
    )
    return replace(out.encoded("next", tokenizer.pad_token_id), source=flat)


def encode_text_chunks(texts: Sequence[Text], tokenizer: Any, out: Collector) -> Encoded:
    """Cuts documents into chunks of max_length + 1 tokens, each beginning with the last token of the one before.

    A chunk gives max_length inputs and as many labels, prompt and completion alike: every token of a document but its
    first is predicted once. A document's last chunk may be shorter. `rows` holds the document's index.

    Raises:
        UserError: no document has two tokens.
    """
    for row, text in enumerate(texts):
        tokens = np.asarray(prompt_ids(text.prompt + text.completion, tokenizer), np.int32)
        for start in range(0, len(tokens) - 1, out.max_length):
            chunk = tokens[start : start + out.max_length + 1]
            labels = chunk.copy()
            labels[0] = IGNORED
            out.add(row, [chunk], labels)
    return out.encoded("next", tokenizer.pad_token_id)


def encode_classification(texts: Sequence[Labelled], tokenizer: Any, classes: Sequence[str], out: Collector) -> Encoded:
    """Texts or text pairs, as `pieces` encodes them, with the index of their class.

    Raises:
        UserError: too long, or a label outside the classes.
    """
    return _with_labels(texts, tokenizer, lambda text, where: class_of(text.label, classes, where), out, np.int32)


def encode_regression(texts: Sequence[Scored], tokenizer: Any, out: Collector) -> Encoded:
    """Texts or text pairs, as `pieces` encodes them, with their number.

    Raises:
        UserError: too long, or a number that is not finite.
    """
    return _with_labels(texts, tokenizer, _number_of, out, np.float32)


def _with_labels(
    texts: Sequence[Labelled] | Sequence[Scored], tokenizer: Any, label: Callable[[Any, str], Any], out: Collector,
    dtype: Any,
) -> Encoded:  # fmt: skip
    pairs = is_encoder(tokenizer) and any(text.text_pair is not None for text in texts)
    for batch in _batches(len(texts)):
        for row, (tokens, types) in zip(batch, pieces([(texts[i].text, texts[i].text_pair) for i in batch], tokenizer)):
            with out.bad:
                if not out.fits(row, len(tokens)):
                    if not out.cuts:
                        continue
                    text = (texts[row].text, texts[row].text_pair)
                    [(tokens, types)] = pieces([text], tokenizer, out.max_length, out.left)
                value = label(texts[row], out.place(row))
                out.add(row, [tokens], value, **({"token_type_ids": [types]} if pairs else {}))
    return out.encoded("row", tokenizer.pad_token_id, dtype)


def score_of(score: float, bounds: Sequence[float], where: str) -> float:
    """The score; UserError where it is outside the bounds."""
    low, high = bounds
    if not low <= score <= high:
        raise UserError(f"{where}: the score {score} is outside task.bounds=({low}, {high}); mend one of them")
    return score


def _number_of(text: Scored, where: str) -> float:
    if not math.isfinite(text.score):
        raise UserError(f"{where}: the score is {text.score}; it must be a finite number")
    return text.score


def is_encoder(tokenizer: Any) -> bool:
    """Whether the tokenizer marks a text's start and end as encoders do."""
    return tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None


def pieces(
    texts: Sequence[tuple[str, str | None]], tokenizer: Any, max_length: int | None = None, left: bool = False
) -> list[tuple[list[int], list[int]]]:
    """Ids and token types of texts or pairs, with the tokenizer's own special tokens.

    A tokenizer without cls and sep (a decoder's) gives bos if it adds one, the text (a pair's two
    texts joined by a newline), and eos if it has one, so that the last real token is eos; no types.
    With `max_length` the start of the text is kept (`left`: its end), of a pair the starts (ends) of both as `level`
    says, and the special tokens, the newline between two texts among them.

    Raises:
        UserError: a max_length without room for text.
    """
    return (_with_types if is_encoder(tokenizer) else _for_decoder)(texts, tokenizer, max_length, left)


@contextmanager
def truncating(tokenizer: Any, left: bool) -> Iterator[None]:
    """A tokenizer that cuts texts at their starts, or at their ends, whatever its own setting."""
    own, tokenizer.truncation_side = tokenizer.truncation_side, "left" if left else "right"
    try:
        yield
    finally:
        tokenizer.truncation_side = own


def _with_types(
    texts: Sequence[tuple[str, str | None]], tokenizer: Any, max_length: int | None, left: bool
) -> list[tuple[list[int], list[int]]]:
    out = []
    for paired in (False, True):
        chosen = [index for index, (_, second) in enumerate(texts) if (second is not None) == paired]
        if chosen:
            with truncating(tokenizer, left):
                encoding = tokenizer(
                    [texts[index] if paired else texts[index][0] for index in chosen],
                    truncation=max_length is not None,
                    max_length=max_length,
                    return_token_type_ids=True,
                    verbose=False,
                )
            out += zip(chosen, encoding["input_ids"], encoding["token_type_ids"], strict=True)
    return [(ids, types) for _, ids, types in sorted(out)]


def _for_decoder(
    texts: Sequence[tuple[str, str | None]], tokenizer: Any, max_length: int | None, left: bool
) -> list[tuple[list[int], list[int]]]:
    joined = [first if second is None else f"{first}{JOIN}{second}" for first, second in texts]
    bos, eos = bos_of(tokenizer), [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    encoding = tokenizer(joined, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    out = encoding["input_ids"]
    if max_length is not None:
        room = max_length - len(bos) - len(eos)
        if room < 1:
            raise UserError(f"task.max_length={max_length}: no room beside bos and eos; raise it")
        parts = zip(texts, out, encoding["offset_mapping"])
        out = [_cut_pair(ids, spans, len(text[0]), room, left) for text, ids, spans in parts]
    return [(bos + ids + eos, []) for ids in out]


def _cut_pair(ids: list[int], spans: list[tuple[int, int]], size: int, room: int, left: bool) -> list[int]:
    """The starts (`left`: the ends) of what is before and after the `JOIN` that follows `size` characters, `room`
    tokens at most; of one text, its start (end)."""
    if len(ids) <= room:
        return ids
    first = sum(end <= size for _, end in spans)
    second = sum(start >= size + len(JOIN) for start, _ in spans)
    between = len(ids) - first - second
    kept = level(first, second, max(room - between, 0))
    if left:
        return (ids[first - kept[0] : first + between] + ids[len(ids) - kept[1] :])[-room:]
    return (ids[: kept[0]] + ids[first : first + between + kept[1]])[:room]


def level(first: int, second: int, most: int) -> tuple[int, int]:
    """How much of two texts is kept where `most` in all is, less than there is: the longer is cut to the other's
    length, then both alike, as tokenizers' 'longest_first' does."""
    less = min(first, second, most // 2)
    return (less, most - less) if first <= second else (most - less, less)
