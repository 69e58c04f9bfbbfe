"""What is kept, by filters, ratings and labels; the ratings are made up."""

import json
import math
from typing import Any

import pytest

from ftjax.errors import UserError
from ftjax.train import judge

RECORDS = [{"prompt": "a", "completion": c, "score": s, "references": ["x"]}
           for c, s in (("x", -1.0), ("y", -2.0), ("x", -3.0), ("z", -4.0))]  # fmt: skip


def judged(keep, labelled, monkeypatch, critic=None):
    monkeypatch.setattr(judge, "rate", lambda critic, pairs, size, mesh: [{"x": 0.75}.get(c, 0.25) for _, c in pairs])
    nowhere: Any = None
    return judge.make_judge(keep, critic, labelled, 8, nowhere)(RECORDS)


def test_the_answers_label_themselves(monkeypatch):
    """By hand: of x, y, x, z with scores -1, ..., -4 the x are valid; all of them are left at -3, half at -1."""
    found = judged(["score:recall=1"], "reference", monkeypatch)
    assert found.least == {"score:recall=1": -3} and [r["valid"] for r in found.records] == [True, False, True]
    assert found.curve["labelled"] == 4 and found.curve["valid"] == 0.5 and "critic" not in found.curve
    assert [row["precision"] for row in found.curve["score"]] == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])
    found = judged(["critic:recall=0.5", "score:-2"], "reference", monkeypatch, critic="some")
    assert [(r["completion"], r["critic"]) for r in found.records] == [("x", 0.75)]
    assert found.curve["critic"] == [
        {"threshold": 0.75, "kept": 0.5, "precision": 1, "recall": 1},
        {"threshold": 0.25, "kept": 1, "precision": 0.5, "recall": 1},
    ]
    assert found.curve["augmented"][0]["threshold"] == pytest.approx(-1 + math.log(0.75))


def test_labels_of_a_file(tmp_path, monkeypatch):
    """The threshold is the file's; rows without a score give none by it."""
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": "q", "completion": c, "valid": v} for c, v in (("x", True), ("w", 1), ("v", "false"))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = judged(["critic:recall=0.5"], str(file), monkeypatch, critic="some")
    assert found.least == {"critic:recall=0.5": 0.75} and len(found.records) == 2 and "valid" not in found.records[0]
    assert set(found.curve) == {"labelled", "valid", "critic"} and found.curve["valid"] == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="not all rows of"):
        judged(["score:recall=0.5"], str(file), monkeypatch)


@pytest.mark.parametrize(
    ("keep", "labelled", "words"),
    [
        ("critic:0.5", "", "--keep=critic:0.5: rated by whom"),
        ("score:recall=0.5", "", "--keep=score:recall=0.5: recall of what"),
        ("score:recall=2", "", "recall=2.0: give a share"),
        ("score:many", "", "--keep=score:many: give score:LEAST"),
        ("good", "", "--keep=good: give reference"),
        ("sql", "nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("sql", "reference", "--keep=sql: none of 4"),
    ],
)
def test_wrong_filters(keep, labelled, words, monkeypatch):
    with pytest.raises(UserError, match=words):
        judged([keep], labelled, monkeypatch)
