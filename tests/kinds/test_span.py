"""Extractive answers: windows and their labels as transformers' examples have them, the best span, whole runs."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ftjax.data.encoded import Collector
from ftjax.data.tasks import TASKS
from ftjax.data.tasks.task import Question
from ftjax.errors import UserError
from ftjax.kinds.span import KIND, best_span, place
from ftjax.objectives.span import FIRST, LAST
from ftjax.train.build import load_data
from ftjax.train.evaluate import evaluate_split
from ftjax.train.loop import train

LONG = "the cat sat on a mat and Anna ran home to Rome by the sea . in Oslo , Bob sat by the sea and ran home"


def question(text, context, *answers):
    return Question(text, text, context, tuple((x, context.index(x)) for x in answers))


QUESTIONS = [
    question("where did Anna run ?", LONG, "Rome"),
    question("where did Bob run ?", LONG, "Bob sat by the sea", "sea"),
    question("who sat ?", "the cat sat on a mat .", "cat"),
    question("where did the cat run ?", "the cat sat on a mat ."),
    question("what ran ?", "Zebulon Quigley and the elephant ran , by 1862 .", "Zebulon Quigley"),
]
ROWS = [
    {"id": str(i), "question": x.question, "context": x.context,
     "answers": [{"text": text, "answer_start": at} for text, at in x.answers]}
    for i, x in enumerate(QUESTIONS)
]  # fmt: skip
FIELDS = {"task.doc_stride": 4, "task.max_length": 24, "task.max_answer": 5}


def setting(tokenizer, doc_stride=4, max_answer=5, null_threshold=0.0, pad_side="right"):
    task = SimpleNamespace(doc_stride=doc_stride, max_answer=max_answer, null_threshold=null_threshold)
    f = SimpleNamespace(task=task, data=SimpleNamespace(pad_side=pad_side), model=SimpleNamespace(path="m"))
    return SimpleNamespace(tokenizer=tokenizer, f=f, task=TASKS["squad"])


def encode(tokenizer, examples=QUESTIONS, max_length=24, **fields):
    out = Collector(max_length, "error", [f"x.json:{i}" for i in range(1, len(examples) + 1)])
    return KIND.encode(setting(tokenizer, **fields), examples, out, True)


def window(made, i):
    return slice(made.offsets[i], made.offsets[i + 1])


@pytest.fixture(scope="module")
def tokenizer(bert):
    return AutoTokenizer.from_pretrained(bert)


def theirs(tokenizer, questions, max_length, stride):
    """(ids, row, first, last) of each window, as run_qa.py of transformers has them."""
    made = tokenizer(
        [x.question for x in questions], [x.context for x in questions], truncation="only_second", stride=stride,
        max_length=max_length, return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    for i, row in enumerate(made["overflow_to_sample_mapping"]):
        ids, spans, parts = made["input_ids"][i], made["offset_mapping"][i], made.sequence_ids(i)
        cls, answers = ids.index(tokenizer.cls_token_id), questions[row].answers
        if not answers:
            yield ids, row, cls, cls
            continue
        text, begin = answers[0]
        first = parts.index(1)
        last = len(parts) - 1 - parts[::-1].index(1)
        if spans[first][0] > begin or spans[last][1] < begin + len(text):
            yield ids, row, cls, cls
            continue
        end = last
        while first <= end and spans[first][0] <= begin:  # run_qa.py goes on to [SEP], in its own words an edge case
            first += 1
        while spans[last][1] >= begin + len(text):
            last -= 1
        yield ids, row, first - 1, last + 1


@pytest.mark.parametrize("length, stride", [(24, 4), (24, 0), (20, 8), (60, 8)])
def test_windows_and_labels(tokenizer, length, stride):
    made = encode(tokenizer, max_length=length, doc_stride=stride)
    expected = list(theirs(tokenizer, QUESTIONS, length, stride))
    assert len(made) == len(expected) and (len(made) > len(QUESTIONS) or length == 60)
    for i, (ids, row, first, last) in enumerate(expected):
        assert made[i].tokens.tolist() == ids and made.rows[i] == row
        marks = np.zeros(len(ids), int)
        marks[first] += FIRST
        marks[last] += LAST
        assert made.extras["answer"][window(made, i)].tolist() == marks.tolist()
    assert {made.extras["answer"][window(made, i)].argmax() for i in range(len(made))} > {0}
    second = QUESTIONS[1].answers[0][0]
    [i] = [i for i, (_, row, first, _) in enumerate(expected) if row == 1 and first][:1]
    marks = np.flatnonzero(made.extras["answer"][window(made, i)])
    starts, ends = (made.asides[name][window(made, i)] for name in ("first_character", "last_character"))
    assert QUESTIONS[1].context[starts[marks[0]] : ends[marks[-1]]] == second


def test_answers_whose_ends_are_no_tokens(tokenizer):
    spans = np.array([(0, 0), (0, 0), (0, 3), (4, 7), (8, 11), (0, 0)])
    of = lambda text, at: place(Question("", "", "abc def ghi", ((text, at),)), spans, 0)  # noqa: E731
    assert of("def", 4) == (3, 3) and of(" def ", 3) == (3, 3) and of("c d", 2) == (2, 3) and of("hi", 9) == (4, 4)
    assert of("abc", 0) == (2, 2) and of("abc def ghi", 0) == (2, 4) and of(" ghi", 7) == (4, 4)
    assert place(Question("", "", "abc def ghi jkl", (("ghi jkl", 8),)), spans, 0) == (0, 0)
    later = np.array([(0, 0), (0, 0), (4, 7), (8, 11), (0, 0), (0, 0)])
    assert place(Question("", "", "abc def ghi", (("abc def", 0),)), later, 0) == (0, 0)


def test_the_best_span_by_hand():
    begin, end = np.array([9.0, 1, 2, 5, 0, 9]), np.array([9.0, 0, 4, 1, 3, 9])
    context = np.array([0, 1, 1, 1, 1, 0], bool)
    assert best_span(begin, end, context, 2) == (8.0, 3, 4)
    assert best_span(begin, end, context, 1) == (6.0, 2, 2)
    assert best_span(begin, end, context & False, 3)[0] == -np.inf


@given(st.integers(0, 10**6), st.integers(1, 9))
def test_the_best_span_is_the_best_of_all(seed, longest):
    rng = np.random.default_rng(seed)
    begin, end = rng.standard_normal((2, 7))
    context = rng.random(7) < 0.6
    pairs = [
        (begin[i] + end[j], i, j) for i in range(7) for j in range(i, min(i + longest, 7)) if context[i] and context[j]
    ]
    found = best_span(begin, end, context, longest)
    assert found == max(pairs) if pairs else found[0] == -np.inf


def scripted(made, tokenizer, spans, none, side):
    """Scores of every window: `none` at [CLS], and `spans[i] = (text, score)` at the ends of a text of window i."""
    found = {"start": [], "end": []}
    for i in range(len(made)):
        tokens = made.tokens[window(made, i)]
        scores = np.full((2, len(tokens)), -5.0)
        scores[:, tokens.tolist().index(tokenizer.cls_token_id)] = none[i] / 2
        if i in spans:
            ids = tokenizer(spans[i][0], add_special_tokens=False)["input_ids"]
            [at] = [j for j in range(len(tokens)) if tokens[j : j + len(ids)].tolist() == ids][-1:]
            scores[0, at], scores[1, at + len(ids) - 1] = spans[i][1] / 2, spans[i][1] / 2
        low = np.full((2, 3), np.finfo(np.float32).min)
        scores = np.concatenate([low, scores] if side == "left" else [scores, low], 1)  # a batch's padding
        for name, row in zip(found, scores):
            found[name].append(row)
    return found


def ask(tokenizer, questions, spans, none, side="right", **fields):
    made = encode(tokenizer, questions, **fields)
    found = scripted(made, tokenizer, spans, none, side)
    how = setting(tokenizer, pad_side=side, **fields)
    return KIND.score(how, questions, made, found, None)


@pytest.mark.parametrize("side", ["right", "left"])
def test_an_answer_in_a_later_window(tokenizer, side):
    asked = [QUESTIONS[0], QUESTIONS[2]]
    assert encode(tokenizer, asked).rows.tolist() == [0, 0, 1]
    measures, rows = ask(tokenizer, asked, {0: ("mat", 3.0), 1: ("in Oslo", 4.0), 2: ("cat", 1.0)}, [9.0] * 3, side)
    assert [row["prediction"] for row in rows] == ["in Oslo", "cat"]  # no question is without an answer here
    assert [row["references"] for row in rows] == [["Rome"], ["cat"]]
    assert measures["squad_exact_match"].value == 0.5 and rows[1]["squad_f1"] == 1.0 and rows[0]["id"] == asked[0].id
    _, rows = ask(tokenizer, asked, {0: ("mat", 5.0), 1: ("in Oslo", 4.0), 2: ("cat", 1.0)}, [0.0] * 3, side)
    assert rows[0]["prediction"] == "mat"


@pytest.mark.parametrize("none, threshold, expected", [
    ([3.0, 5.0, 2.0], 0.0, ["in Oslo", ""]),  # the lowest over the windows is 3.0, below 4.0
    ([4.1, 5.0, 2.0], 0.0, ["", ""]),
    ([4.1, 5.0, 2.0], 0.2, ["in Oslo", ""]),
    ([4.1, 5.0, 2.0], 1.5, ["in Oslo", "cat"]),
    ([3.0, 5.0, 0.0], -1.5, ["", ""]),
])  # fmt: skip
def test_no_answer(tokenizer, none, threshold, expected):
    asked = [QUESTIONS[0], QUESTIONS[3]]
    spans = {0: ("mat", 3.0), 1: ("in Oslo", 4.0), 2: ("cat", 1.0)}
    measures, rows = ask(tokenizer, asked, spans, none, null_threshold=threshold)
    assert [row["prediction"] for row in rows] == expected and rows[1]["references"] == []
    assert measures["squad_exact_match"].value == (expected[1] == "") / 2


@pytest.mark.parametrize("changes, says", [
    ({"max_length": 10, "doc_stride": 4}, "x.json:1: a question of 5 tokens leaves no room for the context"),
    ({"doc_stride": 24}, "task.doc_stride=24: give 0 or more, below task.max_length=24"),
    ({"max_answer": 0}, "task.max_answer=0: give 1 or more"),
    ({"null_threshold": np.nan}, "task.null_threshold=nan: give a finite number"),
    ({"examples": [Question("1", "who ?", "the cat", (("cat", 3),))]}, "x.json:1: the answer 'cat' is not at char"),
])  # fmt: skip
def test_bad_input(tokenizer, changes, says):
    with pytest.raises(UserError) as error:
        encode(tokenizer, **changes)
    assert str(error.value).startswith(says)


def test_bad_files_and_models(configure, tmp_path):
    wrong = {**ROWS[2], "id": "x", "answers": [{"text": "cat", "answer_start": 3}]}
    with pytest.raises(UserError, match=r"train\.jsonl:2: at character 3 the context has ' ca', not 'cat'"):
        train(*configure("qa", "full", [ROWS[0], wrong], ROWS, **FIELDS), tmp_path / "run")
    config, default = configure("qa", "full", ROWS, ROWS, **FIELDS)
    config.model.path = "nano-gpt"
    with pytest.raises(UserError, match="head='span' is none of a gpt2 model"):
        train(config, default, tmp_path / "run")


@pytest.mark.parametrize("task, method", [("qa", "full"), ("squad", "lora")])
def test_a_run(configure, tmp_path, task, method):
    fields = FIELDS | {"task.null_threshold": 0.5}
    result = train(*configure(task, method, ROWS, ROWS, **fields), tmp_path / "run")
    assert result["metrics"].keys() == {"squad_f1", "squad_exact_match"} and result["best"]["metric"] == "squad_f1"
    assert result["steps"] == 3


def test_padding_changes_nothing(prepare):
    made = []
    for side in ("right", "left"):
        f, parts = prepare("qa", "full", ROWS, ROWS, **FIELDS, **{"data.pad_side": side})
        made.append(evaluate_split(f, parts, "validation"))
    assert made[0] == made[1] and len(load_data(f, parts, "validation", training=False).encoded) > len(ROWS)
    rows = made[0][1]
    assert [row["question"] for row in rows] == [x.question for x in QUESTIONS]
    assert all(row["prediction"] in x.context for row, x in zip(rows, QUESTIONS))
    assert len({row["prediction"] for row in rows}) > 2


SOFT = {
    "prompt": {"method.length": 3, "method.init": "random"},
    "p_tuning": {"method.template": "{2}sat{text} by{1}"},
    "lora": {},
}


@pytest.mark.parametrize(("method", "side"), [("prompt", "left"), ("p_tuning", "right"), ("lora", "left")])
def test_predictions_by_hand(prepare, forward, method, side):
    rows = [{**row, "context": row["context"].split(" . ")[0]} for row in ROWS if row["answers"]][1:]
    rows = [{**row, "answers": [{"text": row["context"], "answer_start": 0}]} for row in rows]
    more = {"data.pad_side": side, "task.max_length": 48}  # one window each
    f, parts = prepare("qa", method, rows, rows, **FIELDS | SOFT[method] | more)
    _, found = evaluate_split(f, parts, "validation")
    assert len(load_data(f, parts, "validation", training=False).encoded) == len(rows)
    tokenizer, v = parts.tokenizer, parts.model.cfg.vocab_size
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    before, after = {
        "prompt": ([v, v + 1, v + 2], []),
        "p_tuning": ([v, v + 1, *ids("sat")], [*ids("by"), v + 2]),
        "lora": ([], []),
    }[method]
    for row, mine in zip(rows, found, strict=True):
        asked, context = ids(row["question"]), tokenizer(row["context"], return_offsets_mapping=True)
        opened = [tokenizer.cls_token_id, *before, *asked, tokenizer.sep_token_id]
        inner, spans = context["input_ids"][1:-1], context["offset_mapping"][1:-1]
        whole = [*opened, *inner, *after, tokenizer.sep_token_id]
        scores = forward(parts, whole, "classify", [0] * len(opened) + [1] * 50)
        begin, end = scores[len(opened) : len(opened) + len(inner)].T
        _, first, last = best_span(begin, end, np.ones(len(inner), bool), 5)
        assert mine["prediction"] == row["context"][spans[first][0] : spans[last][1]]
