"""Analytic FLOPs of one train step, knowing what is frozen (XLA's own count sees a scanned layer once)."""

import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftjax import tree
from ftjax.nn.config import Config

PEAK = {  # dense bf16 FLOP/s per device, from the vendors' data sheets
    "H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12,
    "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5p": 459e12, "TPU v6": 918e12, "TPU7x": 2307e12,
}  # fmt: skip


def step_flops(cfg: Config, labels: Any, variables: Any, batch: int, length: int, scored: int = 0) -> float:
    """Multiply-adds times two of forward and backward, for `[batch, length]` tokens with `scored` logits rows each.

    Every kernel costs 2 in out per vector forward, as much for its input's gradient where something below it trains,
    and as much again where it trains itself. The backward pass is counted down to the first layer or not at all, as a
    scan runs it. Elementwise work is not counted.
    """
    tokens = batch * length
    label = tree.flatten(labels)
    deep = any(name != tree.FREEZE and re.search(r"/(layers|embed)/", path) for path, name in label.items())
    total = 0.0
    for path, leaf in tree.flatten(variables).items():
        trains = label[path] != tree.FREEZE
        product = 2.0 * float(np.prod(leaf.shape))
        rows = 1 if re.search("/(classifier|pooler)/", path) else scored
        vectors = tokens if "/layers/" in path else batch * rows
        if path.endswith("kernel"):
            total += vectors * product * (1 + deep + trains)
        elif path.startswith("adapters/") and leaf.ndim >= 2 and trains:
            total += vectors * product * 3
    if scored and cfg.tied_head:
        trains = label["params/embed/tokens/embedding"] != tree.FREEZE
        total += batch * scored * 2.0 * cfg.vocab_size * cfg.hidden_size * (1 + deep + trains)
    attention = 4.0 * tokens * length * cfg.num_heads * cfg.head_dim * cfg.num_layers
    return total + attention * (1 + 2 * deep)


def peak_flops(devices: int) -> float:
    """Peak FLOP/s of so many devices: by data sheet, or, for another kind (a CPU), of a measured fp32 product."""
    kind = jax.devices()[0].device_kind
    for name, rate in PEAK.items():
        if re.search(rf"\b{name}\b", kind, re.IGNORECASE):
            return rate * devices
    x = jnp.ones((1024, 1024), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        product(x, x).block_until_ready()
        times.append(time.perf_counter() - started)
    return 2.0 * 1024**3 / min(times)
