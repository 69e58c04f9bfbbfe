"""Run by test_mesh.py on eight forced devices: two steps of every method on meshes, as one line of JSON."""

import itertools
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import method as configs
from configs.default import get_config
from ftjax import methods, tree
from ftjax.models.transformer import Transformer, abstract, sites
from ftjax.nn.config import Config
from ftjax.objectives.classification import classification
from ftjax.objectives.lm import causal_lm
from ftjax.parallel.mesh import make_mesh, place, place_batch, shardings, trial_mesh
from ftjax.train import program
from ftjax.train.build import with_expand
from ftjax.train.checkpoint import Checkpoints, read_best
from ftjax.train.loop import train, train_together
from ftjax.train.step import init_state, make_step

EVERY = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(sizes) == 8]
BOTH = [(2, 2, 2)]  # the base cut along both axes
TWO = [(2, 4, 1), (2, 1, 4)]  # along fsdp, along tensor
LM, CLASSES = dict(head="lm"), dict(head="classification")
ONE = dict(num_layers=1, scan_unroll=-1)  # a layer, without a scan: two thirds of the time to compile
RUNS = {  # method, and how -> its fields, the model's options, meshes; some share a compile, which is seconds
    "full": ({}, LM | ONE | dict(hidden_dropout=0.1), EVERY),
    "full scanned": ({}, LM | dict(hidden_dropout=0.1), BOTH),
    "lora": (dict(rank=2, alpha=4.0, dropout=0.1), LM, [*BOTH, *TWO]),
    "bitfit+lora+ia3+adapter+prompt+prefix+llama_adapter": (
        {"bitfit.norms": True, "lora.rank": 2, "lora.targets": ("all_linear", "head"), "lora.dora": True,
         "adapter.size": 3, "prompt.length": 2, "prefix.length": 2, "prefix.hidden": 3, "llama_adapter.length": 2},
        LM | ONE | dict(qkv_bias=True), BOTH,
    ),
    "gradual+p_tuning": (
        {"p_tuning.definition": "peft", "p_tuning.template": "{2}{text}", "p_tuning.hidden": 3}, LM, BOTH
    ),
    "top_layers": (dict(count=1), CLASSES | dict(attention_dropout=0.1), TWO),
    "head": ({}, CLASSES, BOTH),
}  # fmt: skip
VOCAB = 48
CONFIG = Config(
    VOCAB, 16, 2, 4, 2, 4, 32, 16, norm="rmsnorm", positions="rotary", gated=True, tied_head=False, qkv_bias=False,
    num_classes=3,
)  # fmt: skip
KEY = jax.random.key(0)


def parts(name, fields, options):
    """(state before the first step, frozen leaves, step function) of a method, on one device."""
    name = name.partition(" ")[0]
    model, method, cfg = Transformer(CONFIG.replace(**options)), methods.get(name), configs.get(name)
    cfg.update_from_flattened_dict(fields)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), abstract(model))
    context = methods.Context(model.cfg, params, sites(model))
    adapters = jax.jit(lambda key: method.init(context, cfg, key))(KEY)
    variables = methods.variables(method, cfg, params, adapters, model.cfg.num_layers)
    train, frozen = tree.split(variables, methods.labels(method, variables, cfg, model.cfg))
    tx = optax.adam(1e-2, eps=1e-3)  # what has no gradient but the sums' last bits stays where it is
    objective = with_expand(causal_lm(model) if model.cfg.head == "lm" else classification(model), method)
    return jax.jit(lambda: init_state(train, tx))(), frozen, make_step(objective.loss, tx)


def batch(head):
    """Eight rows that begin with two virtual tokens, which a method without them reads as the last word."""
    rng = np.random.default_rng(1)
    ids = rng.integers(0, VOCAB, (8, 8)).astype(np.int32)
    ids[:, :2] = VOCAB, VOCAB + 1
    at = np.tile(np.arange(8, dtype=np.int32), (8, 1))
    rows = dict(input_ids=ids, segment_ids=np.ones_like(ids), position_ids=at)
    if head == "classification":
        return rows | dict(labels=np.arange(8, dtype=np.int32) % CONFIG.num_classes)
    labels = np.where((rng.random(ids.shape) < 0.7) & (at > 0) & (at < 7), np.roll(ids, -1, 1), -100)
    return rows | dict(label_positions=at, labels=labels)


def run(mesh, rows, state, frozen, step, steps=2):
    """Losses and gradient norms, the last state, compilations."""
    state, frozen, rows = place(state, mesh), place(frozen, mesh), place_batch(rows, mesh)
    compiled = jax.jit(step, out_shardings=(shardings(state, mesh), None))
    seen = []
    for _ in range(steps):
        state, metrics = compiled(state, frozen, rows, KEY)
        seen.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return seen, state, compiled._cache_size()


def compared(x, one, start):
    """[distance from the leaf of one device, how far that one went, number of pieces along each axis]."""
    x, pieces = np.asarray(x), np.array(x.shape) // x.sharding.shard_shape(x.shape)
    far = lambda a, b: float(np.abs(a - b).max(initial=0.0))  # noqa: E731
    return [far(x, np.asarray(one)), far(np.asarray(one), np.asarray(start)), pieces.tolist()]


def mesh_of(*sizes):
    return make_mesh(SimpleNamespace(**dict(zip(("data", "fsdp", "tensor"), sizes))))


def trials(seeds, devices):
    """Of runs trained as one program over so many devices, the last one against the same run alone: how far apart its
    leaves are, how far its B went, and the devices that took part."""
    asked, count = [], len(seeds)
    for rank in range(1, count + 1):
        default, config = (get_config("model=nano-gpt,task=vowels,method=lora") for _ in range(2))
        config.update_from_flattened_dict({
            **{f"task.{split}_size": 8 for split in ("train", "validation", "test")}, "model.layers": (0,), "steps": 3,
            "eval_every": 3, "batch_size": 4, "eval_batch_size": 4, "data.buckets": 1, "method.targets": ("attn/q",),
            "method.dropout": 0.1, "method.rank": rank, "seed": seeds[rank - 1], "optimizer.warmup": 0.0,
        })  # fmt: skip
        asked.append((config, default))
    here = jax.local_devices()[:devices]
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(jax, "local_devices", lambda: here):
        train_together([(*one, Path(folder, str(i))) for i, one in enumerate(asked, 1)])
        spread = trial_mesh(count).size
        train(*asked[-1], Path(folder, "alone"))
        mine, theirs = (read_best(Path(folder, name)) for name in (str(count), "alone"))
    off = max(float(np.abs(mine[path] - theirs[path]).max()) for path in mine)
    went = next(float(np.abs(x).max()) for path, x in theirs.items() if path.endswith("q/lora/b"))
    return {"off": off, "went": went, "devices": spread}


result: dict = {"devices": len(jax.devices()), "runs": {}}
full = {}
for name, (fields, options, meshes) in RUNS.items():
    (start, frozen, step), found, one = parts(name, fields, options), [], None
    for sizes in [(1, 1, 1), *meshes]:
        seen, state, compiles = run(mesh_of(*sizes), batch(options["head"]), start, frozen, step)
        one = one or state
        flat = [tree.flatten(each) for each in (state, one, start)]
        leaves = {path: compared(*(each[path] for each in flat)) for path in flat[0]}
        found.append({"sizes": sizes, "rows": seen, "compiles": compiles, "leaves": leaves})
        if name == "full":
            full[sizes] = state
        print(name, sizes, file=sys.stderr, flush=True)
    result["runs"][name] = found

# A state of one mesh restored onto others.
kept = []
with tempfile.TemporaryDirectory() as folder:
    checkpoints = Checkpoints(Path(folder))
    checkpoints.save(3, full[2, 2, 2], {"step": 2}, best=True)
    checkpoints.close()
    for sizes in [(1, 1, 1), (8, 1, 1), (1, 8, 1)]:
        like = full[sizes]
        state, _ = Checkpoints(Path(folder)).restore(like)
        same = jax.tree.map(
            lambda a, b, c: np.array_equal(a, b) and a.sharding == c.sharding, state, full[2, 2, 2], like
        )
        kept.append(all(jax.tree.leaves(same)))
result["restored"] = kept
result["trials"] = [trials((1, 2, 3, 4), 8)]
program.TOKENS = 1 << 20  # a device then takes several
result["trials"].append(trials((1, 1, 1, 1), 2))  # in one order of the data
print(json.dumps(result))
