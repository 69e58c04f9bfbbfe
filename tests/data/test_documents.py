"""Documents cut into rows: chunks, a stream, pairs of sentences; what a tokenizer tells of words and sentinels."""

from types import SimpleNamespace

import numpy as np
import pytest
from books import sentences, tokenizers, write_books
from hypothesis import given
from hypothesis import strategies as st

from ftjax.data.documents import encode_chunks, encode_pairs, encode_stream, pairs
from ftjax.data.encoded import Collector
from ftjax.data.tasks.task import Text
from ftjax.data.tokenizer import train_tokenizer
from ftjax.errors import UserError
from ftjax.kinds.masks import continues
from ftjax.kinds.spans import sentinels_of

LENGTH = 24


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    return write_books(tmp_path_factory.mktemp("books"))


@pytest.fixture(scope="module")
def learned(books):
    return tokenizers(books)


@pytest.fixture
def tokenizer(learned):
    return learned["wordpiece"]


def collector(length, n=3):
    return Collector(length, "error", [f"{i}.txt:1" for i in range(n)])


def texts(n=3):
    return [Text("", sentences(4 + 3 * i, i)) for i in range(n)]


def ids_of(tokenizer, text):
    return tokenizer(text.completion, add_special_tokens=False)["input_ids"]


def test_chunks_are_the_text_again(tokenizer):
    made = encode_chunks(texts(), tokenizer, collector(10))
    assert made.by == "none" and made.lengths.max() == 10
    for row, text in enumerate(texts()):
        mine = [made[i].tokens.tolist() for i in np.flatnonzero(made.rows == row)]
        assert all(ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id for ids in mine)
        assert all(len(ids) == 10 for ids in mine[:-1]) and len(mine[-1]) > 2
        assert [token for ids in mine for token in ids[1:-1]] == ids_of(tokenizer, text)


def test_a_stream_is_the_documents_without_their_end(learned):
    tokenizer = learned["unigram"]
    made = encode_stream([Text("", text.completion + "</s>") for text in texts()], tokenizer, collector(7))
    whole = [token for text in texts() for token in ids_of(tokenizer, text)]
    assert (made.lengths == 7).all() and len(made) == len(whole) // 7
    assert made.tokens.tolist() == whole[: len(made) * 7]
    assert (np.diff(made.rows) >= 0).all() and set(made.rows) == {0, 1, 2}
    with pytest.raises(UserError, match=r"0\.txt:1 on have \d+ tokens in all, and a row has task.max_length=5000"):
        encode_stream(texts(), tokenizer, collector(5000))


def within(part, whole):
    return any(whole[k : k + len(part)] == part for k in range(len(whole)))


def test_pairs_as_rows(tokenizer):
    made = encode_pairs(texts(), tokenizer, 0, collector(LENGTH))
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    for i in range(len(made)):
        ids, types = made[i].tokens, made.extras["token_type_ids"][made.offsets[i] : made.offsets[i + 1]]
        assert ids[0] == cls and ids[-1] == sep and (ids == sep).sum() == 2 and len(ids) <= LENGTH
        first = int(np.argmax(ids == sep)) + 1
        assert types.tolist() == [0] * first + [1] * (len(ids) - first)
        a, b = ids[1 : first - 1].tolist(), ids[first:-1].tolist()
        text = ids_of(tokenizer, texts()[made.rows[i]])
        assert a and b and within(a, text) and (made.labels[i] == 1 or within(b, text))
    again, other = (encode_pairs(texts(), tokenizer, seed, collector(LENGTH)) for seed in (0, 1))
    assert again.tokens.tolist() == made.tokens.tolist() != other.tokens.tolist()


@given(st.integers(0, 1000), st.integers(2, 30))
def test_pairs(seed, room):
    """Every token is its own place: documents of 100, 200, ... on."""
    rng = np.random.default_rng(seed)
    documents = []
    for d in range(3):
        ends = np.cumsum(rng.integers(1, 8, int(rng.integers(1, 12))))
        documents.append([list(range(1000 * d + a, 1000 * d + b)) for a, b in zip([0, *ends[:-1]], ends)])
    made = list(pairs(documents, room, np.random.default_rng(seed)))
    for pair in made:
        assert pair.first and pair.second and len(pair.first) + len(pair.second) <= room
        for part in (pair.first, pair.second):
            assert part == list(range(part[0], part[-1] + 1))  # contiguous
        assert pair.first[0] // 1000 == pair.document
        assert (pair.second[0] // 1000 != pair.document) == pair.random
        assert pair.random or pair.second[0] > pair.first[-1]
    assert {pair.document for pair in made} == {0, 1, 2}


def test_half_of_the_pairs_are_random():
    documents = [[[d] * 4 for _ in range(4000)] for d in range(2)]
    made = list(pairs(documents, 40, np.random.default_rng(0)))
    assert 0.45 < np.mean([pair.random for pair in made]) < 0.58  # a last sentence alone, and short pairs of one
    assert 0.05 < np.mean([len(pair.first) + len(pair.second) < 37 for pair in made]) < 0.15


def piece_table(tokenizer):
    table = continues(tokenizer, len(tokenizer) + 3)
    assert not table[-3:].any() and not table[tokenizer.all_special_ids].any()
    return {piece for piece, i in tokenizer.get_vocab().items() if table[i]}


def test_pieces_that_go_on_with_a_word(tokenizer, learned, books):
    assert piece_table(tokenizer) == {piece for piece in tokenizer.get_vocab() if piece.startswith("##")} != set()
    inside = piece_table(learned["unigram"])
    assert inside and not any(piece.startswith("▁") for piece in inside)
    byte = train_tokenizer("byte_bpe", books, 300)
    assert {"a", "."} <= piece_table(byte) and "Ġthe" not in piece_table(byte)


def test_characters_alone_mark_no_word(tmp_path):
    (tmp_path / "x.txt").write_text("abab")
    tokenizer = train_tokenizer("byte_bpe", [tmp_path / "x.txt"], 258)
    with pytest.raises(UserError, match=r"task.whole_words: no piece of the tokenizer marks"):
        continues(tokenizer, len(tokenizer))


def test_sentinels_descend(learned):
    tokenizer = learned["unigram"]
    ids = sentinels_of(tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids) == [f"<extra_id_{i}>" for i in range(8)]
    assert list(ids) == sorted(ids, reverse=True)


def test_a_tokenizer_without_ends():
    with pytest.raises(UserError, match=r"no \[CLS\] and \[SEP\]"):
        encode_chunks(texts(), SimpleNamespace(cls_token_id=None, sep_token_id=None), collector(9))


def test_one_document_gives_no_pairs(tokenizer):
    with pytest.raises(UserError, match=r"0\.txt:1: pairs that do not belong together need a second"):
        encode_pairs([*texts(1), Text("", " ")], tokenizer, 0, collector(LENGTH))
