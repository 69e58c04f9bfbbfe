"""What a student writes for itself: batches that say what was drawn, rewards, and training on them."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax import tree
from ftjax.data.encoded import IGNORED
from ftjax.errors import UserError
from ftjax.objectives.policy import policy_gradient
from ftjax.train import rollout as module
from ftjax.train.build import build, load_data
from ftjax.train.evaluate import prompt_of
from ftjax.train.fields import Fields
from ftjax.train.loop import train
from ftjax.train.rollout import Rollout

pytestmark = pytest.mark.usefixtures("mesh")


@partial(jax.jit, static_argnums=0)
def log_probs(model, variables, batch):
    """Of the labels, `[B, M]`, 0 where none, by the plain forward pass."""
    ids = {name: x for name, x in batch.items() if name.endswith("_ids")}
    logits = model.apply(variables, ids.pop("input_ids"), **ids).logits
    at = jnp.take_along_axis(logits, batch["label_positions"][..., None], 1)
    labels = jnp.maximum(batch["labels"], 0)
    found = jnp.take_along_axis(jax.nn.log_softmax(at), labels[..., None], -1)[..., 0]
    return jnp.where(batch["labels"] != IGNORED, found, 0)


def logged(workdir, name):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


@pytest.fixture(scope="module")
def started(configure):
    """started(method, ...) -> (parts, data, rollout, its variables in two halves)."""

    def get(method="full", samples=3, share=1.0, reward=None, **fields):
        f = Fields(configure("policy", method, **fields)[0])
        parts = build(f)
        data = load_data(f, parts, "train", training=True)
        rollout = Rollout(f, parts, data, samples=samples, share=share, reward=reward)
        return parts, data, rollout, tree.split(parts.variables, parts.labels)

    return get


@pytest.mark.parametrize("case", ["right", "left", "prompt", "seq2seq"])
def test_a_batch_is_what_was_drawn(started, folder, monkeypatch, case):
    """Its labels' log-probabilities are those under which decoding drew them; its prompts are the data's."""
    fields = {
        "right": {}, "left": {"data.pad_side": "left"}, "prompt": {"method": "prompt", "method.length": 3},
        "seq2seq": {"model.path": str(folder / "seq2seq")},
    }[case]  # fmt: skip
    parts, data, rollout, leaves = started(**fields)
    drawn, given, plain = [], [], module.continuations

    def continued(*args, **more):
        given.append(args[2])  # the prompts' ids
        drawn.append(plain(*args, **more))
        return drawn[-1]

    monkeypatch.setattr(module, "continuations", continued)
    host = next(iter(data.batches))
    batch = rollout(5, *leaves, host)
    variables = {
        **parts.variables,
        "adapters": parts.method.expand(parts.variables["adapters"], parts.variables["params"]),
    }
    found = np.asarray(log_probs(parts.model, variables, batch)).sum(1)
    np.testing.assert_allclose(found, drawn[0].scores.ravel(), rtol=1e-4, atol=1e-4)
    assert len(batch["labels"]) == 12 and len({tuple(row) for row in batch["labels"].tolist()}) > 6
    longest = max(len(prompt_of(data.encoded, i)) for i in range(len(data.encoded)))
    assert given[0].shape[1] <= longest  # no power of two is computed
    read = 1 if case == "seq2seq" else longest
    assert batch["input_ids"].shape[1] <= read + batch["labels"].shape[1] - 1
    for row, prompt in enumerate(prompt_of(data.encoded, i) for i in host["example"].max(1) for _ in range(3)):
        ids, first = batch["input_ids"][row], batch["label_positions"][row, 0]
        if case == "seq2seq":
            assert [i for i in batch["encoder_input_ids"][row] if i][: len(prompt)] == prompt and ids[first] == 0
        else:
            assert ids[first + 1 - len(prompt) : first + 1].tolist() == prompt
        answer = batch["labels"][row][batch["labels"][row] != IGNORED]
        assert ids[first + 1 : first + len(answer)].tolist() == answer[:-1].tolist()  # the last predicts nothing
        end = parts.tokenizer.eos_token_id
        assert end not in answer[:-1] and (answer[-1] == end or len(answer) == batch["labels"].shape[1])


def test_draws_depend_on_the_step_alone(started):
    _, data, rollout, leaves = started()
    host = next(iter(data.batches))
    first, other = rollout(1, *leaves, host), rollout(2, *leaves, host)
    again = started()[2](1, *leaves, host)
    assert all((first[name] == again[name]).all() for name in first)
    assert (first["labels"] != other["labels"]).any()


def test_a_share_of_the_steps_is_the_student_s(started):
    _, data, rollout, leaves = started(share=0.5, samples=1)
    host = next(iter(data.batches))
    own = [rollout(step, *leaves, host) is not host for step in range(40)]
    assert 10 <= sum(own) <= 30
    assert started(share=0.0)[2](0, *leaves, host) is host


def test_rewards_are_measured_by_the_others_of_the_prompt(started):
    """And an empty row has none: the last batch of 12 rows by 5 is filled up."""
    seen = []
    reward = lambda record: seen.append(record) or float(len(record["completion"]))  # noqa: E731
    parts, data, rollout, leaves = started(reward=reward, batch_size=5)
    batches = iter(data.batches)
    host = min((next(batches) for _ in range(3)), key=lambda batch: (batch["example"].max(1) >= 0).sum())
    real = host["example"].max(1) >= 0
    assert real.sum() == 2
    batch = rollout(0, *leaves, host)
    given, advantages = batch["rewards"].reshape(5, 3), batch["advantages"].reshape(5, 3)
    np.testing.assert_allclose(advantages.sum(1), 0, atol=1e-5)
    assert (
        not batch["rewards"].reshape(5, 3)[~real].any() and (batch["labels"].reshape(5, 3, -1)[~real] == IGNORED).all()
    )
    np.testing.assert_allclose(given[real].ravel(), [len(record["completion"]) for record in seen])
    np.testing.assert_allclose(advantages[real], given[real] - given[real].mean(1, keepdims=True), atol=1e-6)
    for record, i in zip(seen[::3], host["example"].max(1)[real]):
        assert record["prompt"] == data.examples[i].prompt
        assert data.examples[i].completion.removesuffix(parts.tokenizer.eos_token).strip() in record["references"]


def test_policy_gradient_by_hand(make):
    """-sum of advantage log p over the tokens, at the temperature of their draw; the gradient is that of the formula
    written out."""
    model, params = make("gpt2", num_layers=1)
    rng = np.random.default_rng(0)
    batch = {
        "input_ids": rng.integers(1, 50, (3, 6)), "segment_ids": np.ones((3, 6), int),
        "position_ids": np.tile(np.arange(6), (3, 1)), "label_positions": np.asarray([[1, 2, 3], [2, 3, 0], [0, 0, 0]]),
        "labels": np.asarray([[4, 5, 6], [7, 8, -100], [-100] * 3]), "rewards": np.asarray([1.0, 0.0, 9.0]),
        "advantages": np.asarray([0.5, -0.5, 9.0]),
    }  # fmt: skip
    batch = {name: jnp.asarray(x, jnp.float32 if x.dtype == float else jnp.int32) for name, x in batch.items()}
    run = policy_gradient(model, temperature=2.0, chunk=3).loss

    def by_hand(params):
        ids = {name: batch[name] for name in ("segment_ids", "position_ids")}
        logits = jax.nn.log_softmax(model.apply({"params": params}, batch["input_ids"], **ids).logits / 2)
        picked = [(0, 1, 4, 0.5), (0, 2, 5, 0.5), (0, 3, 6, 0.5), (1, 2, 7, -0.5), (1, 3, 8, -0.5)]
        return -sum(advantage * logits[b, t, token] for b, t, token, advantage in picked)

    def ours(params):
        sums = run({"params": params}, batch, None)
        return sums.loss, sums

    (value, sums), grads = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
    wanted, theirs = jax.jit(jax.value_and_grad(by_hand))(params)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for path, g in tree.flatten(theirs).items():
        np.testing.assert_allclose(tree.flatten(grads)[path], g, rtol=1e-4, atol=1e-5, err_msg=path)
    assert (float(sums.weight), *map(float, sums.metrics["reward"])) == (5, 1, 2)


def test_a_policy_learns_what_is_rewarded(configure, tmp_path):
    """Few of the first answers have the letter."""
    fields = {"distill.reward": "pattern:.*m.*", "distill.samples": 8, "optimizer.learning_rate": 3.0, "steps": 12}
    train(*configure("policy", eval_every=12, **fields), tmp_path)
    rewards = logged(tmp_path, "train/reward")
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.3


def test_on_policy_with_the_student_s_own_teacher_is_at_its_end(configure, folder, tmp_path):
    config, default = configure("on_policy", **{"distill.teacher": str(folder / "student"), "distill.share": 0.6})
    train(config, default, tmp_path)
    np.testing.assert_allclose(logged(tmp_path, "train/loss"), 0, atol=1e-6)


def test_the_student_s_share_is_what_it_learns_from(configure, live, tmp_path, monkeypatch):
    """With none of it, the data's answers by the teacher's probabilities alone; with all, what was drawn."""
    made, plain = [], Rollout.__call__
    monkeypatch.setattr(Rollout, "__call__", lambda *args: made.append(plain(*args)) or made[-1])
    fields = {**live, "data.layout": "buckets"}
    train(*configure("token", **fields, **{"distill.alpha": 1.0, "distill.kind": "jsd"}), tmp_path / "token")
    for share in (0.0, 1.0):
        train(*configure("on_policy", **fields, **{"distill.share": share}), tmp_path / str(share))
    wanted, none, drawn = (logged(tmp_path / name, "train/loss") for name in ("token", "0.0", "1.0"))
    np.testing.assert_allclose(none, wanted, rtol=1e-5)
    assert len(made) == 6 and (np.abs(np.subtract(drawn, wanted)) > 1e-3).all()
    assert logged(tmp_path / "1.0", "train/weight") == [float((batch["labels"] != IGNORED).sum()) for batch in made[3:]]


@pytest.mark.parametrize(
    ("distill", "fields", "message"),
    [
        ("on_policy", {}, r"distill.teacher='': give the teacher"),
        ("on_policy", {"distill.teacher": "student", "distill.share": 2.0}, r"distill.share=2.0: give 0"),
        ("on_policy", {"distill.teacher": "student", "data.layout": "packed"}, r"data.layout=packed: with"),
        ("policy", {"distill.samples": 1}, r"distill.samples=1: give 2 or more"),
        ("policy", {"distill.reward": "taste"}, r"distill.reward=taste: give"),
        ("policy", {"distill.reward": "score:1"}, r"distill.reward=score:1: give reference"),
        ("policy", {"distill.sampling_temperature": 0.0}, r"sampling_temperature=0.0: give a number above 0"),
        ("policy", {"model.dropout": 0.1}, r"answers are drawn without dropout.*set model.dropout to 0"),
        ("policy", {"method": "lora", "method.dropout": 0.1}, r"set the dropout of LoRA to 0"),
        ("policy", {"generate.max_new_tokens": 29}, r"task.max_length=32; set it to \d+, or generate"),
        ("policy", {"task": "classification"}, r"distill=policy: needs prompts with an answer"),
    ],
)  # fmt: skip
def test_what_is_found_wrong(configure, folder, tmp_path, distill, fields, message):
    if "distill.teacher" in fields:
        fields = {**fields, "distill.teacher": str(folder / fields["distill.teacher"])}
    with pytest.raises(UserError, match=message):
        train(*configure(distill, **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()
