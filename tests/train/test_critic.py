"""A critic's ratings are its evaluation's probabilities, of a run and of a model; and what is no critic."""

import json
import math

import jax
import numpy as np
import pytest

import ftjax
from configs.default import get_config
from ftjax.data.tokenizer import train_tokenizer
from ftjax.errors import UserError
from ftjax.parallel.mesh import make_mesh
from ftjax.train.critic import load_critic, rate
from ftjax.train.evaluate import evaluate_split
from ftjax.train.loop import train
from ftjax.train.restore import load_run

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "ran", "home", "again")
PAIRS = [(f"{a} {b}", f" {b} {c}") for a in WORDS[:4] for b, c in zip(WORDS[:4], WORDS[4:])]
FIELDS = {"steps": 2, "eval_every": 2, "batch_size": 8, "eval_batch_size": 8, "task.max_length": 24}
COLUMNS = {"text": "prompt", "text_pair": "completion", "label": "valid"}


@pytest.fixture(scope="module")
def folder(make, tmp_path_factory):
    """Models `gpt` (of a language model) and `classifier`, and rows of pairs, the valid ones of which end in `on`."""
    root = tmp_path_factory.mktemp("critic")
    (root / "text.txt").write_text(" ".join(WORDS) * 20)
    tokenizer = train_tokenizer("byte_bpe", [root / "text.txt"], 280)
    eos = {"eos_token_id": tokenizer.eos_token_id}
    named = {"architectures": ["GPT2ForSequenceClassification"], "id2label": {"0": "bad", "1": "good"}}
    for name, head, extra in (
        ("gpt", {}, {}),
        ("classifier", dict(head="classification", num_classes=2, pooling="last", classifier_bias=False), named),
    ):
        made = make("gpt2", vocab_size=len(tokenizer), max_positions=40, **head)
        ftjax.save(root / name, made.model, made.params, extra={**eos, **extra})
        tokenizer.save_pretrained(root / name)
    rows = [{"prompt": p, "completion": c, "valid": i % 3 == 0} for i, (p, c) in enumerate(PAIRS)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def run(folder):
    """A critic's run, of two steps."""
    axes = f"model={folder / 'gpt'},task=classification,method=full"
    default, config = get_config(axes), get_config(axes)
    files = {f"task.files.{split}": str(folder / "rows.jsonl") for split in ("train", "validation")}
    config.update_from_flattened_dict(FIELDS | files | {f"task.columns.{k}": v for k, v in COLUMNS.items()})
    train(config, default, folder / "run")
    return folder / "run"


def test_ratings_are_the_evaluations(run):
    """exp(-loss) of one row's evaluation is the probability of its own class; order, repeats and batches change
    nothing."""
    f, parts = load_run(run)
    mesh = make_mesh(f.mesh)
    assert parts.setting.classes == ("false", "true")
    good, bad = (load_critic(str(run), name, mesh) for name in ("true", "false"))
    ratings = rate(good, [*PAIRS[::-1], PAIRS[0]], 8, mesh)
    assert ratings[-1] == ratings[-2] and len(set(ratings)) > 8
    np.testing.assert_allclose(np.add(rate(bad, PAIRS, 3, mesh), ratings[-2::-1]), 1, atol=1e-6)
    result, rows = evaluate_split(f, parts, "validation")
    labels = np.array([row["reference"] == "true" for row in rows])
    p = np.where(labels, ratings[-2::-1], np.subtract(1, ratings[-2::-1]))
    assert -np.log(p).mean() == pytest.approx(result["loss"], abs=1e-5)
    assert [row["correct"] for row in rows] == (p > 0.5).astype(float).tolist()


def test_a_model_directory_is_a_critic(folder, run):
    mesh = make_mesh(load_run(run)[0].mesh)
    ratings = [rate(load_critic(str(folder / "classifier"), name, mesh), PAIRS, 8, mesh) for name in ("good", "bad")]
    np.testing.assert_allclose(np.sum(ratings, 0), 1, atol=1e-6)
    model, params = ftjax.load(folder / "classifier")
    tokenizer = ftjax.hub.tokenizer(folder / "classifier")
    ids = [tokenizer("\n".join([PAIRS[0][0], PAIRS[0][1].strip()]))["input_ids"] + [tokenizer.eos_token_id]]
    out = np.asarray(jax.jit(model.apply)({"params": params}, np.asarray(ids)).logits, np.float64)[0]
    assert ratings[0][0] == pytest.approx(1 / (1 + math.exp(out[0] - out[1])), abs=1e-5)


def test_what_is_no_critic(folder, run, tmp_path):
    mesh = make_mesh(load_run(run)[0].mesh)
    for name, acceptable, words in (
        (run, "good", "--acceptable='good': give one of the critic's classes: false, true"),
        (folder / "gpt", "true", "its head is lm; a critic is a classifier"),
        (tmp_path / "none", "true", "none"),
    ):
        with pytest.raises(UserError, match=words):
            load_critic(str(name), acceptable, mesh)
    with pytest.raises(UserError, match="the answer to 'the cat the cat"):
        rate(load_critic(str(run), "true", mesh), [("the cat " * 30, "a")], 8, mesh)
