"""What a run says before it starts, and the facts about machine and code that its result carries."""

import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ftjax import tree
from ftjax.parallel.mesh import spec
from ftjax.train.build import Data, Parts


def count_by_label(parts: Parts) -> Counter:
    """Parameters by label; an adapter's fixed leaves (scales, rates) are not parameters of the model."""
    labels, counts = tree.flatten(parts.labels), Counter()
    for path, leaf in tree.flatten(parts.variables).items():
        if labels[path] != tree.FREEZE or path.startswith("params/"):
            counts[labels[path]] += leaf.size
    return counts


def trainable(parts: Parts) -> int:
    """Parameters that train."""
    return sum(n for label, n in count_by_label(parts).items() if label != tree.FREEZE)


def start_report(parts: Parts, data: Data, held: Data, mesh: Mesh, path: str, steps: int, flops: float) -> str:
    """Model, parameters by group, sites, mesh, data and the work of a step, as lines."""
    counts, cfg = count_by_label(parts), parts.model.cfg
    total, training = sum(counts.values()), trainable(parts)
    lines = [
        f"model    {path}: {cfg.num_layers} layers of {cfg.hidden_size}, {total:,} parameters",
        f"trains   {training:,} ({100 * training / total:.3g}%): "
        + ", ".join(f"{label} {n:,}" for label, n in sorted(counts.items()) if label != tree.FREEZE),
    ]
    if cfg.head_is_embedding:
        lines.append("tied     params/embed/tokens/embedding is also the head's kernel")
    if parts.fresh:
        lines.append(f"new      not in the checkpoint, newly initialised: {', '.join(parts.fresh)}")
    objects = lambda x: not isinstance(x, dict)  # noqa: E731
    adapters = jax.tree_util.tree_leaves_with_path(parts.variables["adapters"], is_leaf=objects)
    adapted = sorted({tree.path_name(path[:-1]) or "the whole model" for path, _ in adapters})
    if adapted:
        lines.append(f"sites    {', '.join(adapted)}")
    whole = [p for p, x in tree.flatten(parts.variables).items() if x.ndim >= 2 and not any(spec(p, x.shape, mesh))]
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    lines.append(f"mesh     {shape} on {mesh.devices.flat[0].device_kind}")
    if mesh.size > 1 and whole:
        lines.append(f"whole    on every device: {', '.join(whole)}")
    loader, encoded = data.loader, data.encoded
    shapes = ", ".join("x".join(map(str, s)) for s in loader.shapes)
    each, fill = len(encoded) / loader.steps_per_epoch, f"{100 * loader.fill:.0f}% of the slots filled"
    lines.append(
        f"data     {len(encoded):,} examples, {each:.3g} a step, batches {shapes}, {fill}{_lost(data)}{_parts(data)}"
    )
    lines.append(f"held out {len(held.encoded):,} examples{_lost(held)}{_parts(held)}")
    lines.append(f"work     {steps:,} steps, {flops / 1e9:.3g} GFLOP each at the largest shape")
    return "\n".join(lines)


def gradient_report(train: Any, has_gradient: np.ndarray) -> str:
    """The trainable leaves that the first step gave no gradient, each a line's worth: dead, or waiting for another."""
    without = [path for path, has in zip(tree.flatten(train), has_gradient.tolist()) if not has]
    if not without:
        return "step 1   every trainable leaf has a gradient"
    return f"step 1   no gradient yet (waits for one that starts at zero, or is dead): {', '.join(without)}"


def _lost(data: Data) -> str:
    counts = {
        "dropped": data.encoded.dropped,
        "truncated": data.encoded.truncated,
        "bad rows left out": len(data.bad.messages),
    }
    return "".join(f", {count:,} {what}" for what, count in counts.items() if count)


def _parts(data: Data) -> str:
    counts = Counter(getattr(data.examples[row], "part", "") for row in data.encoded.rows.tolist())
    return "" if "" in counts else "; of " + ", ".join(f"{part} {count:,}" for part, count in sorted(counts.items()))


def peak_memory_bytes() -> int:
    """Peak memory of the first device, or, on a CPU, of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def commit() -> str | None:
    """The commit of the checkout that this package runs from, `+` where it has changes; None outside of one."""

    def git(*args: str) -> str:
        root = Path(__file__).parents[2]
        return subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def numbers(values: Any) -> dict[str, float]:
    """Host floats of a dict of scalars."""
    return {name: float(value) for name, value in jax.device_get(values).items()}
