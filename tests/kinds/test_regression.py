"""Numbers of texts and of pairs: runs, rows, the frozen body's features, and what is refused."""

import numpy as np
import pytest
from scipy.stats import pearsonr

from ftjax.errors import UserError
from ftjax.train.evaluate import evaluate_split
from ftjax.train.loop import train
from ftjax.train.restore import load_run

TEXTS = ["the cat sat", "Anna ran home to Rome", "who sat ?", "in Oslo", "by the sea", "Bob again", "a mat"]
ROWS = [{"text": text, "score": i / 2} for i, text in enumerate(TEXTS)]
PAIRS = [{"sentence1": a, "sentence2": b, "score": 5 - i / 2} for i, (a, b) in enumerate(zip(TEXTS, TEXTS[::-1]))]


@pytest.mark.parametrize("task, method, rows, metrics", [
    ("regression", "full", ROWS, ["pearson", "spearman"]), ("stsb", "head", PAIRS, ["spearman", "pearson"]),
])  # fmt: skip
def test_a_run(configure, tmp_path, task, rows, metrics, method):
    config, default = configure(task, method, rows, rows)
    result = train(config, default, tmp_path / "run")
    assert result["metrics"].keys() == {"loss", *metrics} and result["best"]["metric"] == metrics[0]
    f, parts = load_run(tmp_path / "run")
    values, found = evaluate_split(f, parts, "validation")
    assert values[metrics[0]] == pytest.approx(result["best"]["value"], abs=1e-5)
    guesses, right = (np.array([row[name] for row in found]) for name in ("prediction", "reference"))
    assert right.tolist() == [row["score"] for row in rows] and found[1]["text"] == TEXTS[1]
    assert ("text_pair" in found[0]) == (task == "stsb")
    assert values["pearson"] == pytest.approx(pearsonr(guesses, right)[0], abs=1e-6)
    assert values["loss"] == pytest.approx(np.mean((guesses - right) ** 2), rel=1e-5)


def test_predictions_by_hand(prepare, forward):
    made = []
    for side in ("right", "left"):
        f, parts = prepare("regression", "lora", ROWS, ROWS, **{"data.buckets": 2, "data.pad_side": side})
        made.append([row["prediction"] for row in evaluate_split(f, parts, "validation")[1]])
    np.testing.assert_allclose(made[0], made[1], rtol=1e-5, atol=1e-6)
    for text, mine in zip(TEXTS[:3], made[0]):
        value = forward(parts, parts.tokenizer(text)["input_ids"], "classify")
        np.testing.assert_allclose(value[0, 0], mine, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad, says", [
    ({"text": "a", "score": "high"}, "train.jsonl:8: the score is 'high'; it must be a finite number"),
    ({"text": "a", "score": 1e999}, "train.jsonl:8: the score is 'inf'; it must be a finite number"),
    ({"text": "a"}, "train.jsonl:8: no column 'score' or 'label'"),
    ({"text": "the cat " * 20, "score": 1}, "train.jsonl:8: 42 tokens, more than max_length 24"),
])  # fmt: skip
def test_bad_rows(configure, tmp_path, bad, says):
    with pytest.raises(UserError, match=says) as error:
        train(*configure("regression", "full", [*ROWS, bad], ROWS), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_bounds_are_for_similarity(configure, tmp_path):
    with pytest.raises(UserError, match=r"config\.task\.bounds=\(0\.0, 2\.0\): set, but nothing in this run uses it"):
        train(*configure("regression", "full", ROWS, ROWS, **{"task.bounds": (0.0, 2.0)}), tmp_path / "run")
