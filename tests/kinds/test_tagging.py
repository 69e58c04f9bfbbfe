"""Tags of words: which piece carries them, whole runs, what packing, padding and soft tokens may not change."""

from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ftjax.data.align import first_pieces, words_of
from ftjax.data.encoded import IGNORED, Collector
from ftjax.data.tasks import TASKS
from ftjax.data.tasks.task import Tagged
from ftjax.errors import UserError
from ftjax.kinds.tagging import KIND
from ftjax.train.evaluate import evaluate_split
from ftjax.train.loop import train

CLASSES = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
SENTENCES = [
    ("Anna ran home to Rome .", "B-PER O O O B-LOC O"),
    ("the cat sat on a mat", "O O O O O O"),
    ("Bob Smithson sat by the Baltic sea", "B-PER I-PER O O O B-LOC I-LOC"),
    ("who ran to Oslo ?", "O O O B-LOC O"),
    ("Rome", "B-LOC"),
    ("Anna-Maria ate; Bob slept", "B-PER O B-PER O"),
]
ROWS = [{"words": text.split(), "tags": tags.split()} for text, tags in SENTENCES]


def byte_level(trim):
    """Byte-level BPE as RoBERTa's: a space before every word, offsets without it or with it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([text for text, _ in SENTENCES], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim, add_prefix_space=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", pad_token="</s>")


def encode(tokenizer, examples, max_length=64, overlong="error", classes=CLASSES):
    setting = SimpleNamespace(tokenizer=tokenizer, classes=classes)
    out = Collector(max_length, overlong, [f"x.conll:{i}" for i in range(1, len(examples) + 1)])
    return KIND.encode(setting, examples, out, True)


def tagged(rows):
    return [Tagged(tuple(row["words"]), tuple(row["tags"])) for row in rows]


WORDS = ["Bob", "Smithson's", "café", "(U.S.A.)", "東京", "naïve-ish", "🙂", "...", "#1"]


@pytest.mark.parametrize("kind", ["wordpiece", "trimmed", "with spaces"])
def test_the_first_piece_is_that_of_the_tokenizer_s_word_ids(bert, kind):
    tokenizer = AutoTokenizer.from_pretrained(bert) if kind == "wordpiece" else byte_level(kind == "trimmed")
    examples = tagged([*ROWS, {"words": WORDS, "tags": ["B-PER", "I-PER", "O", "B-LOC", *["O"] * 5]}])
    made = encode(tokenizer, examples)
    for i, example in enumerate(examples):
        theirs = tokenizer(list(example.words), is_split_into_words=True)
        assert made[i].tokens.tolist() == theirs["input_ids"]
        expected, before = [], None
        for word in theirs.word_ids():
            first = word is not None and word != before
            expected.append(CLASSES.index(example.tags[word]) if first else IGNORED)
            before = word
        assert made[i].labels.tolist() == expected
    assert max(len(made[i].tokens) - len(x.words) for i, x in enumerate(examples)) > 4  # some have several pieces


def test_words_by_characters():
    spans = [(0, 0), (0, 2), (2, 4), (4, 7), (7, 8), (9, 9), (8, 10), (10, 12), (0, 0)]  # "abcd ef  g"
    word_of = words_of([4, 7, 10], spans, [1, 0, 0, 0, 0, 0, 0, 0, 1])
    assert word_of == [-1, 0, 0, 1, 2, 2, 2, -1, -1]
    assert first_pieces(["abcd", "ef", "g"], word_of, "") == [1, 3, 4]
    with pytest.raises(UserError, match="x:3: the tokenizer makes no token of the word 'h'"):
        first_pieces(["abcd", "ef", "g", "h"], word_of, "x:3")


def test_long_sentences(bert):
    tokenizer = AutoTokenizer.from_pretrained(bert)
    examples = tagged(ROWS[:2])
    whole, cut = encode(tokenizer, examples), encode(tokenizer, examples, 6, "truncate")
    assert cut.truncated == 2 and encode(tokenizer, examples[1:], 8, "drop").dropped == 0
    assert cut[1].tokens.tolist() == [*whole[1].tokens[:5], tokenizer.sep_token_id]
    assert cut[1].labels.tolist() == [*whole[1].labels[:5], IGNORED]
    left = encode(tokenizer, examples, 6, "truncate_left")
    assert left[1].tokens.tolist() == [tokenizer.cls_token_id, *whole[1].tokens[-5:]]
    assert left[1].labels.tolist() == [IGNORED, *whole[1].labels[-5:]]
    with pytest.raises(UserError, match=r"x\.conll:1: 8 tokens, more than max_length 6"):
        encode(tokenizer, examples, 6)


@pytest.mark.parametrize("words, tags, says", [
    (("Rome",), ("B-PET",), "x.conll:1: tag 'B-PET' is none of O, B-LOC"),
    (("Rome", "\x00"), ("B-LOC", "O"), "x.conll:1: the tokenizer makes no token of the word '\\x00'"),
])  # fmt: skip
def test_bad_words_and_tags(bert, words, tags, says):
    with pytest.raises(UserError) as error:
        encode(AutoTokenizer.from_pretrained(bert), [Tagged(words, tags)])
    assert str(error.value).startswith(says)


def test_bad_files(configure, tmp_path):
    rows = [ROWS[0], {"words": ["Oslo"], "tags": ["B-TREE"]}]
    with pytest.raises(UserError, match=r"validation\.jsonl:2: tag 'B-TREE' is none of O, B-LOC"):
        train(*configure("tagging", "full", ROWS, rows), tmp_path / "run")
    with pytest.raises(UserError, match=r"task\.scheme='none': give bio or iob1, for entity_f1 chooses"):
        train(*configure("conll2003", "full", ROWS, ROWS, **{"task.scheme": "none"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_entities_by_hand():
    """Three entities are there, of the guesses one is right, one too short, one of another type; two words were cut."""
    examples = [
        Tagged(tuple("abcde"), ("B-PER", "I-PER", "O", "B-LOC", "O")),
        Tagged(tuple("fghi"), ("B-LOC", "O", "O", "O")),
    ]
    tags = [[3, 0, 0, 1, 0], [3, 0]]
    found = {
        "tag": [np.array(row) for row in tags],
        "nll": [np.full(5, 0.5), np.full(2, 1.2)],
    }
    fields = SimpleNamespace(task=SimpleNamespace(scheme="bio"), data=SimpleNamespace(overlong="truncate"))
    setting = SimpleNamespace(classes=CLASSES, task=TASKS["conll2003"], f=fields)
    measures, rows = KIND.score(setting, examples, SimpleNamespace(rows=np.array([0, 1])), found, None)
    assert measures["entity_f1"].value == pytest.approx(2 * 1 / (3 + 3))
    assert measures["accuracy"].value == pytest.approx((4 + 3) / 9)
    assert measures["loss"].value == pytest.approx((5 * 0.5 + 2 * 1.2) / 7)
    assert rows[1] == {"words": list("fghi"), "prediction": ["B-PER", "O", "O", "O"], "reference": ["B-LOC", *"OOO"]}
    fields.data.overlong = "truncate_left"  # the two are the last words
    _, rows = KIND.score(setting, examples, SimpleNamespace(rows=np.array([0, 1])), found, None)
    assert rows[1]["prediction"] == ["O", "O", "B-PER", "O"]
    fields.task.scheme = "none"  # parts of speech have no entities
    plain, _ = KIND.score(setting, examples, SimpleNamespace(rows=np.array([0, 1])), found, None)
    assert set(plain) == {"loss", "accuracy"}


def test_a_run(configure, tmp_path):
    config, default = configure("tagging", "lora", ROWS, ROWS[:4], steps=4)
    result = train(config, default, tmp_path / "run")
    assert result["best"]["metric"] == "accuracy" and result["metrics"].keys() == {"loss", "accuracy", "entity_f1"}
    assert np.isfinite(result["metrics"]["loss"]) and result["steps"] == 4


LAYOUTS = [("packed", "right"), ("buckets", "right"), ("buckets", "left"), ("packed", "left")]


def test_packing_and_padding_change_nothing(prepare):
    made = []
    for layout, side in LAYOUTS:
        laid = {"data.layout": layout, "data.pad_side": side, "data.buckets": 2}
        f, parts = prepare("tagging", "full", ROWS, ROWS, **laid)
        made.append(evaluate_split(f, parts, "validation"))
    (first, rows), *others = made
    assert len(rows) == 6 and len({tag for row in rows for tag in row["prediction"]}) > 2
    for values, theirs in others:
        assert theirs == rows
        assert values["loss"] == pytest.approx(first["loss"], rel=1e-5)
        assert values["entity_f1_interval"] == first["entity_f1_interval"]


SOFT = {
    "prompt": {"method.length": 3, "method.init": "random"},
    "prompt outside": {"method.length": 3, "method.init": "random", "method.inside": False},
    "p_tuning": {"method.template": "{2}sat{text} by{1}"},
}


@pytest.mark.parametrize(
    ("name", "layout"),
    [("prompt", "packed"), ("prompt outside", "buckets"), ("p_tuning", "packed"), ("p_tuning", "buckets")],
)
def test_soft_tokens_by_hand(prepare, forward, name, layout):
    method = name.split()[0]
    f, parts = prepare("tagging", method, ROWS, ROWS, **SOFT[name], **{"data.layout": layout})
    _, rows = evaluate_split(f, parts, "validation")
    tokenizer, v = parts.tokenizer, parts.model.cfg.vocab_size
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    before, after = [v, v + 1, v + 2], []
    if method == "p_tuning":
        before, after = [v, v + 1, *ids("sat")], [*ids("by"), v + 2]
    for sentence, row in zip(ROWS, rows, strict=True):
        pieces = [ids(word) for word in sentence["words"]]
        opened = [tokenizer.cls_token_id, *before]
        if name == "prompt outside":
            opened = [*before, tokenizer.cls_token_id]
        whole = [*opened, *chain(*pieces), *after, tokenizer.sep_token_id]
        tags = forward(parts, whole, "classify").argmax(-1)
        starts = len(opened) + np.cumsum([0, *map(len, pieces[:-1])])
        assert row["prediction"] == [parts.setting.classes[tags[i]] for i in starts]
