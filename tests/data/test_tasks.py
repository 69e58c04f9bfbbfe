import gzip
import re
from itertools import chain

import pytest

from ftjax.data.names import names
from ftjax.data.sources import Row
from ftjax.data.tasks import TASKS, Labelled, Text
from ftjax.errors import UserError

SPLITS = ("train", "validation", "test")


def write(path, text):
    path.write_text(text)
    return str(path)


def test_names_are_plausible_distinct_and_a_prefix_of_more():
    many = names(40_000, 1)
    assert len(set(many)) == 40_000 and all(re.fullmatch("[a-z]{3,9}", name) for name in many)
    assert many[:5] == names(5, 1) != names(5, 2)
    assert names(3, 0) == ["mas", "teizah", "ton"]  # the same on every platform
    with pytest.raises(UserError, match="at most"):
        names(10**6, 0)


@pytest.mark.parametrize("task", ["reverse", "vowels"])
def test_generated_splits_are_disjoint(config, task):
    parts = [[row["name"] for row in TASKS[task].load(config(), split)] for split in SPLITS]
    assert [len(part) for part in parts] == [50, 10, 10] and len(set().union(*parts)) == 70
    assert parts[0] != [row["name"] for row in TASKS[task].load(config(seed=1), "train")]
    assert [row["name"] for row in TASKS[task].load(config(max_train_rows=3), "train")] == parts[0][:3]
    assert [row["name"] for row in TASKS[task].load(config(max_eval_rows=3), "test")] == parts[2][:3]


def test_one_list_of_names_is_cut_80_10_10(config, tmp_path):
    path = write(tmp_path / "names.txt", "\n".join(names(100, 0)))
    for data in (path, str(tmp_path)):
        parts = [[row["name"] for row in TASKS["reverse"].load(config(data=data), split)] for split in SPLITS]
        assert [len(part) for part in parts] == [80, 10, 10] and sorted(chain(*parts)) == sorted(names(100, 0))
    with pytest.raises(UserError, match="validation split is empty"):
        TASKS["reverse"].load(config(data=write(tmp_path / "one.txt", "emma\n")), "validation")


def test_examples():
    assert TASKS["reverse"].example({"name": "emma"}, "</s>") == Text("Reverse the name: emma. Answer:", " amme</s>")
    assert TASKS["vowels"].example({"name": "emma"}, "") == Labelled("emma", 2)
    assert TASKS["vowels"].example({"name": "a" * 12}, "") == Labelled("a" * 12, 10)
    row = {"context": "name : X", "completion": " X is . "}
    assert TASKS["e2e"].example(row, "<e>") == Text("name : X<e>", " X is .<e>")
    for label in ("1", "positive"):
        assert TASKS["sst2"].example({"text": "good", "label": label}, "") == Labelled("good", 1)
    assert TASKS["text"].example({"text": "Once."}, "<e>") == Text("", "Once.<e>")


@pytest.mark.parametrize("task", TASKS)
def test_every_task_reads_named_files_and_columns(config, tmp_path, task):
    roles = TASKS[task].columns
    header = ",".join(f"my_{role}" for role in roles)
    path = write(tmp_path / "x.csv", f"{header},other\n" + ",".join("0" for _ in roles) + ",x\n")
    files = {f"files.{split}": path for split in SPLITS}
    cfg = config(**files, **{f"columns.{role}": f"my_{role}" for role in roles})
    for split in SPLITS:
        [row] = TASKS[task].load(cfg, split)
        assert row == dict.fromkeys(roles, "0") and row.where == f"{path}:2"
    with pytest.raises(UserError, match=r"x\.csv:2: no column '.*\(columns: my_.*set task\.columns\."):
        TASKS[task].load(config(**files), "train")
    with pytest.raises(UserError, match=r"task\.files\.validation is not set though task\.files\.train is"):
        TASKS[task].load(config(**{"files.train": path}), "validation")


@pytest.mark.parametrize("task", ["e2e", "sst2", "text"])
def test_nothing_to_read_is_an_error(config, tmp_path, task):
    with pytest.raises(UserError, match=r"task\.data and task\.files\.train are empty"):
        TASKS[task].load(config(), "train")
    with pytest.raises(UserError, match="no such directory"):
        TASKS[task].load(config(data=str(tmp_path / "absent")), "train")
    with pytest.raises(UserError, match="train split"):
        TASKS[task].load(config(data=str(tmp_path)), "train")


@pytest.mark.parametrize("label", ["2", "-1", "fine", ""])
def test_a_label_outside_the_classes_is_named(config, tmp_path, label):
    write(tmp_path / "train.tsv", f"sentence\tlabel\ngood\t1\nodd\t{label}\n")
    with pytest.raises(UserError, match=rf"train\.tsv:3: label '{label}' is none of the classes \(0 negative, 1 pos"):
        TASKS["sst2"].load(config(data=str(tmp_path)), "train")


def test_a_null_is_named(config, tmp_path):
    path = write(tmp_path / "x.jsonl", '{"sentence": null, "label": 1}\n')
    with pytest.raises(UserError, match=r"x\.jsonl:1: column 'sentence' is None"):
        TASKS["sst2"].load(config(**{"files.train": path}), "train")


def test_documents_are_split_by_file(config, tmp_path):
    for index in range(12):
        (tmp_path / f"book{index:02}.txt.gz").write_bytes(gzip.compress(f"Book {index}.".encode()))
    load = TASKS["text"].load
    cfg = config(data=str(tmp_path))
    assert [row["text"] for row in load(cfg, "validation")] == ["Book 0.", "Book 10."]
    assert len(load(cfg, "train")) == 10
    cfg = config(data=str(tmp_path), validation_files="book1*")
    assert [row["text"] for row in load(cfg, "validation")] == ["Book 10.", "Book 11."]
    with pytest.raises(UserError, match="no document left for the validation split"):
        load(config(data=str(tmp_path), validation_files="x*"), "validation")
    with pytest.raises(UserError, match=r"task\.files\.test is not set"):
        load(cfg, "test")


def test_one_document_is_cut_at_nine_tenths(config, tmp_path):
    cfg = config(data=write(tmp_path / "x.txt", "0123456789"))
    assert [TASKS["text"].load(cfg, split)[0]["text"] for split in SPLITS[:2]] == ["012345678", "9"]
    whole = config(**{"files.train": cfg.data, "files.validation": cfg.data})
    assert TASKS["text"].load(whole, "validation") == [Row({"text": "0123456789"}, "")]


def test_e2e_as_lora_has_it(config, shared):
    cfg = config(data=str(shared("e2e")))
    assert [len(TASKS["e2e"].load(cfg, split)) for split in SPLITS] == [42061, 4672, 4693]


def test_sst2_of_glue(config, shared):
    cfg = config(data=str(shared("sst2")))
    assert [len(TASKS["sst2"].load(cfg, split)) for split in SPLITS] == [67349, 872, 1821]


def test_names_of_makemore(config, shared):
    cfg = config(data=str(shared("names")))
    assert [len(TASKS["vowels"].load(cfg, split)) for split in SPLITS] == [25626, 3203, 3204]


def test_tasks_say_what_they_measure(config):
    for task in TASKS.values():
        assert task.main_metric[0] in task.metrics
        assert (task.classes(config()) is None) == (task.objective == "lm")
