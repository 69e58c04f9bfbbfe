"""Pretrains the two small models that the project ships, from public-domain novels.

    python -m experiments.pretrain_nano gpt  --data=DIR --workdir=runs/nano-gpt
    python -m experiments.pretrain_nano bert --data=DIR --workdir=runs/nano-bert

`--data` is a folder of `*.txt` or `*.txt.gz` books; every tenth book by name is held out. The tokenizer is learned on
the training books. Two runs of `ftjax.train.loop.train`, each of which resumes: `short` has rows of `--row` tokens at
random places of the context, so that all 512 positions train, then `long`, the last tenth of the steps, rows of 512 at
a low rate. What the trainer does not have is registered here: Muon (Jordan et al. 2024) on the layers' kernels beside
AdamW, random places, other masks in evaluation than in training. `--output` receives the Hugging Face directory.
Recipe, curve and figures of the shipped files: `ftjax/assets/README.md`; they are of an earlier form of this script, in
which one run with its moments went on to the longer rows, and BERT's rows were crops without [CLS] and [SEP].
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ftjax
from configs import optimizer
from configs.default import get_config
from ftjax import tree
from ftjax.data.tasks import TASKS
from ftjax.data.tokenizer import train_tokenizer
from ftjax.files import whole
from ftjax.kinds import KINDS, Setting, lm, mlm
from ftjax.kinds.masks import masks
from ftjax.models.transformer import Transformer, init
from ftjax.nn.config import Config
from ftjax.objectives.base import Objective
from ftjax.objectives.mlm import masked_lm
from ftjax.train.build import build
from ftjax.train.evaluate import evaluate_split
from ftjax.train.fields import Fields
from ftjax.train.loop import train
from ftjax.train.optimizer import OPTIMIZERS
from ftjax.train.restore import load_run

CONTEXT = 512
BATCH_TOKENS = 2048
PEAK = {
    "gpt": (0.02, 4e-3),
    "bert": (0.004, 2e-3),
}  # rates of Muon and of AdamW; at GPT's, BERT learns word counts only
LOW = 0.05  # of the peak: the long rows' first rate
FLOOR = 0.02  # of a run's first rate: its last
MASKED, HELD_MASKED = 0.3, 0.15  # in training (Wettig et al. 2022), for more labels a step; in evaluation
SHAPE: dict[str, Any] = dict(
    hidden_size=160, num_layers=4, num_heads=5, num_kv_heads=5, head_dim=32, ffn_size=640, max_positions=CONTEXT
)
MODELS = {
    "gpt": Config(vocab_size=1024, **SHAPE, family="gpt2"),
    "bert": Config(
        vocab_size=2048, **SHAPE, causal=False, norm_order="post", embed_norm=True, activation="gelu", norm_eps=1e-12,
        token_types=2, head="mlm", head_bias=True, family="bert", pooling="first",
    ),
}  # fmt: skip


def linked(data: Path, folder: Path) -> None:
    """A folder of links to the books, those that are held out named so."""
    files = sorted([*data.glob("*.txt"), *data.glob("*.txt.gz")])
    folder.mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(files):
        link = folder / f"{'held' if i % 10 == 5 else 'train'}-{file.name}"
        if not link.is_symlink():
            link.symlink_to(file.resolve())


def with_neighbour_heads(params: Any, cfg: Config, gain: float = 2.0) -> Any:
    """The parameters, started so that heads 0 to 3 of the first layer attend to the tokens at -1, +1, -2 and +2.

    A masked word's own place tells nothing, so a masked model first has to find its neighbours by position: from a
    random start that takes thousands of steps on the plateau of word frequencies. Here the positions are sines and
    cosines (Vaswani et al. 2017, section 3.5) in as many dimensions as a head has, which the word table leaves free,
    and a head's queries are its keys turned by so many positions. All of it trains on from there.
    """
    size, positions = cfg.head_dim, np.arange(cfg.max_positions)
    frequency = np.geomspace(1.5, 0.01, size // 2)
    angle = positions[:, None] * frequency
    table = np.zeros((cfg.max_positions, cfg.hidden_size), np.float32)
    table[:, :size] = np.concatenate([np.sin(angle), np.cos(angle)], 1) * cfg.init_std * math.sqrt(2)
    embed = {**params["embed"], "positions": {"embedding": jnp.asarray(table)}}
    embed["tokens"] = {"embedding": params["embed"]["tokens"]["embedding"].at[:, :size].set(0)}
    q, k = (params["layers"]["attn"][name]["kernel"] for name in "qk")
    for head, offset in enumerate((-1, 1, -2, 2)):
        cos, sin = np.diag(np.cos(frequency * offset)), np.diag(np.sin(frequency * offset))
        columns = slice(head * size, (head + 1) * size)
        q = q.at[0, :, columns].set(0).at[0, :size, columns].set(gain * np.block([[cos, -sin], [sin, cos]]))
        k = k.at[0, :, columns].set(0).at[0, :size, columns].set(gain * np.eye(size))
    attn = params["layers"]["attn"]
    attn = {**attn, "q": {**attn["q"], "kernel": q}, "k": {**attn["k"], "kernel": k}}
    return {**params, "embed": embed, "layers": {**params["layers"], "attn": attn}}


def make_start(kind: str, books: Path, folder: Path, seed: int) -> None:
    """A Hugging Face directory: the tokenizer, and the model before its first step."""
    cfg, causal = MODELS[kind], kind == "gpt"
    learned = train_tokenizer(
        "byte_bpe" if causal else "wordpiece", sorted(books.glob("train-*")), cfg.vocab_size, lowercase=not causal
    )
    learned.model_max_length = cfg.max_positions
    model = Transformer(cfg)
    params = init(model, jax.random.key(seed))
    if not causal:
        params = with_neighbour_heads(params, cfg)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0} if causal else {"pad_token_id": 0}
    with whole(folder) as aside:
        ftjax.save(aside, model, params, extra=ends)
        learned.save_pretrained(aside)


def anywhere(objective: Callable[[Setting], Objective]) -> Callable[[Setting], Objective]:
    """The objective with each row of a training batch at a random place of the context."""

    def moved(setting: Setting) -> Objective:
        plain, context = objective(setting), setting.model.cfg.max_positions

        def loss(variables: Any, batch: Any, key: jax.Array | None) -> Any:
            if key is None:
                return plain.loss(variables, batch, None)
            draw, key = jax.random.split(key)
            rows, length = batch["position_ids"].shape
            by = jax.random.randint(draw, (rows, 1), 0, context - length + 1)
            return plain.loss(variables, {**batch, "position_ids": batch["position_ids"] + by}, key)

        return plain._replace(loss=loss)

    return moved


def masked(setting: Setting) -> Objective:
    """Masked words, in evaluation fewer of them."""
    trained = mlm.objective(setting)
    held = masked_lm(setting.model, **{**masks(setting), "rate": HELD_MASKED})
    return Objective(lambda variables, batch, key: (held if key is None else trained).loss(variables, batch, key))


def muon(cfg: Any, rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon on the layers' kernels at `cfg.kernel_rate` of the rate, AdamW on the rest; not below FLOOR of the first."""

    def kind(path: str, leaf: jax.Array) -> str:
        return "muon" if path.startswith("params/layers/") and path.endswith("kernel") else "adam"

    def scaled(factor: float) -> optax.Schedule:
        return lambda step: factor * (FLOOR * cfg.learning_rate + (1 - FLOOR) * rate(step))

    dims = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    kernels = optax.contrib.scale_by_muon(weight_dimension_numbers=lambda p: jax.tree.map(lambda _: dims, p))
    return optax.multi_transform(
        {
            "muon": optax.chain(
                kernels, optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(scaled(cfg.kernel_rate))
            ),
            "adam": optax.adamw(scaled(1.0), b1=0.9, b2=0.98, weight_decay=0.01),
        },
        lambda params: tree.map_paths(kind, params),
    )


def register() -> None:
    """Tells the trainer of what is here."""
    OPTIMIZERS["muon"] = muon
    KINDS["gpt"] = lm.KIND._replace(objective=anywhere(lm.objective))
    KINDS["bert"] = mlm.KIND._replace(objective=anywhere(masked))
    TASKS["novels"] = TASKS["text"]._replace(objectives=("gpt", "bert"))


def config_of(kind: str, start: Path, books: Path, row: int, steps: int, scale: float, seed: int) -> tuple[Any, Any]:
    """(config, default) of a run; `scale` is of its rates."""
    peak, adam = PEAK[kind]
    default = get_config(f"model={start},task=text,method=full")
    default.optimizer = optimizer.get("adamw")
    fields = optimizer.COMMON | dict(name="muon", learning_rate=scale * adam, kernel_rate=peak / adam)
    config = default.copy_and_resolve_references()
    config.optimizer = type(config)(fields | dict(schedule="cosine", warmup=min(200, steps // 10)))
    config.update_from_flattened_dict(
        {
            "seed": seed, "steps": steps, "batch_size": BATCH_TOKENS // row, "eval_every": 250, "log_every": 50,
            "eval_batch_size": max(4096 // row, 1), "task.name": "novels", "task.objective": kind,
            "task.data": str(books), "task.validation_files": "held-*", "task.max_length": row, "task.max_eval_rows": 1,
        }
    )  # fmt: skip
    if kind == "bert":
        config.task.mask_rate = MASKED
    return config, default


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, resuming from the workdir, evaluates on all held-out books, and exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(MODELS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--row", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    register()
    start, books, context = args.workdir / "start", args.workdir / "books", MODELS[args.kind].max_positions
    linked(args.data, books)
    if not start.exists():
        make_start(args.kind, books, start, args.seed)

    long = max(args.steps // 10, 1)
    run = lambda row, steps, scale: config_of(args.kind, start, books, row, steps, scale, args.seed)  # noqa: E731
    train(*run(args.row, args.steps - long, 1.0), args.workdir / "short")
    config, default = run(context, long, LOW)
    config.warm_start, config.optimizer.warmup = str(args.workdir / "short"), 0
    train(config, default, args.workdir / "long")

    _, parts = load_run(args.workdir / "long")
    if args.output:
        params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), parts.variables["params"])
        ftjax.save(args.output, parts.model, params, like=start)
        config.model.path = str(args.output)
        parts = build(Fields(config))  # as saved, in bf16
    config.task.max_eval_rows = 0
    print(json.dumps(evaluate_split(Fields(config), parts, "validation")[0]), flush=True)


if __name__ == "__main__":
    main()
