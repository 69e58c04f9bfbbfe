"""Run by test_mesh.py on eight forced devices: three steps on each mesh, as one line of JSON."""

import itertools
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import method as configs
from ftjax import methods, tree
from ftjax.models.transformer import Transformer, abstract, sites
from ftjax.nn.config import Config
from ftjax.objectives.lm import causal_lm
from ftjax.parallel.mesh import make_mesh, place, place_batch, shardings
from ftjax.train.checkpoint import Checkpoints
from ftjax.train.step import init_state, make_step

EVERY = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(sizes) == 8]
MESHES = {"full": EVERY, "lora": [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]}  # a compile each: seconds
CONFIG = Config(
    48, 16, 2, 4, 2, 4, 32, 16, norm="rmsnorm", positions="rotary", gated=True, tied_head=False, qkv_bias=False,
    hidden_dropout=0.1, attention_dropout=0.1,
)  # fmt: skip
LORA = configs.get("lora")
LORA.update(rank=2, alpha=4.0, dropout=0.1)
RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def parts(name):
    """(trainable leaves, frozen ones, step function, optimizer) of a method, on one device."""
    model, method = Transformer(CONFIG), methods.get(name)
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * RNG.standard_normal(x.shape), x.dtype), abstract(model))
    adapters = method.init(methods.Context(CONFIG, params, sites(model)), LORA, KEY)
    variables = {"params": params, "adapters": adapters}
    tx = optax.adam(1e-2)
    return (*tree.split(variables, methods.labels(method, variables, LORA)), make_step(causal_lm(model).loss, tx), tx)


def batch():
    ids = RNG.integers(0, 48, (8, 8)).astype(np.int32)
    at = np.tile(np.arange(8, dtype=np.int32), (8, 1))
    labels = np.where(RNG.random(ids.shape) < 0.7, np.roll(ids, -1, 1), -100)
    return dict(input_ids=ids, segment_ids=np.ones_like(ids), position_ids=at, label_positions=at, labels=labels)


def run(mesh, train, frozen, step, tx, steps=3):
    """Losses and gradient norms, and the last state."""
    state, frozen = place(init_state(train, tx), mesh), place(frozen, mesh)
    compiled = jax.jit(step, out_shardings=(shardings(state, mesh), None))
    rows = []
    for _ in range(steps):
        state, metrics = compiled(state, frozen, place_batch(BATCH, mesh), KEY)
        rows.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return rows, state, compiled._cache_size()


def mesh_of(*sizes):
    return make_mesh(SimpleNamespace(**dict(zip(("data", "fsdp", "tensor"), sizes))))


BATCH = batch()
result: dict = {"devices": len(jax.devices()), "meshes": MESHES}
states = {}
for name in MESHES:
    made = parts(name)
    result[name] = []
    for sizes in [(1, 1, 1), *MESHES[name]]:
        rows, states[sizes], compiles = run(mesh_of(*sizes), *made)
        result[name].append({"rows": rows, "compiles": compiles})
        print(name, sizes, file=sys.stderr, flush=True)

# A state of one mesh restored onto others.
state, kept = states[2, 2, 2], []
with tempfile.TemporaryDirectory() as folder:
    checkpoints = Checkpoints(Path(folder))
    checkpoints.save(3, state, {"step": 3}, best=True)
    checkpoints.close()
    for sizes in [(1, 1, 1), (8, 1, 1), (1, 8, 1)]:
        like = states[sizes]
        found, _ = Checkpoints(Path(folder)).restore(like)
        same = jax.tree.map(lambda a, b, c: np.array_equal(a, b) and a.sharding == c.sharding, found, state, like)
        kept.append(all(jax.tree.leaves(same)))
result["restored"] = kept
print(json.dumps(result))
