"""Documents cut into the rows of pretraining: chunks, one stream of full rows, pairs of segments."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ftjax.data.encoded import Collector, Encoded
from ftjax.data.tasks.task import Text
from ftjax.errors import UserError

SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"'”’)])\s+|\n\s*\n")
SHORT = 0.1  # of the pairs, those that are shorter than they might be (BERT's short_seq_prob)


class Pair(NamedTuple):
    """Two segments; the second is of another document where it is `random`."""

    document: int
    first: list[int]
    second: list[int]
    random: bool


def encode_chunks(texts: Sequence[Text], tokenizer: Any, out: Collector) -> Encoded:
    """[CLS] chunk [SEP], max_length tokens each; a document's last chunk may be shorter. No labels.

    Raises:
        UserError: a tokenizer without these two tokens, no text, or no room beside them.
    """
    room = _room(tokenizer, out, 2)
    for row, text in enumerate(texts):
        [ids] = _ids([_body(text, tokenizer)], tokenizer)
        for start in range(0, len(ids), room):
            out.add(row, [[tokenizer.cls_token_id, *ids[start : start + room], tokenizer.sep_token_id]])
    return out.encoded("none", tokenizer.pad_token_id)


def encode_stream(texts: Sequence[Text], tokenizer: Any, out: Collector) -> Encoded:
    """All documents one after another, cut into rows of exactly max_length tokens, the rest left out. No special
    tokens, no labels.

    Raises:
        UserError: less text than one row.
    """
    length = out.max_length
    encoded = [np.asarray(_ids([_body(text, tokenizer)], tokenizer)[0], np.int32) for text in texts]
    stream = np.concatenate(encoded)
    owner = np.repeat(np.arange(len(texts)), [len(ids) for ids in encoded])
    if len(stream) < length:
        raise UserError(
            f"the documents from {out.place(0)} on have {len(stream)} tokens in all, and a row has"
            f" task.max_length={length}; give more text or shorter rows"
        )
    for start in range(0, len(stream) - length + 1, length):
        out.add(int(owner[start]), [stream[start : start + length]])
    return out.encoded("none", tokenizer.pad_token_id)


def encode_pairs(texts: Sequence[Text], tokenizer: Any, seed: int, out: Collector) -> Encoded:
    """[CLS] A [SEP] B [SEP] with `token_type_ids` (0 up to the first [SEP], then 1), as `pairs` draws them; the label
    is 0 where B follows A, 1 where it does not.

    Raises:
        UserError: as `encode_chunks`, or fewer than two documents with text.
    """
    room = _room(tokenizer, out, 3)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    most = max(room // 2, 1)
    documents, owner = [], []
    for row, text in enumerate(texts):
        found = _ids([s for s in SENTENCE.split(_body(text, tokenizer)) if s.strip()], tokenizer)
        sentences = [ids[start : start + most] for ids in found for start in range(0, len(ids), most)]
        if sentences:
            documents.append(sentences)
            owner.append(row)
    if len(documents) < 2:
        raise UserError(f"{out.place(0)}: pairs that do not belong together need a second document; add one")
    for pair in pairs(documents, room, np.random.default_rng(seed)):
        tokens = [cls, *pair.first, sep, *pair.second, sep]
        types = np.arange(len(tokens)) > len(pair.first) + 1
        out.add(owner[pair.document], [tokens], int(pair.random), token_type_ids=[types])
    return out.encoded("row", tokenizer.pad_token_id)


def pairs(documents: Sequence[Sequence[list[int]]], room: int, rng: np.random.Generator) -> Iterator[Pair]:
    """BERT's pairs of segments (Devlin et al. 2018, appendix A.2) of documents that are lists of sentences, all with
    tokens.

    Sentences are gathered up to `room` tokens (of every tenth pair, to a random number of them) and cut in two at a
    random one. For half of the pairs, and where there is one sentence only, the second part is text from a random
    place of another document, and the sentences that it replaces begin the next pair. What is over `room` goes from
    the ends of the longer part.
    """
    for number, document in enumerate(documents):
        at = 0
        while at < len(document):
            target = int(rng.integers(2, room + 1)) if rng.random() < SHORT else room
            end = _reach(document, at, target)
            middle = at + int(rng.integers(1, max(end - at, 2)))
            random = end - at == 1 or rng.random() < 0.5
            first = _joined(document[at:middle])
            if random:
                other = int(rng.integers(len(documents) - 1))
                there = documents[other + (other >= number)]
                start = int(rng.integers(len(there)))
                second = _joined(there[start : _reach(there, start, target - len(first))])
            else:
                second = _joined(document[middle:end])
            _shorten(first, second, target, rng)
            yield Pair(number, first, second, random)
            at = middle if random else end


def _reach(document: Sequence[list[int]], start: int, target: int) -> int:
    """The end of the sentences from `start` on that have `target` tokens, at least one sentence."""
    end, size = start + 1, len(document[start])
    while end < len(document) and size < target:
        size += len(document[end])
        end += 1
    return end


def _joined(sentences: Sequence[list[int]]) -> list[int]:
    return [token for sentence in sentences for token in sentence]


def _shorten(first: list[int], second: list[int], most: int, rng: np.random.Generator) -> None:
    while len(first) + len(second) > most:
        longer = first if len(first) > len(second) else second
        longer.pop(0 if rng.random() < 0.5 else -1)


def _room(tokenizer: Any, out: Collector, special: int) -> int:
    """Tokens of text in a row."""
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        raise UserError("the tokenizer has no [CLS] and [SEP] to put around a text; take an encoder's")
    least = 2 * special - 1  # a token in each segment
    if out.max_length < least:
        raise UserError(f"task.max_length={out.max_length} has no room for text; give {least} or more")
    return out.max_length - special


def _body(text: Text, tokenizer: Any) -> str:
    return (text.prompt + text.completion).removesuffix(tokenizer.eos_token or "")


def _ids(texts: list[str], tokenizer: Any) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
