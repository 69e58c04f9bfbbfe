"""Analytic FLOPs of one train step, knowing what is frozen (XLA's own count sees a scanned layer once)."""

import functools
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftjax import tree
from ftjax.nn.config import Config
from ftjax.nn.layers import layered, span

PEAK = {  # dense bf16 FLOP/s of a device, by JAX's names, from the vendors' data sheets
    "H100": 989e12, "H200": 989e12, "GH200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5": 459e12, "TPU v5p": 459e12,
    "TPU v6 lite": 918e12, "TPU v6e": 918e12, "TPU7x": 2307e12 / 2,  # a chip is two devices
}  # fmt: skip


def step_flops(
    cfg: Config,
    labels: Any,
    variables: Any,
    adapters: Any,
    batch: int,
    length: int,
    scored: int = 0,
    source: int = 0,
    *,
    teacher: Config | None = None,
) -> float:
    """Multiply-adds times two of forward and backward, for `[batch, length]` tokens with `scored` logits rows each,
    and `[batch, source]` tokens of an encoder.

    Every kernel costs 2 in out per vector forward, as much for its input's gradient where something below it trains,
    and as much again where it trains itself. The backward pass is counted down to the first row of the stack in which
    something trains, as a scan over cut rows runs it. Elementwise work, and what makes site form of the trained form
    (it does not grow with the tokens), is not counted; nor are logits at places that the objective itself draws (masked
    words: `scored` is 0 there). Span corruption is counted as the decoder's pass over the whole text. A generator
    beside the model (`ftjax.kinds.rtd`) counts as trained.

    Args:
      labels, variables: as the step sees them, adapters in trained form.
      adapters: in site form (arrays or abstract).
      teacher: a model whose forward pass, adapters apart, is in the step; its variables are under `teacher`.
    """
    encoder = cfg.encoder
    above = encoder.rows if encoder else 0  # depths: an encoder's rows, then the decoder's
    end, label = above + cfg.rows, tree.flatten(labels)
    trained = [path.partition("/")[2] for path, name in label.items() if name != tree.FREEZE]

    def depths(path: str) -> tuple[int, int]:
        """First and last depth of a layer's leaf."""
        if path.startswith("encoder/"):
            return span(path, above)
        first, last = span(path, cfg.rows)
        return above + first, above + last

    def lowest_of(path: str) -> int:
        """How deep a gradient for this leaf runs back; `end`: nowhere."""
        if layered(path):
            return depths(path)[0]
        if path.startswith("encoder/final_norm/"):
            return above - 1
        return -1 if re.search(r"(^|/)(embed|prefix|relative|conv)/", path) else end

    lowest = min(map(lowest_of, trained), default=end)

    def below(path: str) -> float:
        """The share of a layer's leaf that the gradient of its input is needed for; of others, whether it is."""
        if re.search(r"/cross/[kv]/", path):
            return float(lowest < above)
        if not layered(path):
            return float(lowest < end)
        first, last = depths(path)
        return max(0, last - max(first, lowest)) / (last - first)

    def vectors(path: str) -> int:
        """How many vectors a matrix multiplies: tokens, scored positions, or rows of the batch."""
        if path.startswith("encoder/") or re.search(r"/cross/[kv]/", path):
            return batch * source
        if cfg.positions == "disentangled" and re.search("/attn/[qk]/", path):  # the table of distances too
            return batch * length + 2 * cfg.relative_buckets
        if re.match("(generator/)?(layers|embed|conv)/", path) or (cfg.head == "rtd" and not path.startswith("gen")):
            return batch * length
        return batch * (scored or 1)

    def products(path: str, leaf: Any, passes: float) -> float:
        repeats = cfg.num_layers // cfg.rows if layered(path) else 1
        return repeats * vectors(path) * 2.0 * float(np.prod(leaf.shape)) * passes

    total = 0.0
    if teacher is not None:
        total += step_flops(teacher, labels["teacher"], variables["teacher"], {}, batch, length, scored, source)
    for path, leaf in tree.flatten(variables["params"]).items():
        if path.endswith("kernel"):
            total += products(path, leaf, 1 + below(path) + (label[f"params/{path}"] != tree.FREEZE))
    for path, leaf in tree.flatten(adapters).items():
        if re.search(PRODUCTS, path) and path != "embed/lora/a":  # which is looked up
            first = path.endswith(("/a", "/down/kernel"))  # of two, whose input is the site's own
            total += products(path, leaf, 2 + (below(path) if first else 1))
        elif re.search(ATTENDED, path):  # [L, P, K, hd], by every head
            queries = batch * (source if path.startswith("encoder/") else length)
            total += queries * 2.0 * float(np.prod(leaf.shape)) * (cfg.num_heads / leaf.shape[-2]) * 3
    if scored and cfg.head_is_embedding:
        trains = label["params/embed/tokens/embedding"] != tree.FREEZE
        total += batch * scored * 2.0 * cfg.vocab_size * cfg.embed_width * (1 + (lowest < end) + trains)

    def attention(one: Config, queries: int, keys: int, start: int, stop: int) -> float:
        layers = one.num_layers // one.rows
        work = 4.0 * batch * queries * keys * one.num_heads * one.head_dim
        return layers * work * (stop - start + 2 * max(0, stop - max(lowest, start)))

    if generator := variables["params"].get("generator"):
        layers, _, width = generator["layers"]["attn"]["q"]["kernel"].shape
        total += 3 * 4.0 * batch * length * length * layers * width
    distances = 2 * cfg.relative_buckets if cfg.positions == "disentangled" else 0  # as keys: two products too
    total += attention(cfg, length, length + source + distances, above, end)
    return total + (attention(encoder, source, source, 0, above) if encoder else 0.0)


PRODUCTS = r"/lora/[ab]$|/(down|up)/kernel$"
ATTENDED = r"/(prefix|llama_adapter)/[kv]$"


def peak_of(kind: str) -> float | None:
    """Peak FLOP/s of a device of a kind, as JAX names it; None where no data sheet is known."""
    return next((rate for name, rate in PEAK.items() if re.search(rf"\b{name}\b", kind, re.IGNORECASE)), None)


@functools.cache  # measured once a process
def peak_flops(devices: int) -> float | None:
    """Peak FLOP/s of so many devices: by data sheet, None where none is known, or, of a CPU, of a measured fp32
    product: all that its devices share."""
    if jax.default_backend() != "cpu":
        rate = peak_of(jax.devices()[0].device_kind)
        return rate and rate * devices
    x = jnp.ones((1024, 1024), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        product(x, x).block_until_ready()
        times.append(time.perf_counter() - started)
    return 2.0 * 1024**3 / min(times)
