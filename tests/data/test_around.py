"""Tokens that a method puts around the text."""

import numpy as np
import pytest

from ftjax.data.around import Around, insert
from ftjax.data.encoded import IGNORED, Encoded
from ftjax.errors import UserError

BOS, EOS = 1, 2
PIECES = Around((90, 91), (7, 92), True, frozenset({BOS}), frozenset({EOS}))


def encoded(by, tokens, labels, types=None):
    offsets = np.cumsum([0, *map(len, tokens)])
    flat = lambda rows: np.concatenate([np.asarray(r, np.int32) for r in rows])  # noqa: E731
    labels = flat(labels) if by == "next" else np.asarray(labels, np.int32)
    extras = {"token_type_ids": flat(types)} if types else {}
    return Encoded(by, flat(tokens), offsets, labels, np.arange(len(tokens), dtype=np.int32), 0, extras=extras)


def test_before_and_after_the_prompt_none_of_it_in_the_loss():
    x = IGNORED
    made = insert(encoded("next", [[BOS, 5, 6, 8, EOS], [5, 9, EOS]], [[x, x, x, 8, EOS], [x, 9, EOS]]), PIECES, False)
    assert made[0].tokens.tolist() == [BOS, 90, 91, 5, 6, 7, 92, 8, EOS]
    assert made[0].labels.tolist() == [x, x, x, x, x, x, x, 8, EOS]
    assert made[1].tokens.tolist() == [90, 91, 5, 7, 92, 9, EOS]
    outside = PIECES._replace(inside=False)
    assert insert(encoded("next", [[BOS, 5, 8]], [[x, x, 8]]), outside, False)[0].tokens.tolist()[:3] == [90, 91, BOS]


def test_a_closing_token_stays_last_and_types_are_the_neighbours():
    made = insert(encoded("row", [[BOS, 5, EOS, 6, EOS]], [1], [[0, 0, 0, 1, 1]]), PIECES, False)
    assert made[0].tokens.tolist() == [BOS, 90, 91, 5, EOS, 6, 7, 92, EOS]
    assert made.extras["token_type_ids"].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert made[0].labels == 1


def test_chunks_of_documents_take_only_what_comes_before():
    chunk = encoded("next", [[5, 6, 7]], [[IGNORED, 6, 7]])
    made = insert(chunk, PIECES._replace(after=()), True)
    assert made[0].tokens.tolist() == [90, 91, 5, 6, 7]
    assert made[0].labels.tolist() == [IGNORED, IGNORED, IGNORED, 6, 7]
    with pytest.raises(UserError, match="put all before"):
        insert(chunk, PIECES, True)


def test_a_prompt_to_continue():
    assert PIECES.prompt([BOS, 5]) == [BOS, 90, 91, 5, 7, 92] and PIECES.prompt([]) == [90, 91, 7, 92]


def test_pieces_next_to_the_gap():
    pieces = PIECES._replace(left=(94,), right=(95, 96), mask=9)
    texts, types = [[BOS, 5, 9, 9, 6, EOS], [9, 5, EOS]], [[0, 0, 0, 0, 1, 1], [0, 1, 1]]
    made = insert(encoded("row", texts, [1, 0], types), pieces, False)
    first = [BOS, 90, 91, 5, 94, 9, 9, 95, 96, 6, 7, 92, EOS]
    assert made[0].tokens.tolist() == first == pieces.closed(texts[0])
    assert made[1].tokens.tolist() == [90, 91, 94, 9, 95, 96, 5, 7, 92, EOS]
    assert made.extras["token_type_ids"].tolist() == [0] * 7 + [1] * 6 + [0] * 4 + [1] * 6
    assert pieces.size == len(pieces.added) == 7
    for wrong in ([BOS, 5, EOS], [BOS, 9, 5, 9, EOS]):
        with pytest.raises(UserError, match="not one gap in this text"):
            insert(encoded("row", [wrong], [1]), pieces, False)
