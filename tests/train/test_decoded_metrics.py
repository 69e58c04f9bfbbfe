"""Metrics of text by beam search (`generate.num_beams`) and of drawn answers (`.samples`) beside the greedy ones."""

import json

import numpy as np
import pytest

import ftjax
from configs.default import get_config
from ftjax import tree
from ftjax.data.tokenizer import train_tokenizer
from ftjax.errors import UserError
from ftjax.kinds.base import Result
from ftjax.metrics import WRITTEN, measure
from ftjax.parallel.mesh import make_mesh
from ftjax.train.build import build
from ftjax.train.course import Course
from ftjax.train.evaluate import beside, evaluate_split
from ftjax.train.fields import Fields
from ftjax.train.loop import train

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "ran", "home", "again")
NEW = 6


@pytest.fixture(scope="module")
def configure(make, tmp_path_factory):
    """configure(field=value, ...) -> (config, default) of a tiny GPT-2 on four contexts with their sentences."""
    root = tmp_path_factory.mktemp("beams")
    (root / "text.txt").write_text(" ".join(WORDS) * 20)
    tokenizer = train_tokenizer("byte_bpe", [root / "text.txt"], 280)
    made = make("gpt2", vocab_size=len(tokenizer))
    ftjax.save(root / "model", made.model, made.params, extra={"eos_token_id": tokenizer.eos_token_id})
    tokenizer.save_pretrained(root / "model")
    pairs = [{"context": a, "completion": f"{b} {c} {a}"} for a, b, c in zip(WORDS, WORDS[1:5], WORDS[2:])]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))

    def get(task="e2e", **fields):
        default = get_config(f"model={root / 'model'},task={task},method=full")
        files = {f"task.files.{split}": str(root / "rows.jsonl") for split in ("train", "validation")}
        common = {"task.max_length": 24, "generate.max_new_tokens": NEW, "eval_batch_size": 4, "batch_size": 4}
        config = default.copy_and_resolve_references()
        config.update_from_flattened_dict({**files, **common, "steps": 1, **fields})
        return config, default

    return get


def evaluated(config):
    f = Fields(config)
    parts = build(f)
    return *evaluate_split(f, parts, "validation"), parts


def test_they_stand_beside_the_greedy_ones(configure):
    plain, plain_rows, _ = evaluated(configure()[0])
    both, rows, parts = evaluated(configure(**{"generate.num_beams": 3})[0])
    added = {f"{name}_beam3" for name in parts.metrics if name != "perplexity"}
    assert both.keys() - plain.keys() == added | {f"{name}_interval" for name in added}
    assert {name: both[name] for name in plain} == plain
    assert [{name: row[name] for name in plain_rows[0]} for row in rows] == plain_rows

    model, params, tokenizer = parts.model, parts.variables["params"], parts.tokenizer
    for row in rows:
        ids = tokenizer(row["prompt"], return_tensors="np")["input_ids"]
        options = {"max_new_tokens": NEW, "eos_token_id": tokenizer.eos_token_id}
        for beams, name in ((1, "prediction"), (3, "prediction_beam3")):
            found = ftjax.generate(model, params, ids, np.ones_like(ids), num_beams=beams, **options)
            assert tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True).strip() == row[name].strip()
    assert any(row["prediction"] != row["prediction_beam3"] for row in rows)
    predictions, references = [row["prediction_beam3"] for row in rows], [row["references"] for row in rows]
    assert both["rouge_l_beam3"] == measure("rouge_l", predictions, references).value
    assert [row["rouge_l_beam3"] for row in rows] == measure("rouge_l", predictions, references).rows


def test_drawn_answers_are_the_seeds_and_each_draw_another(configure):
    plain, *_ = evaluated(configure()[0])
    both, rows, parts = evaluated(configure(**{"generate.samples": 3})[0])
    added = {f"{name}_sampled3" for name in parts.metrics if name != "perplexity"}
    assert both.keys() - plain.keys() == added | {f"{name}_interval" for name in added}
    assert {name: both[name] for name in plain} == plain
    drawn = list(zip(*(row["prediction_sampled3"] for row in rows), strict=True))  # draws, rows
    assert len(set(drawn)) == 3 and all(len(row) == len(rows) for row in drawn)
    _, others, _ = evaluated(configure(seed=1, **{"generate.samples": 3})[0])
    assert not set(drawn) & set(zip(*(row["prediction_sampled3"] for row in others)))


def test_several_answers_by_hand():
    """Rows' means; of a corpus, the counts of all answers together."""
    references = [["a b c d e"], ["v w x y z"]]
    found = []
    for texts in (["a b c d e", "v w x y"], ["a b c d e", "v w x y z"]):
        measures = {name: measure(name, texts, references) for name in ("exact_match", "bleu")}
        rows = [{"prediction": text, "exact_match": x} for text, x in zip(texts, measures["exact_match"].rows)]
        found.append(Result({**measures, "part/bleu": measures["bleu"], "loss": measures["bleu"]}, rows))
    measures, rows = {}, [{}, {}]
    beside("_sampled2", measures, rows, found)
    assert measures.keys() == {"exact_match_sampled2", "bleu_sampled2", "part/bleu_sampled2"}
    assert measures["exact_match_sampled2"].value == 0.75
    every = [row["prediction"] for result in found for row in result.rows]
    assert 0 < measures["bleu_sampled2"].value < 1
    assert measures["bleu_sampled2"].value == pytest.approx(measure("bleu", every, references * 2).value)
    assert [row["exact_match_sampled2"] for row in rows] == [1, 0.5]
    assert rows[1]["prediction_sampled2"] == ["v w x y", "v w x y z"]


def test_a_run_keeps_them(configure, tmp_path):
    config, default = configure(**{"generate.num_beams": 3, "generate.examples": 4, "optimizer.learning_rate": 0.0})
    result = train(config, default, tmp_path)
    values, *_ = evaluated(config)
    assert result["best"]["metric"] == "perplexity"
    for name in ("bleu", "bleu_beam3", "rouge_l_beam3"):
        assert result["metrics"][name] == pytest.approx(values[name])
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["eval/rouge_l_beam3"] == result["metrics"]["rouge_l_beam3"]


def test_they_may_be_for_a_later_evaluation_alone(configure, tmp_path, mesh):
    config, default = configure(**{"generate.num_beams": 3, "generate.samples": 3})
    course = Course(config, default, tmp_path / "run", make_mesh(config.mesh))
    measures, _ = course.evaluator(*tree.split(course.parts.variables, course.parts.labels))
    assert "perplexity" in measures  # between steps no text is scored
    assert not {name for name in measures if name.startswith(WRITTEN)}
    for wrong, says in (("num_beams", r"num_beams=-1: give 1 or more"), ("samples", r"samples=-1: give 0 or more")):
        with pytest.raises(UserError, match=says):
            Course(*configure(**{f"generate.{wrong}": -1}), tmp_path / "run", make_mesh(config.mesh))
