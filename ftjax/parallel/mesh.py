"""Device meshes, and where each array lives on one: ordered regex -> PartitionSpec, covering every parameter."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ftjax import tree
from ftjax.errors import UserError

log = logging.getLogger(__name__)
Tree = Any
AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))
TRIAL = "trial"  # the axis of a mesh of its own, for runs side by side
STACK = r"layers/(\d+:\d+/)?"
RULES: list[tuple[str, P]] = [
    (STACK + r"((attn|cross)/[qkv]|ffn/(up|gate))/kernel$", P(None, "fsdp", "tensor")),
    (STACK + r"((attn|cross)/[qkv]|ffn/(up|gate))/bias$", P(None, "tensor")),
    (STACK + r"((attn|cross)/o|ffn/down)/kernel$", P(None, "tensor", "fsdp")),
    (r"embed/tokens/embedding$", P("tensor", "fsdp")),
    (r"embed/(positions|types)/embedding$", P(None, "fsdp")),
    (r"(head|pooler|transform/dense)/kernel$", P("fsdp", "tensor")),
    (r"head/bias$", P("tensor")),
    (r"embed/project/kernel$", P("fsdp", "tensor")),
    (r"conv/kernel$", P(None, "fsdp", "tensor")),
    (r"(relative/(bias/)?embedding|embed/project/bias|conv/bias)$", P()),
    (r"classifier/kernel$", P("fsdp", None)),
    (r"(norm/(scale|bias)|((attn|cross)/o|ffn/down|pooler|classifier|transform/dense)/bias)$", P()),
    (r"(^|/)adapters/", P()),  # small, and read by every device
]


def make_mesh(cfg: Any, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes data, fsdp, tensor of `cfg`'s sizes; one size may be 0, for the devices that are left.

    Args:
      devices: None for those of this machine.

    Raises:
      UserError: sizes that the devices here do not give.
    """
    sizes = [getattr(cfg, axis) for axis in AXES]
    devices = jax.devices() if devices is None else devices
    if sizes.count(0) > 1 or min(sizes) < 0:
        raise UserError(f"mesh sizes {dict(zip(AXES, sizes))}: at most one may be 0, none below")
    if 0 in sizes:
        sizes[sizes.index(0)] = len(devices) // max(math.prod(s for s in sizes if s), 1)
    count = math.prod(sizes)
    if not 0 < count <= len(devices):
        raise UserError(f"mesh {'x'.join(map(str, sizes))} needs {count} devices, the machine has {len(devices)}")
    types = (AxisType.Auto,) * 3
    try:
        return jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=devices[:count])
    except NotImplementedError:
        shape = "x".join(map(str, sizes))
        log.warning("mesh %s: no axes of the machine's torus make these sizes; one is split, at its links' cost", shape)
        placed = mesh_utils.create_device_mesh(sizes, devices[:count], allow_split_physical_axes=True)
        return Mesh(placed, AXES, axis_types=types)


def trial_mesh(count: int) -> Mesh:
    """A mesh of the axis `trial` over as many devices of this process as share `count` trials evenly."""
    devices = jax.local_devices()
    size = max(n for n in range(1, len(devices) + 1) if count % n == 0)
    return Mesh(np.asarray(devices[:size]), (TRIAL,), axis_types=(AxisType.Auto,))


def spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """Where a leaf lives. An axis that does not divide its dimension is left out (the leaf is whole along it).

    Raises:
      ValueError: a parameter that no rule covers.
    """
    if "params/" not in path and "adapters/" not in path:
        return P()  # counters
    try:
        wanted = tree.first_match(RULES, path)
    except KeyError:
        raise ValueError(f"no sharding rule covers {path}") from None
    if len(wanted) > len(shape):
        return P()  # factored moments
    axes = [a if a and shape[i] % mesh.shape[a] == 0 else None for i, a in enumerate(wanted)]
    return P(*axes)


def shardings(values: Tree, mesh: Mesh) -> Tree:
    """A NamedSharding per leaf of a state or of variables."""
    return tree.map_paths(lambda path, x: NamedSharding(mesh, spec(path, x.shape, mesh)), values)


def place(values: Tree, mesh: Mesh) -> Tree:
    """The leaves on their devices."""
    return jax.device_put(values, shardings(values, mesh))


def rows_multiple(mesh: Mesh) -> int:
    """Rows of a batch come in multiples of this."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def rows_here(mesh: Mesh, rows: int) -> slice:
    """The rows of a batch of so many that this process's devices hold."""
    held = NamedSharding(mesh, BATCH).addressable_devices_indices_map((rows,)).values()
    ends = [part.indices(rows)[:2] for [part] in held]  # type: ignore[misc]
    return slice(min(start for start, _ in ends), max(stop for _, stop in ends))


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch with its rows spread over data and fsdp; each process gives those of `rows_here`."""
    sharding = NamedSharding(mesh, BATCH)
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), sharding)
    return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in batch.items()}
