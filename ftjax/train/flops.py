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


def step_flops(
    cfg: Config, labels: Any, variables: Any, adapters: Any, batch: int, length: int, scored: int = 0
) -> float:
    """Multiply-adds times two of forward and backward, for `[batch, length]` tokens with `scored` logits rows each.

    Every kernel costs 2 in out per vector forward, as much for its input's gradient where something below it trains,
    and as much again where it trains itself. The backward pass is counted down to the first row of the stack in which
    something trains, as a scan over cut rows runs it. Elementwise work, and what makes site form of the trained form
    (it does not grow with the tokens), is not counted.

    Args:
      labels, variables: as the step sees them, adapters in trained form.
      adapters: in site form (arrays or abstract).
    """
    tokens, rows = batch * length, cfg.num_layers
    label = tree.flatten(labels)
    trained = [path for path, name in label.items() if name != tree.FREEZE]
    lowest = min((_lowest(path, rows) for path in trained), default=rows)

    def below(path: str) -> float:
        """The share of a stacked leaf's rows that the backward pass runs through; of others, whether it does."""
        if "/layers/" not in path:
            return float(lowest < rows)
        first, end = _span(path, rows)
        return max(0, end - max(first, lowest)) / (end - first)

    def vectors(path: str) -> int:
        """How many vectors a matrix multiplies: tokens, scored positions, or rows of the batch."""
        if re.match("(layers|embed)/", path):
            return tokens
        return batch * (1 if re.match("(classifier|pooler)/", path) else scored)

    total = 0.0
    for path, leaf in tree.flatten(variables["params"]).items():
        if path.endswith("kernel"):
            trains = label[f"params/{path}"] != tree.FREEZE
            total += vectors(path) * 2.0 * float(np.prod(leaf.shape)) * (1 + below(f"/{path}") + trains)
    for path, leaf in tree.flatten(adapters).items():
        if re.search(PRODUCTS, path) and path != "embed/lora/a":  # which is looked up
            first = path.endswith(("/a", "/down/kernel"))  # of two, whose input is the site's own
            total += vectors(path) * 2.0 * float(np.prod(leaf.shape)) * (2 + (below(f"/{path}") if first else 1))
        elif re.search(ATTENDED, path):  # [L, P, K, hd], by every head
            total += tokens * 2.0 * float(np.prod(leaf.shape)) * (cfg.num_heads / leaf.shape[-2]) * 3
    if scored and cfg.tied_head:
        trains = label["params/embed/tokens/embedding"] != tree.FREEZE
        total += batch * scored * 2.0 * cfg.vocab_size * cfg.hidden_size * (1 + (lowest < rows) + trains)
    attention = 4.0 * tokens * length * cfg.num_heads * cfg.head_dim
    return total + attention * (rows + 2 * (rows - max(lowest, 0)))


PRODUCTS = r"/lora/[ab]$|/(down|up)/kernel$"
ATTENDED = r"/(prefix|llama_adapter)/[kv]$"


def _span(path: str, rows: int) -> tuple[int, int]:
    match = re.search(r"/layers/(\d+):(\d+)/", path)
    return (int(match[1]), int(match[2])) if match else (0, rows)


def _lowest(path: str, rows: int) -> int:
    """The lowest row of the stack that a gradient for this leaf runs back through; `rows`: none."""
    if "/layers/" in path:
        return _span(path, rows)[0]
    return -1 if re.search(r"/(embed|prefix)/", path) else rows


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
