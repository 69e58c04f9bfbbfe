"""Pretrains the two small models that the project ships, from public-domain novels.

    python -m experiments.pretrain_nano gpt  --data=DIR --workdir=runs/nano-gpt
    python -m experiments.pretrain_nano bert --data=DIR --workdir=runs/nano-bert

`--data` is a folder of `*.txt` or `*.txt.gz` books; every tenth book by name is held out. The tokenizer is learned on
the training books. Rows are random crops: `--row` tokens at random position offsets, so that all 512 positions train,
then 512 tokens for the last tenth of the steps. Kernels of the layers train with Muon (Jordan et al. 2024), the rest
with AdamW. The run resumes from its workdir; `--output` receives the Hugging Face directory.
Recipe, curve and figures of the shipped files: `ftjax/assets/README.md`.
"""

import argparse
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer

import ftjax
from ftjax import hub, tree
from ftjax.data.tokenizer import read, train_tokenizer
from ftjax.files import whole
from ftjax.models.transformer import Transformer, init
from ftjax.nn.config import Config
from ftjax.objectives.lm import causal_lm
from ftjax.objectives.mlm import masked_lm
from ftjax.train.step import init_state, make_step

CONTEXT = 512
BATCH_TOKENS = 2048
PEAK = {
    "gpt": (0.02, 4e-3),
    "bert": (0.004, 2e-3),
}  # rates of Muon and of AdamW; at GPT's, BERT learns word counts only
MASKED = 0.3  # of the tokens in training (Wettig et al. 2022), for more labels a step; 0.15 in evaluation
SHAPE: dict[str, Any] = dict(
    hidden_size=160, num_layers=4, num_heads=5, num_kv_heads=5, head_dim=32, ffn_size=640, max_positions=CONTEXT
)
GPT = Config(vocab_size=1024, **SHAPE, scan_unroll=-1)
BERT = Config(
    vocab_size=2048, **SHAPE, causal=False, norm_order="post", embed_norm=True, activation="gelu", norm_eps=1e-12,
    token_types=2, head="mlm", head_bias=True, family="bert", scan_unroll=-1, pooling="first",
)  # fmt: skip


def books(folder: Path) -> tuple[list[Path], list[Path]]:
    """(training books, held-out books)."""
    files = sorted([*folder.glob("*.txt"), *folder.glob("*.txt.gz")])
    return [f for i, f in enumerate(files) if i % 10 != 5], [f for i, f in enumerate(files) if i % 10 == 5]


def encode(tokenizer: Tokenizer, texts: list[str], end: int | None) -> np.ndarray:
    """One token stream; books separated by `end` where there is one."""
    pieces = []
    for text in texts:
        paragraphs = text.split("\n\n")  # encoded in pieces, for the speed of the batch interface
        ids = [
            i for e in tokenizer.encode_batch([p + "\n\n" for p in paragraphs], add_special_tokens=False) for i in e.ids
        ]
        pieces.append(np.asarray(ids + ([] if end is None else [end]), np.int32))
    return np.concatenate(pieces)


def rows(stream: np.ndarray, starts: np.ndarray, length: int, offsets: np.ndarray) -> dict[str, np.ndarray]:
    """A batch of crops `[B, length]` with every next token labelled."""
    ids = stream[starts[:, None] + np.arange(length + 1)]
    steps = np.broadcast_to(np.arange(length, dtype=np.int32), (len(starts), length))
    return dict(
        input_ids=ids[:, :-1], segment_ids=np.ones_like(steps), position_ids=steps + offsets[:, None],
        label_positions=steps, labels=ids[:, 1:],
    )  # fmt: skip


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


def optimizer(steps: int, muon_rate: float, adam_rate: float) -> optax.GradientTransformation:
    """Muon on the layers' kernels, AdamW on the rest; linear warm-up, then linear to zero."""

    def schedule(peak: float) -> optax.Schedule:
        return optax.warmup_cosine_decay_schedule(0.0, peak, min(200, steps // 10), steps, 0.02 * peak)

    def kind(path: str, leaf: jax.Array) -> str:
        return "muon" if path.startswith("params/layers/") and path.endswith("kernel") else "adam"

    dims = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    muon = optax.contrib.scale_by_muon(weight_dimension_numbers=lambda p: jax.tree.map(lambda _: dims, p))
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.multi_transform(
            {
                "muon": optax.chain(
                    muon, optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(schedule(muon_rate))
                ),
                "adam": optax.adamw(schedule(adam_rate), b1=0.9, b2=0.98, weight_decay=0.01),
            },
            lambda params: tree.map_paths(kind, params),
        ),
    )


def evaluate(loss, params, stream: np.ndarray, tokenizer: Tokenizer, causal: bool, tokens: int) -> dict[str, float]:
    """Held-out figures over the first `tokens` of the stream, in rows of the whole context.

    Causal: bits per byte, each window predicting all its tokens but the very first of the stream from what precedes it
    in the window. Masked: nats per masked token, and accuracy.
    """
    evaluate_batch = jax.jit(lambda params, batch: loss({"params": params}, batch, None))
    starts = np.arange(0, min(len(stream), tokens) - CONTEXT - 1, CONTEXT)
    starts = starts[: len(starts) // 8 * 8]
    nll = weight = correct = 0.0
    for i in range(0, len(starts), 8):
        sums = evaluate_batch(params, rows(stream, starts[i : i + 8], CONTEXT, np.zeros(8, np.int32)))
        nll += float(sums.metrics["nll"][0])
        correct += float(sums.metrics["token_accuracy"][0])
        weight += float(sums.weight)
    result = {"nats_per_token": nll / weight, "accuracy": correct / weight}
    if causal:
        predicted = stream[1 : len(starts) * CONTEXT + 1]
        size = len(tokenizer.decode(predicted.tolist(), skip_special_tokens=False).encode())
        result["bits_per_byte"] = nll / math.log(2) / size
    return result


def main() -> None:
    """Trains, resuming from the workdir, and exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["gpt", "bert"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--row", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    causal = args.kind == "gpt"
    cfg = GPT if causal else BERT
    model = Transformer(cfg)

    files, held_files = books(args.data)
    folder = args.workdir / "tokenizer"
    if not folder.exists():
        learned = train_tokenizer("byte_bpe" if causal else "wordpiece", files, cfg.vocab_size, lowercase=not causal)
        learned.model_max_length = CONTEXT
        with whole(folder) as aside:
            learned.save_pretrained(aside)
    tokenizer: Tokenizer = hub.tokenizer(folder).backend_tokenizer
    end = tokenizer.token_to_id("<|endoftext|>") if causal else None
    train, held = (encode(tokenizer, [read(file) for file in some], end) for some in (files, held_files))
    print(f"train {len(train):,} tokens, held out {len(held):,} tokens of {len(held_files)} books", flush=True)

    special = () if causal else tuple(range(5))
    masked = lambda rate: masked_lm(model, mask_id=4, special_ids=special, rate=rate)  # noqa: E731
    objective = causal_lm(model) if causal else masked(MASKED)
    evaluated = causal_lm(model) if causal else masked(0.15)
    tx = optimizer(args.steps, *PEAK[args.kind])
    step = jax.jit(make_step(objective.loss, tx), donate_argnums=0)
    params = init(model, jax.random.key(args.seed))
    if not causal:
        params = with_neighbour_heads(params, cfg)
    state = init_state({"params": params}, tx)
    checkpoint, curve = args.workdir / "state.npz", args.workdir / "curve.jsonl"
    if checkpoint.exists():
        saved = np.load(checkpoint)
        state = tree.map_paths(lambda path, _: jnp.asarray(saved[path]), state)
    frozen = jax.tree.map(lambda _: None, state["train"])

    started, first, seen = time.time(), int(state["step"]), []
    for i in range(first, args.steps):
        length = args.row if i < 0.9 * args.steps else CONTEXT
        draw = np.random.default_rng((args.seed, i))
        count = BATCH_TOKENS // length
        offsets = draw.integers(0, CONTEXT - length + 1, count).astype(np.int32)
        batch = rows(train, draw.integers(0, len(train) - length - 1, count), length, offsets)
        state, metrics = step(state, frozen, batch, jax.random.key(args.seed))
        seen.append(metrics["loss"])
        if (i + 1) % 250 == 0 or i + 1 == args.steps:
            held_out = evaluate(evaluated.loss, state["train"]["params"], held, tokenizer, causal, 120_000)
            rate = (i + 1 - first) * BATCH_TOKENS / (time.time() - started)
            row = {"step": i + 1, "tokens": (i + 1) * BATCH_TOKENS, "loss": float(jnp.mean(jnp.stack(seen))),
                   **held_out, "tokens_per_second": rate}  # fmt: skip
            print(json.dumps(row), flush=True)
            with curve.open("a") as f:
                f.write(json.dumps(row) + "\n")
            seen = []
            aside = args.workdir / "aside.npz"
            np.savez(
                aside, allow_pickle=False, **{path: np.asarray(leaf) for path, leaf in tree.flatten(state).items()}
            )
            aside.rename(checkpoint)

    params = state["train"]["params"]
    print("all held-out books:", evaluate(evaluated.loss, params, held, tokenizer, causal, len(held)), flush=True)
    if args.output:
        ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0} if causal else {"pad_token_id": 0}
        ftjax.save(args.output, model, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), extra=ends)
        shutil.copytree(folder, args.output, dirs_exist_ok=True)
        bf16 = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
        print("as saved (bf16):", evaluate(evaluated.loss, bf16, held, tokenizer, causal, len(held)), flush=True)


if __name__ == "__main__":
    main()
