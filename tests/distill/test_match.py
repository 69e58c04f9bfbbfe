from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ftjax.distill.losses import Divergence
from ftjax.distill.match import Match, student_of, uniform
from ftjax.distill.objective import distillation
from ftjax.errors import UserError
from ftjax.objectives.base import IGNORE

T = 14


@pytest.fixture(scope="module")
def batch(examples, lay):
    some = examples(5, 3, 6)
    return lay([some[:2], some[2:]], T)[0]


@pytest.fixture(scope="module")
def trio(make):
    """A narrow student, a teacher of more layers, features and heads, and the variables of both."""
    student, teacher = make("gpt2"), make("llama", num_layers=3, hidden_size=20)
    return student, teacher, {"params": student.params, "teacher": {"params": teacher.params}}


@partial(jax.jit, static_argnums=0)
def run(model, params, input_ids, **ids):
    return model.apply({"params": params}, input_ids, **ids, output_hidden_states=True, output_attentions=True)


def outputs(made, batch):
    ids = {name: batch[name] for name in ("input_ids", "segment_ids", "position_ids")}
    return jax.device_get(run(made.model, made.params, **ids))


def added(match, student, teacher, variables, batch, **options):
    """What matching adds to the loss."""
    objective = distillation(student.model, Divergence(), teacher.model, match=match, **options)
    sums = jax.jit(objective.loss)(variables, batch, None)
    kd, nll, matched = (sums.metrics[name][0] for name in ("kd", "nll", "match"))
    np.testing.assert_allclose(sums.loss, 0.5 * kd + 0.5 * nll + matched, rtol=1e-5)
    return matched


def test_hidden_states_and_attention_by_hand(trio, batch):
    student, teacher, variables = trio
    match = Match(((0, 0), (2, 3)), hidden=0.3, attention=2.0)
    held = match.init(student.cfg, teacher.cfg, jax.random.key(0))
    assert held["projection"].shape == (16, 20)
    s, t, hand = outputs(student, batch), outputs(teacher, batch), 0.0
    for b, m in zip(*np.nonzero(np.asarray(batch["labels"]) != IGNORE)):
        at = np.asarray(batch["label_positions"])[b, m]
        for i, j in match.layers:
            gap = s.hidden_states[i, b, at] @ np.asarray(held["projection"]) - t.hidden_states[j, b, at]
            hand += 0.3 * np.mean(gap**2)
        q, p = s.attentions[1, b, :, at].mean(0), t.attentions[2, b, :, at].mean(0)  # 2 heads and 4
        seen = p > 0
        hand += 2.0 * np.sum(p[seen] * np.log(p[seen] / q[seen]))
    ours = added(match, student, teacher, {**variables, "distill": held}, batch)
    np.testing.assert_allclose(ours, hand, rtol=1e-4)


def test_attention_to_a_prefix_is_left_out():
    texts, prefixed = (
        [[1.0, 0.0], [0.5, 0.5]],
        [[0.5, 0.5, 0.0], [0.2, 0.2, 0.6]],
    )  # [0, 1] and [0.25, 0.75] of the text
    plain, behind = (SimpleNamespace(attentions=np.asarray([x])[None, None]) for x in (texts, prefixed))
    at, match = np.asarray([[0, 1]]), Match(((1, 1),), hidden=0.0, attention=2.0)
    for student, teacher, p, q in (
        (behind, plain, (0.5, 0.5), (0.25, 0.75)),
        (plain, behind, (0.25, 0.75), (0.5, 0.5)),
    ):
        value = match(student, teacher, (at, at), np.ones((1, 2)), None)
        np.testing.assert_allclose(value, 2 * np.sum(p * np.log(np.divide(p, q))), rtol=1e-5)


def test_nothing_apart_from_itself_and_no_projection(make, batch):
    made = make("gpt2")
    match = Match(uniform(2, 2), hidden=1.0, attention=1.0)
    assert match.init(made.cfg, made.cfg, jax.random.key(0)) == {}
    variables = {"params": made.params, "teacher": {"params": made.params}}
    np.testing.assert_allclose(added(match, made, made, variables, batch), 0, atol=1e-5)


def test_of_one_label_a_row_it_is_the_mean_over_its_tokens(make, examples, lay):
    batch, _ = lay([[e] for e in examples(5, 6)], T)
    student, teacher = (make("bert", head="classification", num_layers=n) for n in (1, 2))
    batch = {**batch, "labels": np.asarray([1, IGNORE])}
    variables = {"params": student.params, "teacher": {"params": teacher.params}}
    ours = added(Match(((1, 1),)), student, teacher, variables, batch)
    s, t = outputs(student, batch), outputs(teacher, batch)
    gap = s.hidden_states[1, 0, :5] - t.hidden_states[1, 0, :5]
    np.testing.assert_allclose(ours, np.mean(gap**2), rtol=1e-5)


def test_student_and_projection_learn_and_the_teacher_does_not(trio, batch):
    student, teacher, variables = trio
    match = Match(((2, 3),), attention=1.0)
    variables = {**variables, "distill": match.init(student.cfg, teacher.cfg, jax.random.key(0))}
    objective = distillation(student.model, Divergence(), teacher.model, alpha=0, match=match)
    grads = jax.device_get(jax.jit(jax.grad(lambda v: objective.loss(v, batch, jax.random.key(0)).loss))(variables))
    assert grads["distill"]["projection"].any() and grads["params"]["layers"]["attn"]["q"]["kernel"].any()
    assert not any(g.any() for g in jax.tree.leaves(grads["teacher"]))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_the_layer_map():
    assert uniform(2, 6) == ((0, 0), (1, 3), (2, 6))
    assert uniform(4, 6) == ((0, 0), (1, 1), (2, 3), (3, 4), (4, 6))


def test_pairs_that_are_not_there(make):
    student, teacher = make("gpt2").model, make("gpt2", num_layers=3).model
    for layers in (((3, 3),), ((-1, 0),), ((0, 4),)):
        with pytest.raises(UserError, match=r"distill.layers: no pair"):
            distillation(student, Divergence(), teacher, match=Match(layers))
    with pytest.raises(UserError, match="a cache has no hidden states"):
        distillation(student, Divergence(), match=Match(((1, 1),)))


@pytest.mark.parametrize("layers", [(0, 1, 2), (0, 2), (2, 0)])
def test_a_student_of_the_teacher_s_layers(make, batch, layers):
    """Run layer by layer, it is the teacher with the others left out."""
    made = make("gpt2", num_layers=3)
    model, params = student_of(made.model, made.params, layers)
    assert model.cfg.num_layers == len(layers)
    ids = batch["input_ids"]
    ours = run(model, params, ids)
    states = np.asarray(ours.hidden_states)
    one = partial(student_of, made.model, made.params)
    for depth in range(1, len(layers)):
        shorter, some = one(layers[:depth])
        theirs = np.asarray(run(shorter, some, ids).hidden_states)
        np.testing.assert_allclose(states[depth - 1], theirs[depth - 1], rtol=1e-5, atol=1e-6)
    mine, all_of_them = (np.asarray(x["layers"]["ffn"]["up"]["kernel"]) for x in (params, made.params))
    np.testing.assert_array_equal(mine, all_of_them[list(layers)])
    if layers == (0, 1, 2):
        np.testing.assert_array_equal(ours.logits, run(made.model, made.params, ids).logits)


def test_a_student_of_windows_and_of_an_encoder_decoder(make):
    windowed = make("llama", num_layers=3, window=4, global_layers=(2,))
    model, _ = student_of(windowed.model, windowed.params, (2, 0))
    assert model.cfg.global_layers == (0,)
    t5 = make("t5")
    model, params = student_of(t5.model, t5.params, (1,), (0, 2))
    assert (model.cfg.num_layers, model.cfg.encoder.num_layers) == (1, 2)
    ids = np.ones((1, 3), np.int32)
    out = jax.jit(model.apply)({"params": params}, ids, encoder_input_ids=ids)
    assert out.logits.shape == (1, 3, 50) and np.isfinite(out.logits).all()


def test_layers_that_cannot_be_taken(make):
    made, shared = make("gpt2"), make("gpt2", shared_layers=True)
    for layers in ((), (2,), (-1,)):
        with pytest.raises(UserError, match="some of the teacher's layers, 0 to 1"):
            student_of(made.model, made.params, layers)
    with pytest.raises(UserError, match="share one row"):
        student_of(shared.model, shared.params, (0,))
    with pytest.raises(UserError, match="has no encoder"):
        student_of(made.model, made.params, (0,), (0,))
