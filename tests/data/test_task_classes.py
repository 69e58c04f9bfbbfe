"""Classes and numbers for texts and pairs, and texts as sentences with a gap."""

import json

import pytest

from configs import task as configs
from ftjax.data.bad import BadRows
from ftjax.data.sources import Row
from ftjax.data.tasks import TASKS, Labelled, table
from ftjax.data.tasks.task import Scored
from ftjax.data.templates import TEMPLATES, Template, fill, template_of
from ftjax.errors import UserError


def load(task, path, split="train", bad=None, **changes):
    cfg = configs.get(task)
    cfg.update_from_flattened_dict({"data": str(path), **changes})
    rows = TASKS[task].load(cfg, split, bad or BadRows())
    return [TASKS[task].example(row, "") for row in rows]


GLUE = [  # task, file, content, what is in its second row
    ("cola", "train.tsv", "gj04\t1\t\tIt is.\ngj04\t0\t*\tIt \"are\n", Labelled('It "are', 0)),
    ("cola", "test.tsv", "index\tsentence\tlabel\n0\tIt is.\t1\n1\tIt are.\t0\n", Labelled("It are.", 0)),
    ("qqp", "dev.tsv", "id\tquestion1\tquestion2\tis_duplicate\n0\ta\tb\t0\n1\tc\td\t1\n", Labelled("c", 1, "d")),
    ("mnli", "dev_matched.tsv", "sentence1\tsentence2\tlabel1\tgold_label\na\tb\tneutral\tneutral\n"
     "c\td\tneutral\tcontradiction\n", Labelled("c", 2, "d")),
    ("qnli", "train.tsv", "index\tquestion\tsentence\tlabel\n0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n",
     Labelled("c", 1, "d")),
    ("rte", "train.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n",
     Labelled("c", 1, "d")),
    ("sick", "SICK_train.txt", "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
     "1\ta\tb\t4.5\tNEUTRAL\n2\tc\td\t3.2\tCONTRADICTION\n", Labelled("c", 2, "d")),
    ("agnews", "train.csv", '"3","a","b"\n"4","A ""title""","and what follows"\n',
     Labelled('A "title" and what follows', 3)),
    ("agnews", "test.csv", "Class Index,Title,Description\n3,a,b\n1,c,d\n", Labelled("c d", 0)),
    ("agnews", "train.jsonl", '{"text": "a", "label": 2}\n{"text": "b", "label": "World"}\n', Labelled("b", 0)),
    ("trec", "train_5500.label", b"DESC:manner How ?\nNUM:dist How far, caf\xe9 ?\n", Labelled("How far, café ?", 5)),
    ("subj", "train.jsonl", '{"text": "a", "label": 0, "label_text": "objective"}\n'
     '{"text": "b", "label": 1, "label_text": "subjective"}\n', Labelled("b", 0)),
    ("mrpc", "msr_paraphrase_train.txt", 'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t0\t1\ta\tb\n0\t2\t3\tc\t"d\n',
     Labelled("c", 0, '"d')),
    ("stsb", "sts-train.csv", 'g\tf\ty\t1\t5.000\ta\tb\ng\tf\ty\t2\t3.80\tsay "c\td, e\tx\ty\n',
     Scored('say "c', 3.8, "d, e")),
    ("stsb", "train.tsv", "index\tgenre\tsentence1\tsentence2\tscore\n0\tg\ta\tb\t5\n1\tg\tc\td\t0.5\n",
     Scored("c", 0.5, "d")),
    ("stsb", "train.csv", 'sentence1,sentence2,score\na,b,5\nc,"d, e",0.5\n', Scored("c", 0.5, "d, e")),
]  # fmt: skip


@pytest.mark.parametrize(("task", "name", "content", "second"), GLUE, ids=[f"{task}-{name}" for task, name, *_ in GLUE])
def test_files_as_they_are_published(tmp_path, task, name, content, second):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    split = next(split for split in ("train", "validation", "test") if {"validation": "dev"}.get(split, split) in name)
    found = load(task, tmp_path, split)
    assert len(found) == 2 and found[1] == second
    classes = TASKS[task].classes(configs.get(task))
    assert isinstance(second, Scored) or 0 <= second.label < len(classes)


@pytest.mark.parametrize("index", ["0", "5", "World"])
def test_the_original_ag_news_counts_from_one(tmp_path, index):
    (tmp_path / "train.csv").write_text(f'"1","a","b"\n"{index}","a","b"\n')
    with pytest.raises(UserError, match=rf"train\.csv:2: the class is '{index}'; it is from 1 to 4"):
        load("agnews", tmp_path)


@pytest.mark.parametrize("task", ["trec", "subj"])
def test_numbers_that_data_sets_count_differently_are_refused(tmp_path, task):
    (tmp_path / "train.csv").write_text("text,label\na,1\n")
    with pytest.raises(UserError, match=r"train\.csv:2: label '1' is none of the classes"):
        load(task, tmp_path)


@pytest.mark.parametrize("label", ["2", "-1", "fine", ""])
def test_a_label_outside_the_classes_is_named(tmp_path, label):
    (tmp_path / "train.tsv").write_text(f"sentence\tlabel\ngood\t1\nodd\t{label}\n")
    with pytest.raises(UserError, match=rf"train\.tsv:3: label '{label}' is none of the classes \(0 negative, 1 pos"):
        load("sst2", tmp_path)
    bad = BadRows("skip")
    assert load("sst2", tmp_path, bad=bad) == [Labelled("good", 1)] and len(bad.messages) == 1


def test_mnli_has_two_validation_splits(tmp_path):
    for genre in ("matched", "mismatched"):
        (tmp_path / f"dev_{genre}.tsv").write_text(f"sentence1\tsentence2\tgold_label\n{genre}\tb\tneutral\n")
        assert load("mnli", tmp_path, "validation", genre=genre) == [Labelled(genre, 1, "b")]
    with pytest.raises(UserError, match=r"task\.genre='x': give matched or mismatched"):
        load("mnli", tmp_path, "validation", genre="x")
    (tmp_path / "dev_mismatched.tsv").rename(tmp_path / "dev.tsv")  # of which genres is not said
    with pytest.raises(UserError, match=r"no dev_mismatched\.tsv for the validation split"):
        load("mnli", tmp_path, "validation", genre="mismatched")
    files = {f"files.{split}": str(tmp_path / "dev.tsv") for split in ("train", "validation")}
    assert load("mnli", "", genre="mismatched", **files)[0].text == "mismatched"
    with pytest.raises(UserError, match=r"task\.genre=mismatched: task\.files\.validation says which rows"):
        load("mnli", "", "validation", genre="mismatched", **files)


def test_classes_of_a_file_of_ones_own(tmp_path):
    task, cfg = TASKS["classification"], configs.get("classification")
    cfg.data = str(tmp_path)
    (tmp_path / "train.csv").write_text("text,label\na,10\nb,9 \nc,10\n")
    (tmp_path / "dev.csv").write_text("text,label\nd,9\n")
    assert task.classes(cfg) == ("9", "10")
    assert load("classification", tmp_path) == [Labelled("a", "10"), Labelled("b", "9"), Labelled("c", "10")]
    assert load("classification", tmp_path, max_train_rows=1) == [Labelled("a", "10")]
    assert load("classification", tmp_path, "validation") == [Labelled("d", "9")]
    (tmp_path / "dev.csv").write_text("text,label\nd,1\n")  # no index: the classes are numbers themselves
    with pytest.raises(UserError, match=r"dev\.csv:2: label '1' is none of the classes \(9, 10\)"):
        load("classification", tmp_path, "validation", classes=("9", "10"))
    (tmp_path / "train.csv").write_text("text,label,text_pair\na,pos,x\nb,neg,y\n")
    assert load("classification", tmp_path) == [Labelled("a", "pos", "x"), Labelled("b", "neg", "y")]
    cfg.classes = ("neg", "neutral")
    assert task.classes(cfg) == ("neg", "neutral")
    with pytest.raises(UserError, match=r"train\.csv:2: label 'pos' is none of the classes \(0 neg, 1 neutral\)"):
        load("classification", tmp_path, classes=("neg", "neutral"))
    cfg.classes = ()
    (tmp_path / "train.csv").write_text("text,label\na,1\nb,1\n")
    with pytest.raises(UserError, match=r"the training rows hold \['1'\] alone"):
        task.classes(cfg)
    (tmp_path / "train.csv").write_text("text,label\na,1\nb, \nc, \n")
    said = (
        r"the training rows hold \['1'\] alone; .*; 2 more rows are bad, the first: .*train\.csv:3: the label is empty"
    )
    with pytest.raises(UserError, match=said):
        task.classes(cfg)
    (tmp_path / "train.csv").write_text("text,label\na,1\nb, \n")
    with pytest.raises(UserError, match=r"train\.csv:3: the label is empty"):
        load("classification", tmp_path)
    (tmp_path / "train.csv").unlink()  # training rows are not read for others
    assert load("classification", tmp_path, "validation") == [Labelled("d", "1")]


def test_lines_of_text_and_label(tmp_path):
    (tmp_path / "train.txt").write_text("a | b||neg\nc||pos\n")
    assert load("classification", tmp_path) == [Labelled("a | b", "neg"), Labelled("c", "pos")]


@pytest.mark.parametrize(
    ("task", "asked", "row", "example"),
    [
        ("mnli", "validation_matched", {"premise": "a", "hypothesis": "b", "label": "neutral"}, Labelled("a", 1, "b")),
        ("mrpc", "validation", {"sentence1": "a", "sentence2": "b", "label": "not_equivalent"}, Labelled("a", 0, "b")),
        ("qqp", "validation", {"question1": "a", "question2": "b", "label": "duplicate"}, Labelled("a", 1, "b")),
        ("cola", "validation", {"sentence": "a", "label": "acceptable", "idx": 0}, Labelled("a", 1)),
        ("stsb", "validation", {"sentence1": "a", "sentence2": "b", "label": 4.5}, Scored("a", 4.5, "b")),
    ],
)
def test_rows_of_the_hub(monkeypatch, task, asked, row, example):
    monkeypatch.setattr(
        table, "load_hub", lambda data, split: {("owner/glue:x", asked): [Row(row, "hub:1")]}[data, split]
    )
    assert load(task, "owner/glue:x", "validation") == [example]
    row["label"] = -1  # hidden
    with pytest.raises(UserError, match=r"hub:1: .*-1"):
        load(task, "owner/glue:x", "validation")


def test_the_templates_of_lm_bff():
    own = {name for name, task in TASKS.items() if "words" in task.objectives}
    assert set(TEMPLATES) == own - {"vowels", "classification", "regression"}
    for name in TEMPLATES:
        cfg = configs.get(name)
        assert template_of(cfg, TASKS[name].classes(cfg) or ("low", "high")) == TEMPLATES[name]
        pair = "text_pair" in TASKS[name].columns
        assert ("{text_pair" in TEMPLATES[name].text) == pair
    assert fill(TEMPLATES["sst2"].text, "<mask>", "A {text}.") == "A {text}. It was <mask>."
    assert fill(TEMPLATES["rte"].text, "<mask>", "A is B.", "C {mask}.") == "A is B? <mask>, c {mask}."
    assert fill(TEMPLATES["mrpc"].text, "<mask>", "A.", "") == "A. <mask>, "
    with pytest.raises(UserError, match="single texts"):
        fill(TEMPLATES["rte"].text, "<mask>", "A is B.")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"template": "{text}"}, "write {mask} once"),
        ({"template": "{mask}{mask} {text}"}, "write {mask} once"),
        ({"template": "{mask}"}, "and {text}"),
        ({"template": "{text} {mask} {pair}"}, "{text_pair:lower} and {mask} alone|only {text}"),
        ({"label_words": ("good",)}, "give each class"),
        ({"label_words": ("good", "good")}, "give each class"),
        ({"label_words": ("good", "bad", "so so")}, "give each class"),
    ],
)
def test_templates_that_do_not_fit_are_refused(changes, says):
    cfg = configs.get("sst2")
    cfg.update(changes)
    with pytest.raises(UserError, match=says):
        template_of(cfg, ("negative", "positive"))


def test_templates_of_ones_own():
    cfg = configs.get("classification")
    with pytest.raises(UserError, match="classification has none of its own; give both"):
        template_of(cfg, ("no", "yes"))
    cfg.template, cfg.label_words = "{mask}! {text}", ("Bad", "Good")
    assert template_of(cfg, ("no", "yes")) == Template("{mask}! {text}", {"no": "Bad", "yes": "Good"})


def test_the_number_of_a_text_alone(tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": "a", "score": n}) + "\n" for n in (-3, 1.5e3)))
    assert load("regression", tmp_path) == [Scored("a", -3.0), Scored("a", 1500.0)]
