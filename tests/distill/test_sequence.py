import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftjax.distill import sequence
from ftjax.errors import UserError

ROW = {
    "prompt": "a", "references": ["the cat sat on the mat"], "id": 3, "tokens": [5, 6, 7], "scores": [-1.0, -2.0, -3.0],
    "continuations": ["a dog ran off", "the cat sat on a mat", "the cat"],
}  # fmt: skip


def said(text, **more):
    return {"prompt": "p", "completion": text, **more}


def test_hypotheses_of_a_row():
    first, *_, last = sequence.hypotheses(ROW)
    assert first == {
        "prompt": "a", "references": ROW["references"], "id": 3, "completion": "a dog ran off", "score": -1.0
    }  # fmt: skip
    assert last["completion"] == "the cat" and len(ROW) == 6


def test_sequence_level_and_interpolation():
    """The beam's best, and the hypothesis closest to the reference; one a prompt, the first among equals."""
    beam = [*sequence.hypotheses(ROW), said("x", score=-9.0), said("y", score=-9.0)]
    assert [r["completion"] for r in sequence.best(beam, sequence.by_score)] == ["a dog ran off", "x"]
    [chosen] = sequence.best(beam[:3], sequence.closeness())
    assert chosen["completion"] == "the cat sat on a mat"


def test_closeness_by_hand():
    """Of 3 words, 2 in place: 1-grams (2 + 1) / (3 + 1), 2-grams (1 + 1) / (2 + 1), 3-grams 1 / 2, 4-grams 1 / 1."""
    rate = sequence.closeness()
    np.testing.assert_allclose(
        rate(said("a b x", references=["a b c"])), (3 / 4 * 2 / 3 * 1 / 2 * 1) ** 0.25, rtol=1e-6
    )
    assert rate(said("a b c", references=["z", "a b c"])) == pytest.approx(1)
    of_letters = sequence.closeness(characters=True)
    assert of_letters(said("aihpos", references=["aihpos"])) == pytest.approx(1)
    assert of_letters(said("aihpso", references=["aihpos"])) > of_letters(said("sophia", references=["aihpos"])) > 0


def test_the_augmented_teacher():
    """p_LM(y | x) A(x, y): the critic outweighs a better score, and what it forbids is never best."""
    some = [said("a", score=-1.0, critic=0.1), said("b", score=-2.0, critic=0.9), said("c", score=0.0, critic=0.0)]
    assert sequence.best(some, sequence.augmented)[0]["completion"] == "b"
    assert sequence.augmented(some[0]) == pytest.approx(-1 + math.log(0.1))


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1), st.floats(0.01, 1))
def test_a_threshold_keeps_the_recall_and_none_higher_does(rows, recall):
    ratings, valid = map(np.asarray, zip(*rows))
    if not valid.any():
        with pytest.raises(UserError, match="is valid"):
            sequence.threshold(ratings, valid, recall)
        return
    at = sequence.threshold(ratings, valid, recall)
    share = lambda t: valid[ratings >= t].sum() / valid.sum()  # noqa: E731
    assert share(at) >= recall - 1e-9 > share(at + 0.5) - 1e-6
    curve = sequence.quality_curve(ratings, valid)
    assert [row["threshold"] for row in curve] == sorted(set(ratings.tolist()), reverse=True)
    for row in curve:
        kept = ratings >= row["threshold"]
        assert row["kept"] == pytest.approx(kept.mean()) and row["precision"] == pytest.approx(valid[kept].mean())
        assert row["recall"] == pytest.approx(share(row["threshold"]))
    assert curve[-1]["kept"] == curve[-1]["recall"] == 1


def test_wrong_recalls():
    for recall in (0, 1.5):
        with pytest.raises(UserError, match="recall="):
            sequence.threshold([1], [True], recall)
    with pytest.raises(UserError, match="none of 1 labelled"):
        sequence.quality_curve([1], [False])


def test_ratings_by_name():
    assert sequence.least("score:-1.5", "--keep") == ("score", -1.5, False)
    by_recall = sequence.least("critic:recall=0.5", "--keep")
    labelled = [{"critic": 0.1 * i, "valid": i % 2 == 0} for i in range(6)]
    assert by_recall is not None and by_recall.over(labelled) == 0.2 and sequence.least("sql", "--keep") is None
    assert sequence.at_least("critic", 0.2)(labelled[2]) and not sequence.at_least("critic", 0.2)(labelled[1])


def test_a_curve_of_few_points():
    curve = sequence.quality_curve([-float("inf"), -float("inf"), *range(1000)], [True, *[False] * 1001], most=5)
    assert len(curve) == 5 and (curve[0]["threshold"], curve[-1]["threshold"]) == (999, -float("inf"))
    assert curve[-1] == {"threshold": -float("inf"), "kept": 1, "precision": pytest.approx(1 / 1002), "recall": 1}


def test_filters():
    some = [said("a", references=[" a"]), said("b", references=["c"])]
    assert sequence.keep(some, sequence.matches_reference, "exact match") == some[:1]
    with pytest.raises(UserError, match="exact match: none of 1 records passes"):
        sequence.keep(some[1:], sequence.matches_reference, "exact match")


@pytest.mark.parametrize(("text", "right"), [(" Answer: 12\n", True), ("Answer: 12 or so", False), ("12", False)])
def test_patterns(text, right):
    assert sequence.matches_pattern(r"Answer: \d+")(said(text)) is right


def test_a_wrong_pattern():
    with pytest.raises(UserError, match=r"pattern '\(': no regular expression"):
        sequence.matches_pattern("(")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("SELECT a FROM t WHERE b = 'x'", True), ("WITH x AS (SELECT 1) SELECT * FROM x", True),
        ("SELECT 1 UNION SELECT 2", True), ("SELECT FROM WHERE", False), ("SELECT (a FROM t", False),
        ("DROP TABLE t", False), ("SELECT 1; DELETE FROM t", False), ("hello there", False), ("", False),
        ("(" * 5000, False),
    ],
)  # fmt: skip
def test_queries(text, right):
    assert sequence.is_query(said(text)) is right


@pytest.mark.parametrize(
    ("text", "right", "with_fields"),
    [
        ('{"a": 1, "b": null}', True, True), ('{"a": 1}', True, False), ("[1]", True, False),
        ('{"a": NaN}', False, False),
        ("{'a': 1}", False, False), ('{"a": 1, "b": 2} and', False, False), ("[" * 100000, False, False),
    ],
)  # fmt: skip
def test_json(text, right, with_fields):
    assert sequence.is_json()(said(text)) is right
    assert sequence.is_json(("a", "b"))(said(text)) is with_fields


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "completion": "b"}, "valid is None; write true or false"),
        ({"prompt": "a", "completion": "b", "valid": 0.5}, "valid is 0.5"),
        ({"prompt": "a", "completion": " ", "valid": True}, "no text under 'completion'"),
        ({"prompt": "a", "completion": "b", "valid": True, "score": "x"}, "score is 'x', no number"),
    ],
)
def test_wrong_labels(tmp_path, row, words):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=f"rows.jsonl:1: {words}"):
        sequence.read_labelled(tmp_path / "rows.jsonl")
