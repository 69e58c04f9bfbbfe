"""What holds of every task, and the tasks of names and documents."""

import gzip
import json
import math
import re
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import task as configs
from ftjax.data.bad import BadRows
from ftjax.data.names import names
from ftjax.data.sources import Row
from ftjax.data.tasks import TASKS, Labelled, Text
from ftjax.errors import UserError

SPLITS = ("train", "validation", "test")
# A good value of each role; those of FREE are any text at all.
FREE = {
    "name", "context", "completion", "category", "question", "sql", "source", "target", "document", "summary", "prompt",
    "instruction", "input", "output", "text", "text_pair", "premise", "first", "second", "subject",
}  # fmt: skip
GOOD = {
    "label": "0", "score": "2.5", "words": ["a", "b"], "tags": ["O", "O"], "options": ["x", "y"], "id": "q1",
    "header": ["c"], "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    "answers": [{"text": "b", "answer_start": 2}], "object": "b",
}  # fmt: skip
OWN = {
    "trec": {"label": "NUM"}, "subj": {"label": "objective"}, "ud": {"tags": ["X", "X"]}, "qa": {"context": "a b"},
    "squad": {"context": "a b"}, "copa": {"question": "cause"},
}  # fmt: skip
SINGLE = TASKS.keys() - {"mixture"}  # whose parts test_mixture.py looks at
FIELDS = {
    "lama": {"template": "[X] is [Y]", "relation": "P17"}, "classification": {"classes": ("0", "1")},
    "tagging": {"classes": ("O", "B-x", "I-x")},
}  # fmt: skip


def make(task, **changes):
    """The config of a task."""
    cfg = configs.get(task)
    cfg.update_from_flattened_dict(FIELDS.get(task, {}) | changes)
    return cfg


def load(cfg, split="train", bad=None):
    return TASKS[cfg.name].load(cfg, split, bad or BadRows())


def good(task):
    """A row with a good value of each role."""
    return {role: OWN.get(task, {}).get(role, GOOD.get(role, "a b")) for role in TASKS[task].columns}


def write(path, *rows):
    """Rows as JSON lines, or a text."""
    path.write_text(rows[0] if isinstance(rows[0], str) else "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_config_of_every_task(tmp_path):
    assert configs.TASKS.keys() == TASKS.keys() == configs.DEFAULTS.keys()
    for name, task in TASKS.items():
        cfg = configs.get(name)
        assert set(cfg.columns) == set(task.columns) and cfg.objective == ""
        assert task.objectives and task.metrics and all(isinstance(metric, str) for metric in task.metrics)
        assert ("template" in cfg and "label_words" in cfg) == ("words" in task.objectives)


@pytest.mark.parametrize("task", sorted(SINGLE))
def test_every_task_reads_named_files_and_columns(tmp_path, task):
    row = good(task)
    path = write(tmp_path / "x.jsonl", {f"my_{role}": value for role, value in row.items()} | {"other": "x"})
    files = {f"files.{split}": path for split in SPLITS}
    cfg = make(task, **files, **{f"columns.{role}": f"my_{role}" for role in row})
    for split in SPLITS:
        [found] = load(cfg, split)
        assert set(row) <= set(found) and found.where == f"{path}:1"
        TASKS[task].example(found, "<e>")
    with pytest.raises(UserError, match=r"x\.jsonl:1: .*(no column|no list)"):
        load(make(task, **files))
    with pytest.raises(UserError, match=r"task\.files\.validation is not set though task\.files\.train is"):
        load(make(task, **{"files.train": path}), "validation")


@pytest.mark.parametrize("task", sorted(SINGLE - {"reverse", "vowels", "classification", "tagging"}))
def test_nothing_to_read_is_an_error(tmp_path, task):
    with pytest.raises(UserError, match=r"task\.data and task\.files\.train are empty"):
        load(make(task))
    with pytest.raises(UserError, match="no such directory"):
        load(make(task, data=str(tmp_path / "absent")))
    with pytest.raises(UserError, match="train split"):
        load(make(task, data=str(tmp_path)))


@pytest.mark.parametrize("task", sorted(SINGLE - {"text"}))
def test_bad_rows_are_errors_or_left_out(tmp_path, task):
    row, role = good(task), next(iter(TASKS[task].columns))
    ours = {f"columns.{role}": role for role in row}
    second = row | ({"id": "q2"} if "id" in row else {})
    path = write(tmp_path / "x.jsonl", row, row | {role: None}, row | {role: {}}, second)
    cfg = make(task, **{"files.train": path}, **ours)
    with pytest.raises(UserError, match=rf"x\.jsonl:2: column '{role}' is None"):
        load(cfg)
    bad = BadRows("skip")
    assert [found.where for found in load(cfg, bad=bad)] == [f"{path}:1", f"{path}:4"]
    assert len(bad.messages) == 2 and all(f"{path}:{n}" in message for n, message in zip((2, 3), bad.messages))
    write(tmp_path / "x.jsonl", row | {role: None})
    with pytest.raises(UserError, match=r"all 1 rows are bad; the first: .*x\.jsonl:1: "):
        load(cfg, bad=BadRows("skip"))
    with pytest.raises(UserError, match=r"x\.jsonl:1: "):
        load(cfg, bad=BadRows("error"))


def strings(value):
    """All texts of an example."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for one in value:
            yield from strings(one)


TEXTS = [
    "",
    " ",
    "\n",
    "👩\u200d👩😀",
    "שלום عليكم",
    "a\u2028b\x0bc\x85d",
    "\x00",
    "x" * 100_000,
    "\ud800",
    "{mask}{text}",
]
ODD = st.one_of(
    st.sampled_from(TEXTS), st.text(max_size=20), st.none(), st.integers(), st.floats(), st.booleans(),
    st.just(["a"]), st.just({"a": 1}),
)  # fmt: skip


@pytest.mark.parametrize("task", sorted(SINGLE))
@given(data=st.data())
def test_odd_rows_are_named_or_faithful(tmp_path_factory, task, data):
    row = good(task)
    odd = {role: data.draw(ODD, label=role) for role in row if role in FREE and role not in OWN.get(task, {})}
    path = write(tmp_path_factory.mktemp("odd") / "x.jsonl", row | odd)
    cfg = make(task, **{"files.train": path}, **{f"columns.{role}": role for role in row})
    try:
        [found] = load(cfg)
    except UserError as error:
        assert f"{path}:1: " in str(error) and "\n" not in str(error)
        return
    said = "\0\n".join(strings(tuple(TASKS[task].example(found, "<e>"))))
    if task == "instructions" and odd["input"] is None:  # no input
        del odd["input"]
    for value in odd.values():
        assert isinstance(value, str | int | float) and not (isinstance(value, float) and math.isnan(value))
        text = (str(value).lower() if isinstance(value, bool) else str(value)).strip()
        text.encode()
        if task not in ("reverse", "copa"):
            assert text in said or row.keys() == {"context", "completion", "category"}
        elif task == "copa":
            assert text.rstrip(".").lower() in said.lower()
        else:
            assert text[::-1] in said


def test_odd_labels_scores_and_lists_are_named(tmp_path):
    cases = [
        ("sst2", {"label": label}) for label in ("2", "-1", "fine", "", None, 1.0, True, "٠", ["0"])
    ] + [
        ("stsb", {"score": score}) for score in ("", "x", "nan", "inf", "5.1", -1, None, math.nan)
    ] + [
        ("conll2003", {"words": words}) for words in ([], ["a"], ["a", ""], ["a", None], "a b", None)
    ] + [
        ("conll2003", {"tags": tags}) for tags in (["O", "X"], ["O", "B-"], ["O", "I-FOO"], ["O", 1], ["O"])
    ] + [
        ("choice", change) for change in (
            {"options": ["x"]}, {"options": ["x", "x"]}, {"options": "xy"}, {"label": "2"}, {"label": "z"},
            {"options": ["b", "0"], "label": "0"},
        )
    ] + [("copa", {"question": "why"}), ("copa", {"label": "2"}), ("lm", {"completion": ""})]  # fmt: skip
    for task, change in cases:
        path = write(tmp_path / "x.jsonl", good(task) | change)
        with pytest.raises(UserError) as error:
            load(make(task, **{"files.train": path}, **{f"columns.{role}": role for role in good(task)}))
        assert str(error.value).startswith(f"{path}:1: "), (task, change)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_rows_that_differ_in_their_columns_are_named(tmp_path, task):
    row = good(task)
    path = write(tmp_path / "x.jsonl", row, {role: value for role, value in row.items() if role != "text_pair"})
    with pytest.raises(UserError, match=r"x\.jsonl:2: no column for 'text_pair', unlike the rows before"):
        load(make(task, **{"files.train": path}))


def test_names_are_plausible_distinct_and_a_prefix_of_more():
    many = names(40_000, 1)
    assert len(set(many)) == 40_000 and all(re.fullmatch("[a-z]{3,9}", name) for name in many)
    assert many[:5] == names(5, 1) != names(5, 2)
    assert names(3, 0) == ["mas", "teizah", "ton"]  # the same on every platform
    with pytest.raises(UserError, match="at most"):
        names(10**6, 0)


@pytest.mark.parametrize("task", ["reverse", "vowels"])
def test_generated_splits_are_disjoint(task):
    sizes = dict(train_size=50, validation_size=10, test_size=10)
    parts = [[row["name"] for row in load(make(task, **sizes), split)] for split in SPLITS]
    assert [len(part) for part in parts] == [50, 10, 10] and len(set().union(*parts)) == 70
    assert parts[0] != [row["name"] for row in load(make(task, **sizes, seed=1))]
    assert [row["name"] for row in load(make(task, **sizes, max_train_rows=3))] == parts[0][:3]
    assert [row["name"] for row in load(make(task, **sizes, max_eval_rows=3), "test")] == parts[2][:3]


def test_one_list_of_names_is_cut_80_10_10(tmp_path):
    path = write(tmp_path / "names.txt", "\n".join(names(100, 0)))
    for data in (path, str(tmp_path)):
        parts = [[row["name"] for row in load(make("reverse", data=data), split)] for split in SPLITS]
        assert [len(part) for part in parts] == [80, 10, 10] and sorted(chain(*parts)) == sorted(names(100, 0))
    with pytest.raises(UserError, match="validation split is empty"):
        load(make("reverse", data=write(tmp_path / "one.txt", "emma\n")), "validation")


def test_examples_of_names_and_documents():
    assert TASKS["reverse"].example({"name": "emma"}, "</s>") == Text("Reverse the name: emma. Answer:", " amme</s>")
    assert TASKS["vowels"].example({"name": "emma"}, "") == Labelled("emma", 2)
    assert TASKS["vowels"].example({"name": "a" * 12}, "") == Labelled("a" * 12, 10)
    assert TASKS["text"].example({"text": "Once."}, "<e>") == Text("", "Once.<e>")


def test_documents_are_split_by_file(tmp_path):
    for index in range(12):
        (tmp_path / f"book{index:02}.txt.gz").write_bytes(gzip.compress(f"Book {index}.".encode()))
    cfg = make("text", data=str(tmp_path))
    assert [row["text"] for row in load(cfg, "validation")] == ["Book 0.", "Book 10."]
    assert len(load(cfg, "train")) == 10
    cfg = make("text", data=str(tmp_path), validation_files="book1*")
    assert [row["text"] for row in load(cfg, "validation")] == ["Book 10.", "Book 11."]
    with pytest.raises(UserError, match="no document left for the validation split"):
        load(make("text", data=str(tmp_path), validation_files="x*"), "validation")
    with pytest.raises(UserError, match=r"task\.files\.test is not set"):
        load(cfg, "test")
    (tmp_path / "book11.txt.gz").write_bytes(gzip.compress(b"\n"))
    with pytest.raises(UserError, match=r"book11\.txt\.gz:1: the document is empty"):
        load(cfg, "validation")
    bad = BadRows("skip")
    assert len(load(cfg, "validation", bad)) == 1 and len(bad.messages) == 1
    (tmp_path / "book11.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"book11\.txt\.gz: cannot be read"):
        load(cfg, "validation", bad)


def test_one_document_is_cut_at_nine_tenths(tmp_path):
    cfg = make("text", data=write(tmp_path / "x.txt", "0123456789"))
    assert [load(cfg, split)[0]["text"] for split in SPLITS[:2]] == ["012345678", "9"]
    whole = make("text", **{"files.train": cfg.data, "files.validation": cfg.data})
    assert load(whole, "validation") == [Row({"text": "0123456789"}, "")]
