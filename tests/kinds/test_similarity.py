"""Sentence vectors: every loss trains, the metrics by hand, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.stats import spearmanr

import ftjax
from ftjax import tree
from ftjax.data.bad import BadRows
from ftjax.data.tasks import TASKS
from ftjax.errors import UserError
from ftjax.kinds.similarity import nearest_positives
from ftjax.train.evaluate import evaluate_split
from ftjax.train.loop import train
from ftjax.train.restore import load_run

TEXTS = [
    ("the cat sat", "a cat sat on a mat"), ("Anna ran home", "Anna ran to Rome"), ("who sat ?", "where did Bob run ?"),
    ("by the sea", "in Oslo"), ("the mat", "a mat"), ("Bob again", "in Rome by the sea"),
]  # fmt: skip
PAIRS = [{"first": a, "second": b} for a, b in TEXTS]
TRIPLES = [{**pair, "third": TEXTS[i - 2][0]} for i, pair in enumerate(PAIRS)]
CLASSED = [{"text": a, "text_pair": b, "label": ("no", "yes", "maybe")[i % 3]} for i, (a, b) in enumerate(TEXTS)]
SCORED = [{"sentence1": a, "sentence2": b, "score": s} for (a, b), s in zip(TEXTS, (5.0, 4.2, 0.5, 0.0, 4.6, 2.0))]
CASES = {  # task, loss -> rows, metrics
    ("stsb", ""): (SCORED, {"loss", "spearman", "pearson"}),
    ("similarity", ""): (PAIRS, {"accuracy"}),
    ("similarity", "in_batch"): (TRIPLES, {"accuracy"}),
    ("similarity", "triplet"): (TRIPLES, {"accuracy"}),
}
SIMILAR = {"task.objective": "similarity"}


@pytest.mark.parametrize("task, loss", CASES)
def test_every_loss_trains(configure, tmp_path, task, loss):
    rows, metrics = CASES[task, loss]
    config, default = configure(task, "full", rows, rows, **SIMILAR, **{"task.loss": loss})
    result = train(config, default, tmp_path / "run")
    assert result["metrics"].keys() == metrics and all(map(np.isfinite, result["metrics"].values()))
    f, parts = load_run(tmp_path / "run")
    values, found = evaluate_split(f, parts, "validation")
    assert len(found) == len(rows) and all("prediction" in row for row in found)
    name = result["best"]["metric"]
    assert values[name] == pytest.approx(result["best"]["value"], abs=1e-6)


@pytest.mark.parametrize("method", ["lora", "head"])
def test_the_pair_classifier_trains_under_any_method(configure, tmp_path, method):
    config, default = configure("classification", method, CLASSED, CLASSED, **SIMILAR)
    result = train(config, default, tmp_path / "run")
    assert result["metrics"].keys() == {"loss", "accuracy", "macro_f1"}
    f, parts = load_run(tmp_path / "run")
    values, found = evaluate_split(f, parts, "validation")
    assert len(found) == len(CLASSED) and all("prediction" in row for row in found)
    assert values[result["best"]["metric"]] == pytest.approx(result["best"]["value"], abs=1e-6)
    assert tree.flatten(parts.labels)["params/pair_classifier/kernel"] == "head"
    kernel = np.asarray(parts.variables["params"]["pair_classifier"]["kernel"])
    fresh = evaluate_start(config)
    assert kernel.shape == fresh.shape == (3 * 16, 3) and np.abs(kernel - fresh).max() > 1e-3
    lora = 4 * 2 * 16 * 8  # q k v o, A and B
    assert result["trainable_parameters"] == 3 * 16 * 3 + (lora if method == "lora" else 0)


def evaluate_start(config):
    from ftjax.train.build import build
    from ftjax.train.fields import Fields

    return build(Fields(config)).variables["params"]["pair_classifier"]["kernel"]


def vectors(parts, texts, **options):
    adapters = jax.jit(parts.method.expand)(parts.variables["adapters"], parts.variables["params"])
    return ftjax.embed(
        parts.model, parts.variables["params"], parts.tokenizer, texts, normalise=True, adapters=adapters,
        around=parts.around, **options,
    )  # fmt: skip


@pytest.mark.parametrize("method, pooling, side", [
    ("full", None, "right"), ("full", "max", "left"), ("full", "last", "right"),
    ("prompt", None, "left"), ("p_tuning", "first", "right"),
])  # fmt: skip
def test_cosines_are_those_of_the_vectors(prepare, method, pooling, side):
    soft = {"prompt": {"method.length": 3}, "p_tuning": {"method.template": "{2}sat{text} by{1}"}}.get(method, {})
    more = {"model.pooling": pooling, "data.pad_side": side}
    f, parts = prepare("stsb", method, SCORED, SCORED, **SIMILAR, **soft, **more)
    values, rows = evaluate_split(f, parts, "validation")
    a, b = np.split(vectors(parts, [pair[i] for i in (0, 1) for pair in TEXTS], pooling=pooling or "mean"), 2)
    cosines, scores = (a * b).sum(1), np.array([row["score"] for row in SCORED])
    np.testing.assert_allclose([row["prediction"] for row in rows], cosines, rtol=1e-4, atol=1e-5)
    assert [row["reference"] for row in rows] == scores.tolist() and rows[0]["text_pair"] == TEXTS[0][1]
    assert values["spearman"] == pytest.approx(spearmanr(cosines, scores)[0], abs=1e-6)
    assert values["loss"] == pytest.approx(np.mean((cosines - scores / 5) ** 2), rel=1e-3)


def test_the_nearest_positive(prepare):
    rows = [*PAIRS, {"first": "home", "second": PAIRS[0]["second"]}]  # one positive of two anchors
    f, parts = prepare("similarity", "full", rows, rows, **SIMILAR)
    values, found = evaluate_split(f, parts, "validation")
    a, b = np.split(vectors(parts, [row[name] for name in ("first", "second") for row in rows]), 2)
    nearest = [rows[j]["second"] for j in (a @ b.T).argmax(1)]
    assert [row["prediction"] for row in found] == nearest
    right = [text == row["second"] for text, row in zip(nearest, rows)]
    assert values["accuracy"] == pytest.approx(np.mean(right)) and found[6]["texts"] == ["home", rows[0]["second"]]


def test_nearest_by_hand(monkeypatch):
    monkeypatch.setattr("ftjax.kinds.similarity.CHUNK", 2)
    x = np.array([[[1, 0], [0, 5]], [[0, 1], [9, 1]], [[2, 2], [1, 1]], [[0, 0], [-1, 0]]], np.float32)
    assert nearest_positives(x).tolist() == [1, 0, 2, 0]


def test_triplets_by_hand(prepare):
    f, parts = prepare("similarity", "full", TRIPLES, TRIPLES, **SIMILAR, **{"task.loss": "triplet"})
    values, found = evaluate_split(f, parts, "validation")
    model, params = parts.model, parts.variables["params"]
    texts = [row[name] for name in TRIPLES[0] for row in TRIPLES]
    u, v, w = np.split(ftjax.embed(model, params, parts.tokenizer, texts), 3)
    gaps = np.linalg.norm(u - w, axis=1) - np.linalg.norm(u - v, axis=1)
    np.testing.assert_allclose([row["prediction"] for row in found], gaps, rtol=1e-4, atol=1e-4)
    assert values["accuracy"] == (gaps > 0).mean() and len(found[0]["texts"]) == 3


@pytest.mark.parametrize("task, rows, fields, says", [
    ("similarity", PAIRS, {"micro_batches": 2}, "micro_batches=2: give 1, for in-batch negatives"),
    ("similarity", PAIRS, {"task.loss": "triplet"}, r"train.jsonl:1: 2 text\(s\), task.loss='triplet' compares 3"),
    ("similarity", PAIRS, {"task.loss": "cosine"}, "task.loss='cosine': give in_batch or triplet with task=simil"),
    ("stsb", SCORED, {"task.loss": "softmax"}, "task.loss='softmax': give cosine with task=stsb"),
    ("stsb", SCORED, {"task.bounds": (0.0, 4.5)}, r"train.jsonl:1: the score 5.0 is outside task.bounds=\(0.0, 4.5\)"),
    ("stsb", SCORED, {"task.bounds": (5.0, 5.0)}, r"task.bounds=\(5.0, 5.0\): give the lowest and the highest"),
    ("stsb", [*SCORED, {**SCORED[0], "score": 5.5}], {}, "train.jsonl:7: the score is 5.5; it must be from 0 to 5"),
    ("regression", [{"text": "a", "score": 1}], {}, r"train.jsonl:1: 1 text\(s\), task.loss='cosine' compares 2"),
    ("classification", [{"text": "a", "label": x} for x in "xy"], {}, r"train.jsonl:1: 1 text\(s\), task.loss='soft"),
    ("similarity", [*PAIRS, {"first": "a", "second": " "}], {}, "train.jsonl:7: the second text is empty"),
    ("similarity", [*PAIRS, {"first": "a"}], {}, "train.jsonl:7: no column 'second' or"),
    ("similarity", [*PAIRS, TRIPLES[0]], {}, "train.jsonl:7: a column for 'third', unlike the rows before"),
    ("stsb", SCORED, {"model.pooling": "middle"}, "model.pooling='middle': give first, last, mean or max"),
])  # fmt: skip
def test_bad_input(configure, tmp_path, task, rows, fields, says):
    config, default = configure(task, "full", rows, rows, **SIMILAR, **fields)
    with pytest.raises(UserError, match=says) as error:
        train(config, default, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_an_encoder_decoder_is_refused(prepare, make):
    _, parts = prepare("similarity", "full", PAIRS, PAIRS, **SIMILAR)
    setting = parts.setting._replace(model=make("t5").model)
    with pytest.raises(UserError, match="takes an encoder or a decoder, not both"):
        parts.kind.encode(setting, [TASKS["similarity"].example(row, "") for row in PAIRS], None, True)


def test_long_texts(prepare):
    from ftjax.data.encoded import Collector

    _, parts = prepare("similarity", "full", PAIRS, PAIRS, **SIMILAR)
    examples = [TASKS["similarity"].example(row, "") for row in PAIRS]
    for overlong, left in (("truncate", 6), ("truncate_left", 6), ("drop", 2)):
        out = Collector(5, overlong, None, BadRows())
        made = parts.kind.encode(parts.setting, examples, out, True)
        assert len(made) == left and made.lengths.max() <= 5 and made.group == 2
        assert dataclasses.asdict(made)["dropped" if overlong == "drop" else "truncated"] == 4
        ends = made.tokens[made.offsets[1:] - 1]
        assert (ends == parts.tokenizer.sep_token_id).all()
