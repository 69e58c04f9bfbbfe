"""Learned tokenizers: the textbook's merges, what transformers loads, the same twice, and errors."""

import gzip
import json
import random

import pytest
from transformers import AutoTokenizer

from ftjax.data.tokenizer import MARK, SPECIAL, measure, train_tokenizer
from ftjax.errors import UserError

CORPUS = {"low": 5, "lowest": 2, "newer": 6, "wider": 3, "new": 2}
SIZES = {"bpe": 90, "byte_bpe": 330, "wordpiece": 120, "unigram": 80}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Sentences of made-up words, frequent and rare, with capitals and a letter that is there once."""
    rng, path = random.Random(0), tmp_path_factory.mktemp("text") / "text.txt"
    words = ["".join(rng.choices("etaoinshrd", k=rng.randint(1, 7))) for _ in range(200)]
    lines = [" ".join(rng.choices(words, [1 / n for n in range(1, 201)], k=8)).capitalize() + "." for _ in range(150)]
    path.write_text("\n".join([*lines, "\u00c9t\u00e9, qu\u00e9?"]))
    return path


@pytest.fixture(scope="module")
def learned(file):
    """learned(kind, **options) -> a tokenizer of SIZES[kind]."""
    return lambda kind, **options: train_tokenizer(kind, [file], SIZES[kind], **options)


def state(tokenizer):
    return json.loads(tokenizer.backend_tokenizer.to_str())


def test_the_textbook_s_merges(tmp_path):
    """low x 5, lowest x 2, newer x 6, wider x 3, new x 2 (Jurafsky & Martin, chapter 2): er and er_ 9 times, then ne 8,
    which is as frequent as ew, new 8, lo and low 7, newer_ 6, low_ 5."""
    file = tmp_path / "corpus.txt"
    file.write_text(" ".join(word for word, count in CORPUS.items() for _ in range(count)))
    special, letters = 4, 11
    tokenizer = train_tokenizer("bpe", [file], special + letters + 8)
    merges = ["".join(pair).replace(MARK, "_") for pair in state(tokenizer)["model"]["merges"]]
    assert merges == ["er", "er_", "ne", "new", "lo", "low", "newer_", "low_"]
    assert len(tokenizer) == special + letters + 8
    assert tokenizer.tokenize("newer lower low") == [f"newer{MARK}", "low", f"er{MARK}", f"low{MARK}"]
    assert tokenizer.decode(tokenizer("newer  lower\nlow")["input_ids"]) == "newer lower low"


@pytest.mark.parametrize("kind", SPECIAL)
def test_transformers_loads_it(kind, learned, file, tmp_path):
    tokenizer = learned(kind, special=["<sep>", "<end>"])
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    assert len(loaded) == SIZES[kind] and loaded.get_vocab() == tokenizer.get_vocab()
    for role, token in SPECIAL[kind].items():
        assert getattr(loaded, role) == token and loaded.convert_tokens_to_ids(token) < len(SPECIAL[kind])
    assert loaded.convert_ids_to_tokens([SIZES[kind] - 2, SIZES[kind] - 1]) == ["<sep>", "<end>"]
    text = file.read_text()[:200]
    ids = loaded(text)["input_ids"]
    assert ids == tokenizer(text)["input_ids"] and loaded.unk_token_id not in ids
    assert loaded("a<end>", add_special_tokens=False)["input_ids"][-1] == SIZES[kind] - 1
    spelled = loaded.decode(ids, skip_special_tokens=True)
    assert spelled == text if kind == "byte_bpe" else spelled.split() == text.split()
    assert ("token_type_ids" in loaded(text)) == (kind == "wordpiece")


@pytest.mark.parametrize("kind", SPECIAL)
def test_the_same_again(kind, learned):
    first = state(learned(kind))
    assert all(state(learned(kind)) == first for _ in range(4))


def test_what_goes_around_a_text(learned):
    wordpiece, unigram = learned("wordpiece"), learned("unigram", sentinels=3)
    pair = wordpiece("te", "ha")
    tokens = wordpiece.convert_ids_to_tokens(pair["input_ids"])
    assert tokens[0] == "[CLS]" and tokens[-1] == "[SEP]" and tokens.count("[SEP]") == 2
    assert pair["token_type_ids"] == [int(i > tokens.index("[SEP]")) for i in range(len(tokens))]
    assert unigram.convert_ids_to_tokens(unigram("te")["input_ids"])[-1] == "</s>"
    assert unigram("te")["input_ids"].count(1) == 1 and unigram("te", "ha")["input_ids"].count(1) == 2
    last = [unigram.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(3)]
    assert last == [SIZES["unigram"] - 1, SIZES["unigram"] - 2, SIZES["unigram"] - 3]
    for kind in ("bpe", "byte_bpe"):
        assert not set(learned(kind)("te")["input_ids"]) & set(range(len(set(SPECIAL[kind].values()))))


def test_scores_of_unigram(learned):
    """What was learned is in the order of its scores, and letters that no cut of a word uses share the lowest."""
    pieces = state(learned("unigram"))["model"]["vocab"][3:]
    assert pieces == sorted(pieces, key=lambda item: (-item[1], item[0]))
    lowest = [piece for piece, score in pieces if score == pieces[-1][1]]
    assert len(lowest) > 1 and {"q", "\u00c9"} & set(lowest)


@pytest.mark.parametrize("kind", SPECIAL)
def test_lowercase(kind, learned):
    tokenizer = learned(kind, lowercase=True)
    assert tokenizer("The Oath")["input_ids"] == tokenizer("the oath")["input_ids"]
    pieces = tokenizer.get_vocab().keys() - set(SPECIAL[kind].values()) - set(map(chr, range(0x80, 0x200)))
    if kind != "byte_bpe":  # whose alphabet is all bytes
        assert not any(piece.lower() != piece for piece in pieces)
    assert (tokenizer.tokenize("\u00e9t\u00e9") == tokenizer.tokenize("ete")) == (kind == "wordpiece")


def test_measure(tmp_path):
    file = tmp_path / "text.txt.gz"
    file.write_bytes(gzip.compress("ab ab\n\u00e9\n".encode() * 3))
    tokenizer = train_tokenizer("bpe", [file], 4 + 4)  # a, b, \u00e9, the mark
    assert measure(tokenizer, [file, file]) == (2 * 3 * 9, 2 * 3 * 3, 2 * 3 * (3 + 3 + 2))


@pytest.mark.parametrize("kind, size, options, words", [
    ("word", 100, {}, ["kind='word'", "byte_bpe"]),
    ("bpe", 20, {}, ["bpe needs", "alphabet"]),
    ("byte_bpe", 257, {"special": ["<a>"]}, ["leaves 256", "needs 257", "give 1 more"]),
    ("wordpiece", 10, {}, ["wordpiece needs"]),
    ("unigram", 20, {}, ["unigram needs"]),
    ("bpe", 100, {"sentinels": 2}, ["sentinels=2", "unigram"]),
    ("bpe", 100, {"special": ["<a>", "<a>"]}, ["'<a>'", "once"]),
    ("bpe", 100, {"special": ["</s>"]}, ["'</s>'"]),
    ("bpe", 100, {"special": [" "]}, ["empty"]),
])  # fmt: skip
def test_bad_input(kind, size, options, words, file):
    with pytest.raises(UserError) as error:
        train_tokenizer(kind, [file], size, **options)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("kind", SPECIAL)
def test_the_least_size(kind, file):
    with pytest.raises(UserError, match=r"give \d+ more") as error:
        train_tokenizer(kind, [file], 10)
    least = 10 + int(str(error.value).split()[-2])
    assert len(train_tokenizer(kind, [file], least)) == least


def test_bad_files(tmp_path):
    def fails(name, content, word):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=word):
            train_tokenizer("byte_bpe", [tmp_path / name], 300)

    fails("rows.jsonl", b"{}", "txt.gz")
    fails("nowhere.txt", None, "no such file")
    fails("latin.txt", b"a\n\xe9", "latin.txt:2: not UTF-8")
    fails("blank.txt", b" \n\n", "no words")
    fails("cut.txt.gz", gzip.compress(b"abc")[:-4], "cannot be read")
