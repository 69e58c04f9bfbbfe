import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax.distill.cache import DTYPES, INDEX, Entries, Writer, open_cache
from ftjax.distill.forward import entries
from ftjax.distill.keys import data_key, teacher_key, tokenizer_key
from ftjax.distill.losses import Divergence, top_k
from ftjax.distill.objective import distillation
from ftjax.errors import UserError
from ftjax.objectives.base import IGNORE

COUNTS = np.asarray([3, 1, 4, 2, 5])
KEY = {"teacher": "t", "tokenizer": "k", "data": "d"}
K, V, TEMPERATURES = 4, 50, (1.0, 3.0)
LOGITS = jnp.asarray(4 * np.random.default_rng(0).standard_normal((COUNTS.sum(), V)), jnp.float32)


def of(logits, k=K, temperatures=TEMPERATURES):
    made = [top_k(logits, k, t) for t in temperatures]
    log_z = [jax.nn.logsumexp(logits / t, -1) for t in temperatures]
    return Entries(*made[0][:2], jnp.stack(log_z, -1), jnp.stack([e.log_tail for e in made], -1))


ALL = jax.tree.map(np.asarray, of(LOGITS))


def rows(first, end):
    before = np.concatenate([[0], np.cumsum(COUNTS)])
    return Entries(*(x[before[first] : before[end]] for x in ALL))


def writer(folder, **changes):
    options = dict(key=KEY, counts=COUNTS, k=K, vocab=V, temperatures=TEMPERATURES, dtype="float32", shard_labels=4)
    return Writer(folder, **options | changes)


def write(folder, **changes):
    made = writer(folder, **changes)
    for example in range(made.done, len(COUNTS)):
        made.add(1, rows(example, example + 1))
    return folder


EXAMPLE = np.repeat(np.arange(5), COUNTS)
NTH = np.concatenate([np.arange(n) for n in COUNTS])


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_what_is_written_is_read(tmp_path, temperature):
    cache = open_cache(write(tmp_path), KEY, COUNTS, temperature)
    assert len(list(tmp_path.glob("shard-*"))) == 3  # of examples 0-1, 2, 3-4
    order = np.random.default_rng(1).permutation(len(NTH))
    found = cache.take(EXAMPLE[order], NTH[order])
    for ours, theirs in zip(found, top_k(LOGITS[order], K, temperature)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    empty = cache.take(np.asarray([[-1, 2], [0, -1]]), np.asarray([[0, 3], [2, 9]]))
    assert empty.ids.shape == (2, 2, K) and empty.log_tail.shape == (2, 2)
    assert not empty.log_probs[0, 0].any() and empty.log_probs[0, 1].all()
    with pytest.raises(ValueError, match="not as many labels"):
        cache.take(np.asarray([1]), np.asarray([1]))


@pytest.mark.parametrize(("dtype", "most"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_the_error_of_storage(tmp_path, dtype, most):
    found = open_cache(write(tmp_path, dtype=dtype), KEY, COUNTS).take(EXAMPLE, NTH)
    error = np.abs(found.log_probs - ALL.log_probs) / np.abs(ALL.log_probs)
    assert most / 4 < error.max() <= most
    student = jnp.roll(LOGITS, 1, 0)
    stored, exact = (Divergence()(student, entry).mean() for entry in (found, top_k(LOGITS, K)))
    np.testing.assert_allclose(stored, exact, rtol=4 * most)
    np.testing.assert_array_equal(found.log_tail, ALL.log_tail[:, 0])  # never rounded


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_no_type_holds_is_its_lowest(tmp_path, dtype):
    low = Entries(*(np.full_like(x, -1e30) if x.dtype == np.float32 else x for x in ALL))
    made = writer(tmp_path, dtype=dtype)
    made.add(5, low)
    found = open_cache(tmp_path, KEY, COUNTS).take(EXAMPLE, NTH)
    assert np.all(np.isfinite(found.log_probs)) and np.all(found.log_probs <= -65504)


def test_a_killed_writer_goes_on(tmp_path):
    """After the first shard; with rows in memory, a shard the index does not name, and a half file beside it."""
    made = writer(tmp_path)
    for example in range(3):
        made.add(1, rows(example, example + 1))
    assert made.done == 3
    made.add(1, rows(3, 4))
    (tmp_path / "shard-00002.safetensors").write_bytes(b"half")
    (tmp_path / ".shard-00002.safetensors.7").write_bytes(b"h")
    with pytest.raises(UserError, match="3 of 5 examples are there; let the same ftjax teach finish"):
        open_cache(tmp_path, KEY, COUNTS)
    again = writer(tmp_path)
    assert again.done == 3
    again.add(2, rows(3, 5))
    whole = open_cache(write(tmp_path / "once"), KEY, COUNTS).take(EXAMPLE, NTH)
    for ours, theirs in zip(open_cache(tmp_path, KEY, COUNTS).take(EXAMPLE, NTH), whole):
        np.testing.assert_array_equal(ours, theirs)
    assert writer(tmp_path).done == 5


def test_entries_that_do_not_fit_their_examples(tmp_path):
    for count, first, end in ((1, 0, 2), (6, 0, 5)):
        with pytest.raises(ValueError, match="labels"):
            writer(tmp_path).add(count, rows(first, end))


@pytest.mark.parametrize("name", KEY)
def test_a_cache_of_something_else(tmp_path, name):
    write(tmp_path)
    with pytest.raises(UserError, match=rf"index.json: the cache is of another {name}; make one .*ftjax teach"):
        open_cache(tmp_path, {name: "x"}, COUNTS)
    with pytest.raises(UserError, match="made with key"):
        writer(tmp_path, key={**KEY, name: "x"})
    open_cache(tmp_path, {other: KEY[other] for other in KEY if other != name}, COUNTS)  # as without the teacher


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "shard-00001.safetensors").unlink(), "shard-00001.safetensors: missing"),
        (lambda p: cut(p / "shard-00001.safetensors"), r"shard-00001.safetensors: \d+ bytes of \d+; copy it again"),
        (lambda p: (p / INDEX).unlink(), "index.json: not found; make the cache with ftjax teach"),
        (lambda p: (p / INDEX).write_text("{"), "index.json: not the index"),
        (lambda p: (p / INDEX).write_text('{"shards": []}'), "index.json: not the index"),
        (lambda p: swap(p), "its shards hold other examples"),
    ],
)
def test_a_damaged_cache(tmp_path, damage, message):
    damage(write(tmp_path))
    with pytest.raises(UserError, match=message):
        open_cache(tmp_path, KEY, COUNTS)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def swap(folder):
    index = json.loads((folder / INDEX).read_text())
    index["shards"].pop(1)
    (folder / INDEX).write_text(json.dumps(index))


def test_other_examples_and_temperatures(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match="of 5 examples, the data has 4"):
        open_cache(tmp_path, KEY, COUNTS[:4])
    with pytest.raises(UserError, match="example 2 has 4 labels there and 5 in the data"):
        open_cache(tmp_path, KEY, np.asarray([3, 1, 5, 2, 5]))
    with pytest.raises(UserError, match=r"distill.temperature=2: .* is for 1, 3"):
        open_cache(tmp_path, KEY, COUNTS, 2.0)


@pytest.mark.parametrize(
    "options", [dict(k=0), dict(k=51), dict(temperatures=(2.0,)), dict(temperatures=(1.0, 1.0)), dict(dtype="int8")]
)
def test_what_cannot_be_stored(tmp_path, options):
    with pytest.raises(UserError, match=r"^--(top_k|temperatures|dtype)="):
        writer(tmp_path, **options)


def test_from_a_teacher_s_forward_pass_to_the_student_s_loss(tmp_path, make, examples, lay):
    """Written in the data's order, read in another layout: the loss is the live teacher's."""
    student, teacher, some = make("gpt2"), make("llama"), examples(5, 3, 6)
    variables = {"params": student.params, "teacher": {"params": teacher.params}}
    counts = np.asarray([(e.labels != IGNORE).sum() for e in some])
    made = Writer(tmp_path, KEY, counts, k=V, vocab=V, temperatures=TEMPERATURES, dtype="float32", shard_labels=3)
    read = jax.jit(lambda batch: entries(teacher.model, variables["teacher"], batch, V, TEMPERATURES, chunk=8))
    for i, example in enumerate(some):
        found = read(lay([[example], []], 14)[0])
        made.add(1, Entries(*(np.asarray(x[0])[: counts[i]] for x in found)))
    batch, _ = lay([[some[1], some[2]], [some[0]]], 14)
    owner = np.full(batch["labels"].shape, -1)
    owner[0, : counts[1] + counts[2]] = np.repeat([1, 2], counts[1:])
    owner[1, : counts[0]] = 0
    for temperature in TEMPERATURES:
        divergence = Divergence(temperature=temperature)
        cache = open_cache(tmp_path, KEY, counts, temperature)
        attached = cache.attach({name: np.asarray(x) for name, x in batch.items()} | {"example": owner})
        live = jax.jit(distillation(student.model, divergence, teacher.model).loss)(variables, batch, None)
        stored = jax.jit(distillation(student.model, divergence).loss)({"params": student.params}, attached, None)
        np.testing.assert_allclose(stored.loss, live.loss, rtol=1e-5)


def test_a_label_a_row(tmp_path):
    ones = np.ones(len(LOGITS), int)
    made = writer(tmp_path, counts=ones)
    made.add(len(ones), ALL)
    batch = open_cache(tmp_path, KEY, ones).attach({"example": np.asarray([7, -1, 2])})
    assert batch["teacher_ids"].shape == (3, K) and batch["teacher_log_tail"].shape == (3,)
    np.testing.assert_array_equal(batch["teacher_ids"][[0, 2]], ALL.ids[[7, 2]])


class Tokenizer(dict):
    def get_vocab(self):
        return dict(self)


def test_keys(make):
    made, other = make("gpt2"), make("gpt2", num_layers=1)
    variables = {"params": made.params, "adapters": {}}
    key = teacher_key(made.model, variables)
    assert key == teacher_key(made.model.clone(cfg=made.cfg.replace(remat=True, scan_unroll=1)), variables)
    bias = made.params["layers"]["attn"]["q"]["bias"]
    layers = {**made.params["layers"], "attn": {**made.params["layers"]["attn"], "q": {"bias": bias + 1e-6}}}
    others = [
        teacher_key(other.model, {"params": other.params}),
        teacher_key(made.model.clone(cfg=made.cfg.replace(norm_eps=1e-6)), variables),
        teacher_key(made.model.clone(cfg=made.cfg.replace(dtype=jnp.bfloat16)), variables),
        teacher_key(made.model, {"params": {**made.params, "layers": layers}}),
        teacher_key(made.model, jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)),
    ]
    assert len({key, *others}) == 6
    assert (
        tokenizer_key(Tokenizer(a=0, b=1)) == tokenizer_key(Tokenizer(b=1, a=0)) != tokenizer_key(Tokenizer(a=1, b=0))
    )
    a, b = np.arange(6), np.arange(6, dtype=np.int32)
    assert len({data_key(a), data_key(b), data_key(a, a), data_key(a.reshape(2, 3)), data_key(a[::-1])}) == 5
