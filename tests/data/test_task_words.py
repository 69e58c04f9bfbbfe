"""Tags of words: files of columns, schemes, the tasks that have them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from configs import task as configs
from ftjax.data.bad import BadRows
from ftjax.data.columns import in_scheme, read_columns
from ftjax.data.tasks import TASKS
from ftjax.data.tasks.task import Tagged
from ftjax.errors import UserError

CONLL = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
# # O O

Peter NNP I-NP I-PER
Blackburn NNP I-NP B-PER
"""
UD = """# newdoc id = x
# text = It's vingt et un
1-2\tIt's\t_\t_\t_\t_\t_\t_\t_\t_
1\tIt\tit\tPRON\tPRP\t_\t0\troot\t_\t_
2\t's\tbe\tAUX\tVBZ\t_\t1\tcop\t_\t_
2.1\tgone\tgo\tVERB\tVB\t_\t_\t_\t_\t_
3\tvingt et un\tvingt\tNUM\tCD\t_\t1\tx\t_\t_

# text = Oh
1\tOh\toh\tINTJ\tUH\t_\t0\troot\t_\t_
"""


def load(task, path, bad=None, split="train", **changes):
    cfg = configs.get(task)
    cfg.update_from_flattened_dict({f"files.{name}": str(path) for name in ("train", split)} | changes)
    rows = TASKS[task].load(cfg, split, bad or BadRows())
    return [TASKS[task].example(row, "") for row in rows]


def write(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", [CONLL, CONLL.replace("\n", "\r\n"), CONLL.replace("\n\n", "\n \t\n\n")])
def test_conll_2003(tmp_path, text):
    path = write(tmp_path / "eng.train", text)
    lines = text.replace("\r", "").split("\n")
    places = [f"{path}:{lines.index(first) + 1}" for first in ("EU NNP I-NP I-ORG", "Peter NNP I-NP I-PER")]
    assert [row.where for row in read_columns(path, BadRows())] == places
    assert load("conll2003", path) == [
        Tagged(("EU", "rejects", "#"), ("B-ORG", "O", "O")),
        Tagged(("Peter", "Blackburn"), ("B-PER", "B-PER")),
    ]
    assert load("conll2003", path, scheme="bio")[0].tags == ("I-ORG", "O", "O")
    assert load("tagging", path, scheme="none", **{"columns.tags": "-3"})[0].tags == ("NNP", "VBZ", "#")


def test_universal_dependencies(tmp_path):
    path = write(tmp_path / "x.conllu", UD)
    rows = read_columns(path, BadRows())
    assert [row.where for row in rows] == [f"{path}:3", f"{path}:10"]
    assert rows[0]["form"] == rows[0]["1"] == rows[0]["-9"] == ["It", "'s", "vingt et un"]
    assert load("ud", path) == [Tagged(("It", "'s", "vingt et un"), ("PRON", "AUX", "NUM")), Tagged(("Oh",), ("INTJ",))]
    assert load("tagging", path, scheme="none", **{"columns.tags": "xpos"})[0].tags == ("PRP", "VBZ", "CD")
    table = write(tmp_path / "x.tsv", "It\tPRON\tPRP\n's\tAUX\tVBZ\n\nOh\tINTJ\tUH\n\n")
    assert load("ud", table)[1] == Tagged(("Oh",), ("INTJ",))


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a O\nb\nc O\n\nd O\n", 2, "1 columns, not 2"),
        ("a O\n\nb x O\n", 3, "3 columns, not 2"),
        ("a O\n\nb B-LOC\nc X\n", 3, "the tag 'X' is none of the scheme iob1"),
        ("a O\n\nb I-\n", 3, "the tag 'I-' is none of the scheme iob1"),
        ("a O\n\nb I-TREE\n", 3, "the tag 'B-TREE' is none of the classes"),
    ],
)
def test_bad_sentences_are_named_or_left_out(tmp_path, text, line, says):
    path, bad = write(tmp_path / "x.conll", text), BadRows("skip")
    with pytest.raises(UserError) as error:
        load("conll2003", path)
    assert str(error.value).startswith(f"{path}:{line}: {says}")
    assert len(load("conll2003", path, bad)) == 1 and bad.messages == [str(error.value)]


def test_lines_without_tags_are_not_tags_themselves(tmp_path):
    path = write(tmp_path / "x.conll", "Paris\nLondon\n")
    with pytest.raises(UserError, match=r"x\.conll:1: the tag 'Paris' is none of"):
        load("conll2003", path)
    with pytest.raises(UserError, match=r"x\.conll: has no rows"):
        load("conll2003", write(tmp_path / "x.conll", "\n\n"))


def test_the_file_names_of_a_directory(tmp_path):
    for name in ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"):
        (tmp_path / name).write_text("see\tO\nBerlin\tB-location\n\t\n")
    cfg = configs.get("wnut17")
    cfg.data = str(tmp_path)
    for split in ("train", "validation", "test"):
        [row] = TASKS["wnut17"].load(cfg, split, BadRows())
        assert row == {"words": ["see", "Berlin"], "tags": ["O", "B-location"]}


def test_tags_of_ones_own(tmp_path):
    rows = [{"tokens": ["a", "b"], "ner_tags": ["O", "I-X"]}, {"tokens": ["c"], "ner_tags": ["B-A"]}]
    path = write(tmp_path / "x.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    cfg = configs.get("tagging")
    cfg.files.train = str(path)
    assert TASKS["tagging"].classes(cfg) == ("O", "B-A", "I-A", "B-X", "I-X")
    assert load("tagging", path) == [Tagged(("a", "b"), ("O", "I-X")), Tagged(("c",), ("B-A",))]
    assert load("tagging", path, scheme="iob1")[0].tags == ("O", "B-X")
    cfg.scheme = "none"
    assert TASKS["tagging"].classes(cfg) == ("B-A", "I-X", "O")
    with pytest.raises(UserError, match=r"task\.scheme='bilou': give bio, iob1 or none"):
        load("tagging", path, scheme="bilou")
    with pytest.raises(UserError, match=r"task\.classes: the tag 'PER' is none of the scheme bio: write O"):
        load("tagging", path, classes=("PER", "LOC"))
    with pytest.raises(UserError, match=r"x\.jsonl:2: the tag 'B-A' is none of the classes \(O, B-X, I-X\)"):
        load("tagging", path, classes=("O", "B-X"))
    there = {"files.train": "absent.jsonl", "files.validation": str(path)}  # training rows are not read for others
    assert load("tagging", path, split="validation", **there) == load("tagging", path)


def phrases(tags):
    """(kind, first, last) of IOB1 tags, by the definition."""
    out, before = [], "O"
    for index, tag in enumerate(tags):
        if tag != "O":
            if before == "O" or tag[0] == "B" or before[2:] != tag[2:]:
                out.append([tag[2:], index, index])
            out[-1][2] = index
        before = tag
    return [tuple(one) for one in out]


@given(st.lists(st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y"]), min_size=1, max_size=8))
def test_iob1_becomes_bio(tags):
    found = in_scheme(tags, "iob1")
    assert get_entities(found) == phrases(tags)
    assert in_scheme(found, "bio") == found == in_scheme(found, "iob1")
    for before, tag in zip(["O", *found], found):
        assert tag[0] != "I" or before[2:] == tag[2:]
