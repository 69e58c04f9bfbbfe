from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax import tree
from ftjax.distill.forward import entries, without_virtual
from ftjax.distill.losses import Divergence, TopK, top_k
from ftjax.distill.objective import FIELDS, check_vocabularies, distillation
from ftjax.errors import UserError
from ftjax.objectives.base import IGNORE
from ftjax.objectives.classification import classification
from ftjax.objectives.cross_entropy import cross_entropy
from ftjax.objectives.lm import causal_lm
from ftjax.objectives.mlm import masked_lm, masking
from ftjax.objectives.tagging import tagging

T, V = 14, 50
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def pair(make):
    """A GPT-2 as the student, a Llama as its teacher, and the variables of both."""
    student, teacher = make("gpt2", num_layers=1), make("llama", num_layers=1)
    return student.model, teacher.model, {"params": student.params, "teacher": {"params": teacher.params}}


@pytest.fixture(scope="module")
def batch(examples, lay):
    some = examples(5, 3, 6)
    return lay([some[:2], some[2:]], T)[0]


@partial(jax.jit, static_argnums=0)
def logits(model, params, batch):
    """All of them, at the labelled positions `[B, M, V]`."""
    out = model.apply({"params": params}, batch["input_ids"], segment_ids=batch["segment_ids"],
                      position_ids=batch["position_ids"])  # fmt: skip
    return jnp.take_along_axis(out.logits, batch["label_positions"][..., None], 1)


@partial(jax.jit, static_argnums=0)
def of_rows(model, params, batch):
    """`[B, C]`."""
    ids = {name: batch[name] for name in ("segment_ids", "position_ids")}
    return model.apply({"params": params}, batch["input_ids"], **ids).logits


few = jax.jit(top_k, static_argnums=(1, 2))  # of a teacher's logits, with a temperature


def value(objective, variables, batch, key=None):
    """The objective's Sums, as one program."""
    return jax.device_get(jax.jit(objective.loss)(variables, batch, key))


@pytest.mark.parametrize(("key", "reduction"), [(None, "token"), (KEY, "sentence")])
def test_without_the_teacher_it_is_the_hard_loss(pair, batch, key, reduction):
    model, teacher, variables = pair
    model = model.clone(cfg=model.cfg.replace(hidden_dropout=0.1))
    options = dict(label_smoothing=0.1, z_loss=0.01, reduction=reduction, chunk=8)
    ours = value(distillation(model, Divergence(), teacher, alpha=0, **options), variables, batch, key)
    theirs = value(causal_lm(model, **options), {"params": variables["params"]}, batch, key)
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-6)
    labelled = (np.asarray(batch["labels"]) != IGNORE).sum()
    assert ours.weight == theirs.weight == (labelled if reduction == "token" else 3)


@pytest.mark.parametrize("kind", ["forward_kl", "jsd"])
def test_the_mixture_by_hand(pair, batch, kind):
    model, teacher, variables = pair
    divergence = Divergence(kind, 2.0)
    sums = value(distillation(model, divergence, teacher, alpha=0.7, chunk=8), variables, batch)
    s, t = logits(model, variables["params"], batch), logits(teacher, variables["teacher"]["params"], batch)
    real = np.asarray(batch["labels"]) != IGNORE
    kd, hard = np.where(real, jax.jit(divergence)(s, t), 0).sum(), jax.jit(cross_entropy)(s, batch["labels"])[0].sum()
    np.testing.assert_allclose(sums.loss, 0.7 * kd + 0.3 * hard, rtol=1e-5)
    assert sums.weight == real.sum() == sums.metrics["kd"][1] == sums.metrics["nll"][1]
    np.testing.assert_allclose((sums.metrics["kd"][0], sums.metrics["nll"][0]), (kd, hard), rtol=1e-5)


def cached(batch, teacher, variables, k, temperature=1.0):
    """The batch with the teacher's entries in place of the teacher."""
    found = few(logits(teacher, variables["teacher"]["params"], batch), k, temperature)
    return {**batch, **dict(zip(FIELDS, found))}


@pytest.mark.parametrize("source", ["teacher", "cache"])
def test_chunked_equals_whole(pair, batch, close, source):
    model, teacher, variables = pair
    if source == "cache":
        batch, teacher = cached(batch, teacher, variables, 5), None

    @partial(jax.jit, static_argnums=1)
    def grad(params, chunk):
        objective = distillation(model, Divergence("jsd"), teacher, alpha=0.6, chunk=chunk)
        return jax.value_and_grad(lambda p: objective.loss({**variables, "params": p}, batch, None).loss)(params)

    close(grad(variables["params"], 6), grad(variables["params"], 1000), rtol=1e-4)


@pytest.mark.parametrize("estimator", ["truncated", "renormalised", "tail_bucket"])
def test_a_cache_of_the_whole_vocabulary_is_the_teacher(pair, batch, estimator):
    model, teacher, variables = pair
    divergence = Divergence(temperature=2.0, estimator=estimator)
    live = value(distillation(model, divergence, teacher, alpha=0.7), variables, batch)
    stored = cached(batch, teacher, variables, V, 2.0)
    ours = value(distillation(model, divergence, alpha=0.7), {"params": variables["params"]}, stored)
    np.testing.assert_allclose(ours.loss, live.loss, rtol=1e-5)


def test_padding_packing_and_micro_batches_change_nothing(pair, examples, lay):
    model, teacher, variables = pair
    some = examples(5, 3, 6)
    objective = distillation(model, Divergence("reverse_kl"), teacher, alpha=0.6)
    loss = jax.jit(lambda batch: objective.loss(variables, batch, None)[:2])
    packed = loss(lay([some[:2], some[2:]], T)[0])
    for rows in ([some, []], [some[2:], some[:2]]):
        np.testing.assert_allclose(loss(lay(rows, T)[0]), packed, rtol=1e-5)
    np.testing.assert_allclose(loss(lay([some[:2], some[2:]], T, "left")[0]), packed, rtol=1e-5)
    parts = [loss(lay(rows, T)[0]) for rows in ([some[:1], []], [some[1:2], some[2:]])]
    np.testing.assert_allclose(np.sum(parts, 0), packed, rtol=1e-5)


@pytest.mark.parametrize("source", ["teacher", "cache"])
def test_all_masked_is_zero_and_not_nan(pair, batch, source):
    model, teacher, variables = pair
    batch = {**batch, "labels": np.full_like(batch["labels"], IGNORE)}
    if source == "cache":
        batch, teacher = cached(batch, teacher, variables, 5), None
        batch |= {name: np.zeros_like(batch[name]) for name in FIELDS}
    objective = distillation(model, Divergence(), teacher, chunk=8)
    loss = lambda p: objective.loss({**variables, "params": p}, batch, None)[:2]  # noqa: E731
    sums, grads = jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"]))
    assert sums == (0, 0)
    assert all(not g.any() for g in jax.tree.leaves(grads))


def test_the_teacher_gets_no_gradient(pair, batch):
    model, teacher, variables = pair
    objective = distillation(model, Divergence(), teacher, chunk=8)
    grads = jax.device_get(jax.jit(jax.grad(lambda v: objective.loss(v, batch, None).loss))(variables))
    assert not any(g.any() for g in jax.tree.leaves(grads["teacher"]))
    assert all(g.any() for p, g in tree.flatten(grads["params"]).items() if "k/bias" not in p and "classifier" not in p)


def sizes(jaxpr):
    """Elements of all values of a program, inner ones included."""
    for eqn in jaxpr.eqns:
        yield from (int(np.prod(v.aval.shape)) for v in eqn.outvars)
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from sizes(inner)


@pytest.mark.parametrize("source", ["teacher", "cache"])
def test_neither_side_s_logits_exist_whole(make, source):
    """Of 2 x 64 positions and 5000 tokens: nothing is larger than 16 x 5000, gradients included."""
    vocab, length, chunk = 5000, 64, 16
    student, teacher = (make(name, vocab_size=vocab, max_positions=64) for name in ("gpt2", "llama"))
    batch = {name: jnp.ones((2, length), jnp.int32) for name in ("input_ids", "segment_ids", "labels")}
    batch |= {name: jnp.broadcast_to(jnp.arange(length), (2, length)) for name in ("position_ids", "label_positions")}
    if source == "cache":
        entry = TopK(jnp.ones((2, length, 8), int), jnp.ones((2, length, 8)), jnp.ones((2, length)))
        batch |= dict(zip(FIELDS, entry))

    def largest(chunk):
        objective = distillation(
            student.model, Divergence("jsd"), teacher.model if source == "teacher" else None, chunk=chunk
        )
        loss = lambda p: objective.loss({"params": p, "teacher": {"params": teacher.params}}, batch, None).loss  # noqa: E731
        return max(sizes(jax.make_jaxpr(jax.grad(loss))(student.params).jaxpr))

    assert largest(chunk) == max(chunk, 16) * vocab  # the embedding's gradient is 16 x 5000 too
    assert largest(2 * length) == 2 * length * vocab


@pytest.mark.parametrize("head", ["classification", "tagging"])
def test_few_classes(make, examples, lay, head):
    some = examples(5, 6)
    batch, _ = lay([[e] for e in some], T)
    student, teacher = (make("bert", head=head, num_layers=n, ffn_size=20) for n in (1, 2))
    variables = {"params": student.params, "teacher": {"params": teacher.params}}
    labels = np.asarray([1, 2]) if head == "classification" else np.where(np.asarray(batch["labels"]) < 0, IGNORE, 2)
    batch = {**batch, "labels": labels}
    hard = (classification if head == "classification" else tagging)(student.model)
    sums = value(distillation(student.model, Divergence("tv"), teacher.model, alpha=0.3), variables, batch)
    expected = value(hard, {"params": student.params}, batch)
    scores = logits if head == "tagging" else of_rows
    s, t = (scores(made.model, made.params, batch) for made in (student, teacher))
    kd = np.where(labels != IGNORE, jax.jit(Divergence("tv"))(s, t), 0).sum()
    assert sums.weight == expected.weight
    np.testing.assert_allclose(sums.loss, 0.3 * kd + 0.7 * expected.loss, rtol=1e-5)
    batch |= dict(zip(FIELDS, few(t, 3)))
    stored = value(distillation(student.model, Divergence("tv"), alpha=0.3), {"params": student.params}, batch)
    np.testing.assert_allclose(stored.loss, sums.loss, rtol=1e-5)


def test_masked_words(make, batch):
    student, teacher = make("bert", num_layers=1), make("bert", num_layers=2)
    variables = {"params": student.params, "teacher": {"params": teacher.params}}
    mask = masking(student.model, 4, (0,), 0.3, None)
    words = masked_lm(student.model, mask_id=4, special_ids=(0,), rate=0.3)
    inputs = {name: batch[name] for name in ("input_ids", "segment_ids", "position_ids")}
    masked = distillation(student.model, Divergence(), teacher.model, alpha=0, mask=mask)
    for key in (None, KEY):
        ours, theirs = value(masked, variables, inputs, key), value(words, {"params": student.params}, inputs, key)
        assert ours.weight == theirs.weight > 0
        np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-6)
    itself = {"params": student.params, "teacher": {"params": student.params}}
    alone = value(distillation(student.model, Divergence(), student.model, alpha=1, mask=mask), itself, inputs)
    np.testing.assert_allclose(alone.loss, 0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_teacher_reads_without_virtual_ids(make, examples, lay, side):
    """Soft tokens before a text, within it and last before its answer: the teacher says what it says of the text."""
    teacher, some, soft = make("gpt2", num_layers=1), examples(5, 3), []
    for e in some:
        first = int(np.argmax(e.labels != IGNORE))  # now predicted at a soft token
        tokens = np.insert(e.tokens, [0, 0, 1, first + 1], [50, 51, 52, 53])
        soft.append(e._replace(tokens=tokens, labels=np.insert(e.labels, [0, 0, 1, first], IGNORE)))
    plain, _ = lay([some, []], 2 * T, side)
    virtual, _ = lay([soft, []], 2 * T, side)
    assert np.asarray(virtual["input_ids"])[0, np.asarray(virtual["label_positions"])[0, 0]] == 53
    variables = {"params": teacher.params}
    read = jax.jit(lambda batch: entries(teacher.model, variables, without_virtual(batch, 50), 50, (1.0,)))
    real = np.asarray(plain["labels"]) != IGNORE
    for ours, theirs in zip(*jax.device_get((read(virtual), read(plain)))):
        np.testing.assert_allclose(ours[real], theirs[real], rtol=1e-4, atol=1e-5)


def test_a_virtual_student_learns_from_it(pair, examples, lay):
    model, teacher, variables = pair
    batch, _ = lay([examples(5, 3), []], T)
    plain = value(distillation(model, Divergence(), teacher, virtual=True), variables, batch)
    theirs = value(distillation(model, Divergence(), teacher), variables, batch)
    np.testing.assert_allclose(plain.loss, theirs.loss, rtol=1e-6)


class Tokenizer(dict):
    def get_vocab(self):
        return dict(self)


def test_other_vocabularies_are_refused():
    check_vocabularies(Tokenizer(a=0, b=1), Tokenizer(b=1, a=0), "t")
    with pytest.raises(UserError, match=r"distill.teacher=t: .*2 tokens differ, such as 'b'.*distill=sequence"):
        check_vocabularies(Tokenizer(a=0, b=1), Tokenizer(a=0, c=1), "t")


def test_what_cannot_be(make):
    gpt, bert = make("gpt2").model, make("bert").model
    with pytest.raises(UserError, match=r"distill.alpha=2"):
        distillation(gpt, Divergence(), alpha=2)
    with pytest.raises(UserError, match=r"distill.teacher: its head \(mlm"):
        distillation(gpt, Divergence(), bert)
    classes = [make("bert", head="classification", num_classes=n).model for n in (3, 4)]
    with pytest.raises(UserError, match=r"classification of 4\).*classification of 3"):
        distillation(classes[0], Divergence(), classes[1])
