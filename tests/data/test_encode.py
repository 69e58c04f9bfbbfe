import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftjax.data.encode import encode_classification, encode_lm, encode_text_chunks, level, pieces
from ftjax.data.encoded import IGNORED, Collector
from ftjax.data.tasks.task import Labelled, Marked, Text
from ftjax.errors import UserError

WORDS = st.text(st.sampled_from("abce né£\n:."), max_size=12)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_labels_are_the_completion_by_offsets(decoder, decoder_bos, pairs):
    for tokenizer in (decoder, decoder_bos):
        eos = tokenizer.eos_token
        # A special token at the prompt's end keeps words from spanning it, whatever the texts.
        texts = [Text(prompt + eos, completion + eos) for prompt, completion in pairs]
        encoded = encode_lm(texts, tokenizer, Collector(100))
        for i, text in enumerate(texts):
            tokens, labels = encoded[i]
            assert tokenizer.decode(tokens[labels == IGNORED]) == (tokenizer.bos_token or "") + text.prompt
            kept = labels[labels != IGNORED]
            assert tokenizer.decode(kept) == text.completion
            assert (tokens[labels != IGNORED] == kept).all()
            assert kept[-1] == tokens[-1] == tokenizer.eos_token_id and (kept == tokens[-1]).sum() == 1
        assert encoded.label_counts.tolist() == [(encoded[i].labels != IGNORED).sum() for i in range(len(texts))]


def test_pad_that_is_eos_hides_no_eos(decoder):
    assert decoder.pad_token_id == decoder.eos_token_id
    encoded = encode_lm([Text("a:", " b<eos>")], decoder, Collector(9))
    assert encoded[0].labels[-1] == decoder.eos_token_id == encoded.pad_id


def test_bos_comes_once_and_a_missing_pad_is_fine(decoder, decoder_bos):
    plain, written = (
        encode_lm([Text("a:", " b"), Text("<s>a:", " b")], decoder_bos, Collector(9)),
        decoder_bos.bos_token_id,
    )
    for i in range(2):
        assert plain[i].tokens.tolist().count(written) == 1 and plain[i].tokens[0] == written
    assert decoder_bos.pad_token_id is None and plain.pad_id == 0
    assert encode_lm([Text("", "ab")], decoder, Collector(9))[0].labels[0] == IGNORED  # nothing predicts it


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (Text(" riv", "erside<eos>"), "spans the prompt's end"),
        (Text("a:", " b<eos><eos>"), "must end in one <eos>"),
        (Text("a:", ""), "no token to learn"),
        (Text("", "a"), "no token to learn"),
        (Text("", ""), "no token to learn"),
    ],
)
def test_bad_examples_are_named(decoder, text, says):
    good = Text("a:", " b<eos>")
    with pytest.raises(UserError, match=f"^row 1: .*{says}"):
        encode_lm([good, text], decoder, Collector(99))
    with pytest.raises(UserError, match=f"^x.csv:3: .*{says}"):
        encode_lm([good, text], decoder, Collector(99, where=["x.csv:2", "x.csv:3"]))


def test_overlong_policies(decoder):
    texts = [Text("a:", " b<eos>"), Text("a:", "b" * 30), Text("a" * 30, " b")]
    with pytest.raises(UserError, match=r"^row 1: 32 tokens, more than max_length 9; .*or set data\.overlong to"):
        encode_lm(texts, decoder, Collector(9))
    dropped = encode_lm(texts, decoder, Collector(9, "drop"))
    assert (len(dropped), dropped.dropped, dropped.truncated, dropped.rows.tolist()) == (1, 2, 0, [0])
    cut = encode_lm(texts, decoder, Collector(9, "truncate"))
    assert (len(cut), cut.dropped, cut.truncated, cut.rows.tolist()) == (2, 1, 1, [0, 1])
    assert len(cut[1].tokens) == 9
    with pytest.raises(UserError, match="no example left: 1 dropped"):
        encode_lm(texts[1:2], decoder, Collector(9, "drop"))
    with pytest.raises(UserError, match=r"data\.overlong='cut': give error, drop, truncate, truncate_left"):
        encode_lm(texts, decoder, Collector(9, "cut"))  # type: ignore[arg-type]


@given(st.integers(0, 20), st.integers(1, 20), st.integers(2, 24))
def test_truncate_left_keeps_the_answer(decoder, decoder_bos, asked, told, most):
    text = Text("QZ" * asked + "Q", "Z" * told + "<eos>")
    for tokenizer, bos in ((decoder, 0), (decoder_bos, 1)):
        whole = encode_lm([text, Text("Q", "Z")], tokenizer, Collector(99))[0]
        encoded = encode_lm([text, Text("Q", "Z")], tokenizer, Collector(max(most, 3), "truncate_left"))
        left = [encoded[int(i)] for i in np.flatnonzero(encoded.rows == 0)]
        gone, begins = len(whole.tokens) - max(most, 3), int(np.argmax(whole.labels != IGNORED))
        lost = bos + gone >= begins  # all of the prompt
        assert (len(left), encoded.truncated, encoded.dropped) == (not lost, gone > 0 and not lost, lost)
        if gone > 0 and not lost:
            assert left[0].tokens.tolist() == [*whole.tokens[:bos], *whole.tokens[bos + gone :]]
            assert (left[0].labels[: bos + 1] == IGNORED).all()  # the first one left follows what is gone
            assert left[0].labels[bos + 1 :].tolist() == whole.labels[bos + gone + 1 :].tolist()
            assert left[0].labels[-1] == tokenizer.eos_token_id


def test_truncate_left_leaves_out_what_keeps_no_label(decoder):
    texts = [Marked("ab" * 20, ((0, 4),)), Text("a", "b")]
    encoded = encode_lm(texts, decoder, Collector(8, "truncate_left"))
    assert (encoded.rows.tolist(), encoded.dropped, encoded.truncated) == ([1], 1, 0)


def test_truncate_left_leaves_out_an_answer_without_its_question(decoder, decoder_bos):
    texts = [Text("QZQ", "Z" * 7), Text("QZQ", "Z" * 8), Text("", "Z" * 9), Marked("Z" * 9, ((0, 9),))]
    for tokenizer, bos in ((decoder, 0), (decoder_bos, 1)):
        encoded = encode_lm(texts, tokenizer, Collector(8 + bos, "truncate_left"))
        assert (encoded.rows.tolist(), encoded.dropped, encoded.truncated) == ([0, 2, 3], 1, 3)
        assert encoded.label_counts.tolist() == [7, 7, 7]


@given(st.lists(st.text("ab ", min_size=2, max_size=60), min_size=1, max_size=4), st.integers(1, 12))
def test_chunks_hold_the_documents_in_order(decoder_bos, documents, max_length):
    encoded = encode_text_chunks([Text("", text + "<eos>") for text in documents], decoder_bos, Collector(max_length))
    assert encoded.lengths.max() <= max_length + 1 and encoded.lengths.min() > 1
    assert (encoded.label_counts == encoded.lengths - 1).all()
    for row, text in enumerate(documents):
        chunks = [encoded[int(i)] for i in np.flatnonzero(encoded.rows == row)]
        whole = decoder_bos("<s>" + text + "<eos>", add_special_tokens=False)["input_ids"]
        assert np.concatenate([chunk.labels[1:] for chunk in chunks]).tolist() == whole[1:]
        assert all(one.tokens[-1] == next_one.tokens[0] for one, next_one in itertools.pairwise(chunks))


def test_classification_of_an_encoder(encoder):
    texts = [Labelled("a film", "bad"), Labelled("good", 1)]
    encoded = encode_classification(texts, encoder, ("bad", "good"), Collector(20))
    assert encoded.labels.tolist() == [0, 1] and not encoded.extras
    assert [encoded[i].tokens.tolist() for i in range(2)] == encoder([text.text for text in texts])["input_ids"]


def test_text_pairs_have_types(encoder, decoder_bos):
    texts = [Labelled("a", 0, "b c"), Labelled("b", 0), Labelled("c", 0, "d")]
    encoded = encode_classification(texts, encoder, ("x",), Collector(20))
    expected = [encoder(t.text, t.text_pair, return_token_type_ids=True) for t in texts]
    assert encoded.tokens.tolist() == [token for e in expected for token in e["input_ids"]]
    assert encoded.extras["token_type_ids"].tolist() == [kind for e in expected for kind in e["token_type_ids"]]
    joined = encode_classification(texts, decoder_bos, ("x",), Collector(20))
    assert not joined.extras and decoder_bos.decode(joined[0].tokens) == "<s>a\nb c<eos>"


def test_a_decoders_last_token_is_eos_even_when_cut(decoder, decoder_bos, encoder):
    texts = [Labelled("ab" * 20, 0), Labelled("a", 0)]
    for tokenizer, last in ((decoder, "<eos>"), (decoder_bos, "<eos>"), (encoder, "[SEP]")):
        with pytest.raises(UserError, match="more than max_length 8"):
            encode_classification(texts, tokenizer, ("x",), Collector(8))
        encoded = encode_classification(texts, tokenizer, ("x",), Collector(8, "truncate"))
        assert (encoded.lengths[0], encoded.truncated) == (8, 1)
        for i in range(2):
            assert tokenizer.convert_ids_to_tokens(int(encoded[i].tokens[-1])) == last
        assert encode_classification(texts, tokenizer, ("x",), Collector(8, "drop")).rows.tolist() == [1]


@pytest.mark.parametrize(("first", "second", "kept"), [(20, 3, (9, 3)), (3, 20, (3, 9)), (9, 20, (6, 6))])
def test_a_decoders_pair_keeps_both_texts(decoder_bos, first, second, kept):
    texts = [Labelled("Q" * first, 0, "Z" * second), Labelled("Q", 0, "Z")]
    encoded = encode_classification(texts, decoder_bos, ("x",), Collector(15, "truncate"))
    assert decoder_bos.decode(encoded[0].tokens) == f"<s>{'Q' * kept[0]}\n{'Z' * kept[1]}<eos>"
    assert decoder_bos.decode(encoded[1].tokens) == "<s>Q\nZ<eos>" and encoded.truncated == 1


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 60))
def test_texts_are_levelled_as_one_token_at_a_time(first, second, most):
    most, sizes = min(most, first + second), [first, second]
    longer = second >= first  # the one that keeps what does not divide
    while sum(sizes) > most:
        sizes[sizes.index(max(sizes)) if sizes[0] != sizes[1] else int(not longer)] -= 1
    assert level(first, second, most) == tuple(sizes)


@pytest.mark.parametrize(
    ("first", "second", "kept"), [(20, 3, (9, 3)), (3, 20, (3, 9)), (9, 20, (6, 6)), (30, None, (13, 0))]
)
def test_truncate_left_keeps_the_ends_of_texts(decoder_bos, encoder, first, second, kept):
    alphabet = "QZKXWVJYUQZKXWVJYUQZKXWVJYUQZKXWVJYU"  # each a token
    one, two = alphabet[:first], second and alphabet[::-1][:second]
    ends = one[len(one) - kept[0] :], (two or "")[len(two or "") - kept[1] :]
    texts = [Labelled(one, 0, two), Labelled("Q", 0, second and "Z")]
    encoded = encode_classification(texts, decoder_bos, ("x",), Collector(15, "truncate_left"))
    joined = "\n".join(ends) if two else ends[0]
    assert decoder_bos.decode(encoded[0].tokens) == f"<s>{joined}<eos>"
    encoded = encode_classification(texts, encoder, ("x",), Collector(15, "truncate_left"))
    between = "[SEP]" if two else ""
    assert encoder.decode(encoded[0].tokens) == f"[CLS]{ends[0]}{between}{ends[1]}[SEP]" and encoded.truncated == 1
    assert encoder.truncation_side == "right"


def test_a_length_without_room_for_text(decoder_bos):
    with pytest.raises(UserError, match=r"^task.max_length=2: no room beside bos and eos; raise it"):
        pieces([("abab", None)], decoder_bos, 2)


def test_nothing_to_encode(decoder):
    with pytest.raises(UserError, match=r"^no example left: there was none$"):
        encode_lm([], decoder, Collector(9))


def test_a_label_is_a_name_or_where_no_name_is_a_number_an_index(encoder):
    def labels(classes, *given):
        return encode_classification([Labelled("a", x) for x in given], encoder, classes, Collector(20)).labels.tolist()

    assert labels(("bad", "good"), "good", "0", "1", 1, "bad") == [1, 0, 1, 1, 0]
    assert labels(("1", "0"), "1", "0", 1) == [0, 1, 1]
    with pytest.raises(UserError, match=r"^row 0: label '1' is none of the classes \(9, 10\)"):
        labels(("9", "10"), "1")


@pytest.mark.parametrize("label", ["fine", "2", 2, -1])
def test_a_label_outside_the_classes(encoder, label):
    with pytest.raises(UserError, match=rf"^row 0: label '{label}' is none of the classes \(0 bad, 1 good\)"):
        encode_classification([Labelled("a", label)], encoder, ("bad", "good"), Collector(20))
