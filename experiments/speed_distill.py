"""What `experiments.speed distill` measures: the cost of a teacher, and the memory of its loss."""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

CHUNK = 2048


class Side:
    """One run's compiled step, and the first batches of its data."""

    def __init__(self, config: Any, batches: int):
        import jax

        from ftjax import tree
        from ftjax.parallel.mesh import make_mesh, place_batch
        from ftjax.train.build import load_data
        from ftjax.train.compiled import Compiled
        from ftjax.train.fields import Fields
        from ftjax.train.optimizer import make_optimizer
        from ftjax.train.restore import build
        from ftjax.train.step import init_state, make_step
        from ftjax.train.teacher import taught

        f = Fields(config)
        mesh, parts = make_mesh(f.mesh), build(f)
        self.parts = parts
        lesson = taught(f, parts, load_data(f, parts, "train", training=True), mesh)
        train, self.frozen = tree.split(lesson.parts.variables, lesson.parts.labels)
        tx, _ = make_optimizer(f.optimizer, tree.split(lesson.parts.labels, lesson.parts.labels)[0], 10**6, 10**3)
        self.state, self.key = init_state(train, tx), jax.random.key(f.seed)
        self.step = Compiled(make_step(lesson.parts.objective.loss, tx), donate_argnums=0)
        self.batches = [place_batch(batch, mesh) for _, batch in zip(range(batches), lesson.data.batches)]

    def seconds(self) -> float:
        """One pass over the batches, without compilation."""
        import jax

        started, compiling = time.perf_counter(), self.step.seconds
        for batch in self.batches:
            self.state, _ = self.step(self.state, self.frozen, batch, self.key)
        jax.block_until_ready(self.state)
        return time.perf_counter() - started - (self.step.seconds - compiling)


def distill(folder: Path, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Medians over rounds, each side's steps in turn: milliseconds a step, and bytes of the loss by vocabulary."""
    import jax

    from configs import default
    from ftjax.train.cache import write_cache
    from ftjax.train.fields import Fields

    def config(distill: str, layers: Any = args.layers, **fields: Any) -> Any:
        made = default.get_config(f"model={args.model},task=e2e,method=full,distill={distill}")
        common = {
            "task.data": str(args.data), "task.max_train_rows": args.batch_size * (args.steps + 4),
            "model.layers": layers, "batch_size": args.batch_size, "seed": args.seed,
        }  # fmt: skip
        made.update_from_flattened_dict(common | fields)
        return made

    source: dict[str, Any] = {"distill.teacher": args.model}
    write_cache(Fields(config("token", **source)), folder / "cache", k=64, temperatures=(1.0,), dtype="float16")
    sides = {
        "student": Side(config("none"), args.steps),
        "live teacher": Side(config("token", **source), args.steps),
        "cache of 64": Side(config("token", **{"distill.cache": str(folder / "cache")}), args.steps),
    }
    teacher = Side(config("none", layers=()), args.steps)
    outputs: Any = teacher.parts.objective.outputs
    forward = jax.jit(lambda variables, batch: outputs(variables, batch)["nll"])

    def passes() -> float:
        started = time.perf_counter()
        for batch in teacher.batches:
            jax.block_until_ready(forward(teacher.parts.variables, batch))
        return time.perf_counter() - started

    for run in (*(side.seconds for side in sides.values()), passes):  # compiles
        run()
    rounds = [{**{name: side.seconds() for name, side in sides.items()}, "teacher forward": passes()}
              for _ in range(args.rounds)]  # fmt: skip
    found = {name: statistics.median(one[name] for one in rounds) * 1e3 / args.steps for name in rounds[0]}
    over = {
        "live teacher": statistics.median(r["live teacher"] / (r["student"] + r["teacher forward"]) for r in rounds),
        "cache of 64": statistics.median(r["cache of 64"] / r["student"] for r in rounds),
    }
    return {"ms": found, "over": over, "loss bytes": {str(v): loss_bytes(v, args.seed) for v in (8_192, 65_536)}}


def loss_bytes(vocabulary: int, seed: int, hidden: int = 64) -> dict[str, int]:
    """XLA's temporaries of the loss of a live teacher and its gradient, by labelled positions, models of one layer."""
    import jax

    from ftjax.distill import Divergence, distillation
    from ftjax.models.transformer import Transformer, abstract
    from ftjax.nn.config import Config

    model = Transformer(
        Config(
            family="gpt2", vocab_size=vocabulary, hidden_size=hidden, num_layers=1, num_heads=1, num_kv_heads=1,
            head_dim=hidden, ffn_size=hidden, max_positions=64,
        )
    )  # fmt: skip
    loss = distillation(model, Divergence(), model, chunk=CHUNK).loss
    params = abstract(model)
    run = lambda params, teacher, batch: loss({"params": params, "teacher": teacher}, batch, None).loss  # noqa: E731
    found = {}
    for rows in (128, 512):
        names = ("input_ids", "segment_ids", "position_ids", "label_positions", "labels")
        batch = {name: jax.ShapeDtypeStruct((rows, 64), "int32") for name in names}
        compiled = jax.jit(jax.grad(run)).lower(params, {"params": params}, batch).compile()
        found[str(rows * 64)] = compiled.memory_analysis().temp_size_in_bytes  # type: ignore[union-attr]
    return found
