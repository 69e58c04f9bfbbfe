"""What `experiments.speed generate` and `load` measure, each in a process of its own."""

import argparse
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257
    },
    "llama": {
        "model_type": "llama", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_key_value_heads": 4, "intermediate_size": 2048, "vocab_size": 32000, "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
SEARCHES: dict[str, dict[str, Any]] = {"greedy": {}, "beam 10": {"num_beams": 10}}
SIDES = [f"{side} {shape} {search}" for shape in SHAPES for search in SEARCHES for side in ("transformers", "ftjax")]
BILLION = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 2048,
    "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "intermediate_size": 8192, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip


def prepare(folder: Path, args: argparse.Namespace) -> None:
    """Models of random weights, as Hugging Face directories."""
    if args.command == "load":
        return _billion(folder)
    import torch
    import transformers as hf

    torch.manual_seed(args.seed)
    for name, fields in SHAPES.items():
        config = hf.AutoConfig.for_model(**fields)
        hf.AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    return None


def _billion(folder: Path) -> None:
    """A Llama of 1.2 billion parameters in bf16, in shards of four layers."""
    import ml_dtypes
    from safetensors.numpy import save_file

    base = np.random.default_rng(0).standard_normal(2**20).astype(ml_dtypes.bfloat16)
    width, kv, ffn = 2048, 512, 8192
    kinds = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (kv, width), "self_attn.v_proj": (kv, width)}
    kinds |= {"self_attn.o_proj": (width, width), "mlp.gate_proj": (ffn, width), "mlp.up_proj": (ffn, width)}
    kinds |= {"mlp.down_proj": (width, ffn), "input_layernorm": (width,), "post_attention_layernorm": (width,)}
    shards = [{"model.embed_tokens.weight": (BILLION["vocab_size"], width), "model.norm.weight": (width,)}]
    for first in range(0, BILLION["num_hidden_layers"], 4):
        rows = range(first, first + 4)
        shards.append({f"model.layers.{i}.{name}.weight": shape for i in rows for name, shape in kinds.items()})
    owner = {}
    for n, shard in enumerate(shards):
        file = f"model-{n}.safetensors"
        save_file({name: np.resize(base, shape) for name, shape in shard.items()}, folder / file)
        owner |= dict.fromkeys(shard, file)
    (folder / "config.json").write_text(json.dumps(BILLION))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": owner}))


def generate(folder: Path, name: str, args: argparse.Namespace) -> dict[str, float]:
    """Tokens per second of one side, the best of `rounds` after a warm-up: of transformers, which compiles nothing, by
    two tokens."""
    side, shape, search = name.split(" ", 2)
    ids = np.random.default_rng(args.seed).integers(3, 30000, (args.batch_size, args.prompt))
    run = (_transformers if side == "transformers" else _ftjax)(folder / shape, ids, SEARCHES[search])

    def timed(new: int) -> float:
        started = time.perf_counter()
        run(new)
        return time.perf_counter() - started

    first = timed(2 if side == "transformers" else args.new)
    times = [timed(args.new) for _ in range(args.rounds)]
    cfg = json.loads((folder / shape / "config.json").read_text())
    rows = args.batch_size * SEARCHES[search].get("num_beams", 1)
    weights = sum(file.stat().st_size for file in (folder / shape).glob("*.safetensors"))
    return {
        "tokens/s": ids.shape[0] * args.new / min(times),
        "first s": max(first - min(times), 0.0),
        "step bytes": weights + rows * (args.prompt + args.new / 2) * _cached(cfg),
        "steps/s": args.new / min(times),
        "bandwidth": bandwidth(),
    }


def _cached(cfg: dict[str, Any]) -> int:
    """Bytes of one token's keys and values, fp32."""
    if cfg["model_type"] == "gpt2":
        return 8 * cfg["n_layer"] * cfg["n_embd"]
    head_dim = cfg["hidden_size"] // cfg["num_attention_heads"]
    return 8 * cfg["num_hidden_layers"] * cfg["num_key_value_heads"] * head_dim


def _transformers(folder: Path, ids: np.ndarray, search: dict[str, Any]) -> Any:
    import os

    import torch
    import transformers as hf

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model: Any = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    model.generation_config.eos_token_id = None
    tokens = torch.from_numpy(ids)
    options = dict(attention_mask=torch.ones_like(tokens), do_sample=False, pad_token_id=0, **search)
    return lambda new: model.generate(tokens, max_new_tokens=new, **options)


def _ftjax(folder: Path, ids: np.ndarray, search: dict[str, Any]) -> Any:
    import ftjax
    from ftjax.decode.generate import continuations

    model, params = ftjax.load(folder, scan_unroll=-1)
    return lambda new: continuations(model, params, ids, max_new_tokens=new, **search)


def bandwidth() -> float:
    """Bytes per second of reading memory, by a sum over half a gigabyte with all cores."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(2**27)
    read = jax.jit(jnp.sum)
    read(x).block_until_ready()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        read(x).block_until_ready()
        times.append(time.perf_counter() - started)
    return x.nbytes / min(times)


def load(folder: Path, name: str, args: argparse.Namespace) -> dict[str, float]:
    """Seconds, and the most anonymous memory of the process while `ftjax.load` runs."""
    import jax

    import ftjax

    jax.devices()
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            lines = Path("/proc/self/status").read_text().splitlines()
            peak.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")))
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    _, params = ftjax.load(folder)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    return {"bytes": size, "peak anonymous": max(peak), "seconds": seconds}
