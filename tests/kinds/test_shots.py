"""Solved examples before a prompt, and questions that are answered in writing."""

import numpy as np
import pytest

from ftjax.errors import UserError
from ftjax.kinds.base import Write
from ftjax.train.build import load_data
from ftjax.train.evaluate import evaluate_split

TEXTS = [{"prompt": f"{a} ran to", "completion": f" {b}"} for a, b in (
    ("Anna", "Rome"), ("Bob", "Oslo"), ("the cat", "a mat"), ("who", "the sea"),
)]  # fmt: skip
CLASSES = {
    "task.objective": "choice", "task.classes": ("bad", "fair", "good"), "task.template": "{text}: {mask}.",
    "task.label_words": ("home", "Oslo", "Rome"), "task.max_length": 180,
}  # fmt: skip
LABELLED = [{"text": f"the {w}", "label": label} for w, label in (
    ("cat", "good"), ("mat", "bad"), ("sea", "good"), ("home", "bad"), ("run", "good"), ("sat", "fair"), ("by", "fair"),
)]  # fmt: skip
WORD = {"bad": "home", "fair": "Oslo", "good": "Rome"}
ANSWERED = {"text": ["Rome", "in Rome", "Rome"], "answer_start": [12, 9, 12]}
QUESTIONS = [
    {"id": "1", "question": "where ?", "context": "Anna sat in Rome", "answers": ANSWERED},
    {"id": "2", "question": "who ?", "context": "Anna sat in Rome", "answers": {"text": ["Anna"], "answer_start": [0]}},
    {"id": "3", "question": "why ?", "context": "Anna sat in Rome", "answers": {"text": [], "answer_start": []}},
]


@pytest.fixture
def prepared(prepare, gpt):
    """prepared(task, train rows, validation rows, field=value, ...) -> (fields, parts)."""
    base = {"model.path": str(gpt), "task.max_length": 120}
    return lambda task, *rows, **fields: prepare(task, "full", *rows, **base | fields)


def texts(f, parts, split="validation", training=False):
    encoded = load_data(f, parts, split, training=training).encoded
    return [parts.tokenizer.decode(encoded[i].tokens) for i in range(len(encoded))]


def test_what_stands_before_a_prompt(prepared):
    asks = [{"prompt": "a mat ran to", "completion": " Oslo"}]
    (plain,) = texts(*prepared("lm", TEXTS, asks))
    assert plain.startswith("a mat ran to Oslo")
    f, parts = prepared("lm", TEXTS, asks, **{"task.shots": 3, "task.separator": " ;\n", "seed": 5})
    (text,) = texts(f, parts)
    *shown, query = text.split(" ;\n")
    assert query == plain and len(set(shown)) == 3
    assert set(shown) <= {row["prompt"] + row["completion"] for row in TEXTS}
    encoded = load_data(f, parts, "validation", training=False).encoded
    assert parts.tokenizer.decode(encoded[0].labels[encoded[0].labels >= 0]).startswith(" Oslo")
    assert texts(*prepared("lm", TEXTS, asks, **{"task.shots": 3, "task.separator": " ;\n", "seed": 5})) == [text]
    others = {texts(*prepared("lm", TEXTS, asks, **{"task.shots": 3, "seed": seed}))[0] for seed in range(4)}
    assert len(others) > 1


def test_the_exact_text_of_classes(prepared):
    f, parts = prepared("classification", LABELLED, LABELLED[:1], **CLASSES | {"task.shots": 3})
    found = texts(f, parts)
    assert len(found) == 3
    before = found[0].removesuffix("the cat: home.")
    assert found == [f"{before}the cat: {word}." for word in ("home", "Oslo", "Rome")]
    shown = before.removesuffix("\n\n").split("\n\n")
    assert sorted(line.split(": ")[1] for line in shown) == ["Oslo.", "Rome.", "home."]
    lines = {f"{row['text']}: {WORD[row['label']]}." for row in LABELLED if row["text"] != "the cat"}
    assert set(shown) <= lines


@pytest.mark.parametrize(("k", "counts"), [(1, [0, 0, 1]), (2, [0, 1, 1]), (4, [1, 1, 2]), (5, [1, 2, 2])])
def test_shots_are_balanced(prepared, k, counts):
    (text, *_) = texts(
        *prepared("classification", LABELLED, [{"text": "a", "label": "bad"}], **CLASSES | {"task.shots": k})
    )
    shown = text.split("\n\n")[:-1]
    assert sorted(sum(line.endswith(f" {word}.") for line in shown) for word in WORD.values()) == counts
    assert len(set(shown)) == k


def test_an_example_does_not_see_itself(prepared):
    f, parts = prepared("classification", LABELLED, LABELLED, **CLASSES | {"task.shots": 3})
    shown = [text.split("\n\n") for text in texts(f, parts, "train", training=True)]
    assert all(query not in before for *before, query in shown)
    usual = max((tuple(before) for *before, _ in shown), key=[tuple(before) for *before, _ in shown].count)
    for *before, query in shown:  # only what is the query itself gives way
        assert [line for line in before if line not in usual] == [] or query in usual
    with pytest.raises(UserError, match=r"task.shots=7: too many for a training split of 2, 2, 3 examples"):
        texts(*prepared("classification", LABELLED, LABELLED, **CLASSES | {"task.shots": 7}))


def test_examples_that_ask_the_same_are_told(prepared):
    rows = [{"text": "the cat", "label": label} for label in ("good", "bad", "fair") * 3]
    with pytest.raises(UserError, match=r"split of 3, 3, 3 examples \(by class\), 9 of which ask what is to be solved"):
        texts(*prepared("classification", rows, rows, **CLASSES | {"task.shots": 3}))


def test_shots_change_the_scores_and_not_the_rows(prepared):
    found = [
        evaluate_split(*prepared("classification", LABELLED, LABELLED[:2], **CLASSES | {"task.shots": k}), "validation")
        for k in (0, 3)
    ]
    rows = [[{name: row[name] for name in ("text", "reference")} for row in rows] for _, rows in found]
    assert rows[0] == rows[1] and found[0][0]["loss"] != found[1][0]["loss"]


def test_questions_are_answered_in_writing(prepared, bert):
    f, parts = prepared("qa", QUESTIONS, QUESTIONS, **{"task.objective": "lm"})
    found = texts(f, parts)
    assert [text.removesuffix(parts.tokenizer.eos_token) for text in found] == [
        "Anna sat in Rome\nQuestion: where ?\nAnswer: Rome", "Anna sat in Rome\nQuestion: who ?\nAnswer: Anna",
        "Anna sat in Rome\nQuestion: why ?\nAnswer: unanswerable",
    ]  # fmt: skip
    data = load_data(f, parts, "validation", training=False)
    outputs = {name: [np.ones(n) for n in data.encoded.label_counts] for name in ("nll", "correct")}

    def answer(examples):
        assert list(examples) == [0, 1, 2]
        return [" in Rome\nQuestion: and", " Bob", " Unanswerable."]

    measures, rows = parts.kind.score(parts.setting, data.examples, data.encoded, outputs, Write(answer, None, True))
    assert [row["prediction"] for row in rows] == ["in Rome", "Bob", ""]
    assert [row["references"] for row in rows] == [["Rome", "in Rome"], ["Anna"], []]
    assert measures["squad_exact_match"].value == pytest.approx(2 / 3) == measures["squad_f1"].value
    result, _ = evaluate_split(f, parts, "validation")
    assert {"squad_f1", "squad_exact_match", "perplexity"} <= set(result)


def test_answers_end_at_the_separator(prepared):
    f, parts = prepared("lm", TEXTS, TEXTS[:1], **{"task.shots": 2, "task.separator": " ;"})
    data = load_data(f, parts, "validation", training=False)
    outputs = {name: [np.ones(n) for n in data.encoded.label_counts] for name in ("nll", "correct")}
    write = Write(lambda examples: [" Rome ; Bob ran to Oslo"], None, True)
    _, rows = parts.kind.score(parts.setting, data.examples, data.encoded, outputs, write)
    assert rows[0]["prediction"] == "Rome" and rows[0]["prompt"] == "Anna ran to"


WRONG = [
    ("lm", TEXTS, {"task.shots": -1}, "task.shots=-1: give 0 or more"),
    ("lm", TEXTS, {"task.shots": 1, "task.separator": ""}, "task.separator='': give what stands between examples"),
    ("lm", TEXTS, {"task.shots": 4}, "task.shots=4: too many for a training split of 4 examples"),
    ("text", [{"text": "the cat"}], {"task.shots": 1}, "task.shots=1: examples of text have no prompt; set it to 0"),
]


@pytest.mark.parametrize(("task", "rows", "fields", "message"), WRONG)
def test_what_cannot_be_done(prepared, task, rows, fields, message):
    with pytest.raises(UserError, match=message):
        texts(*prepared(task, rows, rows, **fields))
