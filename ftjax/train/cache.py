"""Writes the cache of a run's training split: what its teacher thinks of every label."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from ftjax.data.encoded import IGNORED
from ftjax.data.loader import Loader
from ftjax.distill import Entries, Writer, entries, teacher_key
from ftjax.distill.forward import VOCABULARY
from ftjax.distill.objective import check_heads
from ftjax.errors import UserError
from ftjax.parallel.mesh import make_mesh, place, place_batch, rows_multiple
from ftjax.train.build import load_data
from ftjax.train.fields import Fields
from ftjax.train.restore import build
from ftjax.train.teacher import compared, data_keys, label_counts, load_teacher


def write_cache(
    f: Fields, folder: Path, *, k: int, temperatures: Sequence[float], dtype: str, shard_labels: int = 1 << 16
) -> Writer:
    """Writes, or goes on writing, what `distill.cache` of a run with this config reads; the writer, done.

    Args:
      k: tokens kept for each label, at most: all of fewer classes.
      temperatures, dtype, shard_labels: as in `Writer`.
    Raises:
      UserError: as `build`, `load_data`, `load_teacher`, `Writer`; masked words, which are drawn anew each step.
    """
    mesh = make_mesh(f.mesh)
    with jax.set_mesh(mesh):
        parts = build(f, f.warm_start, mesh)
        if compared(f, parts) == "mlm":
            raise UserError("task.objective='mlm': masked words are drawn anew each step, so no cache can have them")
        plain = load_data(f, parts, "train", training=True).plain
        teacher = load_teacher(f, parts, mesh)
        check_heads(parts.model, teacher.model)
        model = teacher.model.clone(cfg=teacher.model.cfg.replace(max_segments=0))  # a row is one example
        vocab = model.cfg.vocab_size if model.cfg.head in VOCABULARY else model.outputs
        key = {"teacher": teacher_key(teacher.model, teacher.variables), **data_keys(parts, plain)}
        writer = Writer(
            folder, key, label_counts(plain), k=min(k, vocab), vocab=vocab, temperatures=temperatures, dtype=dtype,
            shard_labels=shard_labels,
        )  # fmt: skip
        batches = Loader(
            plain, "buckets", f.eval_batch_size, shuffle=False, max_length=f.task.max_length,
            multiple=rows_multiple(mesh),
        )  # fmt: skip
        row = np.arange(batches.rows)
        run = jax.jit(
            partial(entries, model, k=min(k, vocab), temperatures=tuple(temperatures)),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )
        variables = place({"teacher": teacher.variables}, mesh)["teacher"]
        there = writer.done
        for number, host in enumerate(tqdm(batches, total=batches.steps_per_epoch, unit="batches", disable=None)):
            example = number * f.eval_batch_size + row
            wanted = (example >= there) & (example < len(plain)) & (row < f.eval_batch_size)
            if not wanted.any():
                continue
            found = run(variables, place_batch(host, mesh))
            real = (host["labels"] != IGNORED).reshape(len(wanted), -1) & wanted[:, None]
            writer.add(int(wanted.sum()), Entries(*(np.asarray(x)[real] for x in found)))
    return writer
