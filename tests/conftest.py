"""Tiny models of the three shapes, and batches for them. XLA is told to compile fast rather than well, and what it has
compiled serves the whole session, processes that tests start included."""

import atexit
import importlib.metadata
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"
os.environ["XLA_FLAGS"] = f"--xla_cpu_parallel_codegen_split_count=1 {os.environ['XLA_FLAGS']}"
if tuple(map(int, importlib.metadata.version("jax").split(".")[:2])) < (0, 11):  # later ones abort on this flag
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.environ['XLA_FLAGS']}"  # compiles faster
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jax-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import functools
import gc
import zlib
from typing import NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from configs.default import get_config
from ftjax import tree
from ftjax.models.transformer import Transformer, abstract
from ftjax.nn.config import Config
from ftjax.parallel.mesh import make_mesh

settings.register_profile(
    "repeatable", deadline=None, derandomize=True, max_examples=25, suppress_health_check=list(HealthCheck)
)
settings.load_profile("repeatable")


def pytest_collection_finish(session):
    """The libraries that are loaded by now stay: no collection of garbage looks through them again. As often as by
    default, collections would be a third of the time of tracing."""
    gc.freeze()
    gc.set_threshold(1_000_000, 10, 10)


# Without a scan, which two layers do not gain by. A test compiles a whole function: each operation run alone, on each
# new shape, is a program too.
SIZES = dict(vocab_size=50, hidden_size=16, num_layers=2, max_positions=32, scan_unroll=-1, num_classes=3)
CONFIGS = {
    "gpt2": Config(**SIZES, family="gpt2", num_heads=2, num_kv_heads=2, head_dim=8, ffn_size=24),
    "llama": Config(
        **SIZES, family="llama", num_heads=4, num_kv_heads=2, head_dim=6, ffn_size=24, norm="rmsnorm", norm_eps=1e-6,
        positions="rotary", activation="silu", gated=True, qkv_bias=False, out_bias=False, ffn_bias=False,
        tied_head=False, classifier_bias=False,
    ),
    "bert": Config(
        **SIZES, family="bert", num_heads=2, num_kv_heads=2, head_dim=8, ffn_size=24, causal=False, norm_order="post",
        embed_norm=True, token_types=2, activation="gelu", norm_eps=1e-12, pooling="first", head="mlm",
        head_bias=True,
    ),
}  # fmt: skip
_T5 = dict(
    **SIZES, family="t5", num_heads=2, num_kv_heads=2, head_dim=6, ffn_size=24, norm="rmsnorm", norm_eps=1e-6,
    positions="t5", relative_buckets=8, relative_distance=10, attention_scale=1.0, activation="relu", qkv_bias=False,
    out_bias=False, ffn_bias=False,
)  # fmt: skip
T5 = Config(**_T5, head_scale=0.25, encoder=Config(**_T5 | {"num_layers": 3}, causal=False, head="none"))


class Made(NamedTuple):
    """A model and its parameters."""

    model: Transformer
    params: dict

    @property
    def cfg(self):
        return self.model.cfg


def random_like(shapes, seed=0, scale=0.4):
    """Values far from any symmetric or zero initialisation, by path."""

    def draw(path, x):
        rng = np.random.default_rng([zlib.crc32(path.encode()), seed])
        value = scale * rng.standard_normal(x.shape) + path.endswith("norm/scale")
        return jax.device_put(value.astype(x.dtype))  # jnp.asarray compiles a program a shape

    return tree.map_paths(draw, shapes)


@functools.cache
def _make(name, **overrides):
    cfg = {**CONFIGS, "t5": T5}[name].replace(**overrides)
    if cfg.head == "classification" and name == "bert":
        cfg = cfg.replace(pooler="dense", head_bias=False)
    model = Transformer(cfg)
    return Made(model, random_like(abstract(model)))


@pytest.fixture(scope="session")
def make():
    """make("gpt2" | "llama" | "bert" | "t5", field=value, ...) -> Made, the same object each time."""
    return _make


@pytest.fixture(scope="session")
def randomised():
    """randomised(tree of arrays or shapes, seed) -> the same with random values."""
    return random_like


@pytest.fixture(scope="session", params=list(CONFIGS))
def shape(request):
    """The name of each model shape of one stack in turn."""
    return request.param


@pytest.fixture
def mesh():
    """The mesh that runs set: what is compiled under one is not there for what runs without."""
    with jax.set_mesh(make_mesh(get_config().mesh)):
        yield


class Example(NamedTuple):
    """Tokens, and at each the token to predict (-100: none)."""

    tokens: np.ndarray
    labels: np.ndarray


def _examples(*lengths, vocab=50, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for n in lengths:
        labels = rng.integers(0, vocab, n)
        labels[: n // 3] = -100
        made.append(Example(rng.integers(0, vocab, n), labels))
    return made


@pytest.fixture(scope="session")
def examples():
    """examples(5, 3, ..., seed=0) -> random examples of these lengths, the first third of each without labels."""
    return _examples


def _lay(rows, length, side="right"):
    shape = (len(rows), length)
    batch = {name: np.zeros(shape, np.int32) for name in ("input_ids", "segment_ids", "position_ids", "labels")}
    batch["labels"] -= 100
    batch["input_ids"] += 7  # what stands in padding must not matter
    batch["label_positions"] = np.zeros(shape, np.int32)
    where = []
    for r, row in enumerate(rows):
        at, m = length - sum(len(e.tokens) for e in row) if side == "left" else 0, 0
        for s, example in enumerate(row):
            n = len(example.tokens)
            part = (r, slice(at, at + n))
            batch["input_ids"][part], batch["segment_ids"][part] = example.tokens, s + 1
            batch["position_ids"][part] = np.arange(n)
            for i in np.flatnonzero(example.labels != -100):
                batch["label_positions"][r, m], batch["labels"][r, m] = at + i, example.labels[i]
                m += 1
            where.append(part)
            at += n
    return jax.device_put(batch), where


@pytest.fixture(scope="session")
def lay():
    """lay(rows of examples, length, side) -> (lm batch, where each example lies, in order)."""
    return _lay


@pytest.fixture(scope="session")
def close():
    """Asserts that two trees are equal to a tolerance; `bits=True`: exactly."""

    def check(a, b, rtol=1e-5, atol=1e-6, bits=False):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for (path, x), y in zip(tree.flatten(a).items(), jax.tree.leaves(b), strict=True):
            x, y = np.asarray(x), np.asarray(y)
            if bits:
                np.testing.assert_array_equal(x, y, err_msg=path, strict=True)
            else:
                np.testing.assert_allclose(x, y, rtol, atol, err_msg=path)

    return check
