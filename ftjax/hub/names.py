"""A family's table of weight names, applied in both directions."""

import functools
import logging
import math
import re
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from ftjax import tree
from ftjax.errors import UserError
from ftjax.hub.family import Family, Weight
from ftjax.hub.files import DTYPES, Stored
from ftjax.models.transformer import Transformer, abstract
from ftjax.nn.config import Config
from ftjax.nn.layers import layered

log = logging.getLogger(__name__)
HEADS = ("head", "transform", "classifier", "pooler")  # parts that a file of another head lacks
PIECE = 2**26  # bytes read at once
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def normalise(family: Family, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors under the table's names: with the prefix, endings of today, no buffers."""
    bare = family.prefix if not any(name.startswith(family.prefix) for name in tensors) else ""
    above = {weight.name for head in family.heads.values() for weight in head.weights.values()} | set(family.copies)
    out = {}
    for name, tensor in tensors.items():
        for old, new in family.renamed.items():
            name = name.replace(old, new) if name.endswith(old) else name
        if not re.fullmatch(family.ignored, name.removeprefix(family.prefix)):
            out[name if name in above else bare + name] = tensor
    return out


def _shapes(cfg: Config) -> dict[str, tuple[int, ...]]:
    return {path: x.shape for path, x in tree.flatten(abstract(Transformer(cfg))).items()}


def _rows(path: str, weight: Weight, shape: tuple[int, ...]) -> tuple[list[str], tuple[int, ...]]:
    """The names of a parameter of ours, one a layer, and the shape that each has in a file."""
    layers, row = (range(weight.first, shape[0]), shape[1:]) if layered(path) else (range(1), shape)
    row = (*row[:-1], row[-1] * weight.parts)
    row = (1, *row) if weight.lead else row[::-1] if weight.transpose else row
    return [weight.name.format(i=i) for i in layers], row


def listing(names: list[str]) -> str:
    """Names joined by commas, those that differ only in the layer as one."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_LAYER.sub("{}", name, count=1), []).append(name)
    return ", ".join(
        same[0] if len(same) == 1 else key.replace("{}", "{" + ",".join(_LAYER.findall(n)[0] for n in same) + "}")
        for key, same in groups.items()
    )


def lacking(family: Family, model: Transformer, tensors: Collection[str], fresh_head: bool) -> set[str]:
    """The parameters of the parts of a head of which a file with these tensors holds nothing: of another head than the
    file's (`fresh_head`) all of them, else those that no file has a place for."""
    table = family.places(model.cfg)
    parts = {path: part for path in _shapes(model.cfg) if (part := path.split("/")[0]) in HEADS}
    held = {part for path, part in parts.items() if path in table and table[path].name in tensors}
    return {path for path, part in parts.items() if part not in held and (fresh_head or path not in table)}


def read(
    family: Family, model: Transformer, tensors: Mapping[str, Stored], *, dtype: Any, fresh_head: bool, seed: int,
    sharding: Callable[[str, tuple[int, ...]], Sharding] | None = None, told: list[str] | None = None,
) -> Any:  # fmt: skip
    """The parameters of `model` from normalised `tensors`, layers stacked `[L, ...]`.

    Args:
      dtype: of the result; None for the file's own (fp16 becomes fp32).
      sharding: (path, shape) -> where a parameter lives, each device reading its own part; None for jax's choice.
      fresh_head: a part of the head that the file lacks entirely is initialised from `seed`.
      told: takes the paths of what is initialised so, which are logged otherwise.
    Raises:
      UserError: in one line, every tensor that is missing, unexpected, of a wrong shape or a dtype without gradients.
    """
    shapes = _shapes(model.cfg)
    table = family.places(model.cfg)
    places = {p: (table[p], *_rows(p, table[p], s)) for p, s in shapes.items() if p in table}
    fresh = lacking(family, model, tensors, fresh_head)

    wanted = {name: row for path, (_, names, row) in places.items() if path not in fresh for name in names}
    of_heads = {weight.name for head in family.heads.values() for weight in head.weights.values()}
    others = {n for n in tensors if re.fullmatch(family.others, n.removeprefix(family.prefix))}
    unused = of_heads | set(family.copies) | others
    problems = {
        "missing": [n for n in wanted if n not in tensors],
        "unexpected": [n for n in tensors if n not in wanted and n not in unused],
        "of a wrong shape": [
            f"{n} {list(tensors[n].shape)} (config.json says {list(row)})"
            for n, row in wanted.items()
            if n in tensors and tensors[n].shape != row
        ],
        f"without a place in a {family.model_type} checkpoint": [p for p in shapes if p not in {*places, *fresh}],
        "not fp32, fp16 or bf16": [n for n in wanted if n in tensors and tensors[n].dtype not in DTYPES],
        "no copy of its tied weight": [
            n
            for n, of in family.copies.items()
            if {n, of} <= tensors.keys() and n not in wanted and (model.cfg.tied_head or n not in of_heads)
            if not _equal(tensors[n], tensors[of])
        ],
    }
    if any(problems.values()):
        raise UserError("; ".join(f"{what}: {listing(names)}" for what, names in problems.items() if names))
    left = [n for n in tensors if n in unused and n not in wanted and n not in family.copies]
    if left:
        log.info("not needed by head=%s, left out: %s", model.cfg.head, ", ".join(left))
    if told is not None:
        told += sorted(fresh)
    elif fresh:
        log.warning("not in the checkpoint, newly initialised (seed %d): %s", seed, ", ".join(sorted(fresh)))

    params = {}
    embedding = tensors[table["embed/tokens/embedding"].name].dtype
    for path, shape in shapes.items():
        if path in fresh:
            new = _fresh(path, shape, model.cfg.init_std, seed).astype(dtype or _storage(embedding))
            params[path] = jax.device_put(new, sharding(path, shape)) if sharding else new
            continue
        weight, names, _ = places[path]
        rows = [tensors[n] for n in names]
        part = functools.partial(_part, rows, path, weight, shape, dtype or _storage(rows[0].dtype))
        if sharding:
            params[path] = jax.make_array_from_callback(shape, sharding(path, shape), part)
        else:
            whole = part(tuple(slice(0, size) for size in shape))
            params[path] = jax.device_put(whole, may_alias=True)  # on a CPU the array itself, and committed nowhere
    return tree.unflatten(params)


def _equal(one: Stored, other: Stored) -> bool:
    """Whether two tensors are the same, read in pieces."""
    if one.shape != other.shape or not one.shape:
        return one.shape == other.shape and np.array_equal(one.read(()), other.read(()))
    most = max(1, PIECE // (4 * math.prod(one.shape[1:])))
    pieces = [(slice(a, min(a + most, one.shape[0])),) for a in range(0, one.shape[0], most)]
    return all(np.array_equal(one.read(piece), other.read(piece)) for piece in pieces)


def _storage(dtype: str) -> Any:
    return jnp.float32 if dtype == "F16" else jnp.dtype(DTYPES[dtype])


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array that a device on this host can take as it is: XLA copies what is not aligned to 64 bytes."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _part(rows: list[Stored], path: str, weight: Weight, shape: tuple[int, ...], dtype: Any, index: Any) -> np.ndarray:
    """Those rows and columns of a parameter that `index` asks for, read in pieces: little is ever there twice."""
    index = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True))
    out = _aligned(tuple(part.stop - part.start for part in index), dtype)
    if not layered(path):
        _copy(rows[0], weight, shape, index, out)
        return out
    for i, target in zip(range(index[0].start, index[0].stop), out, strict=True):
        if i < weight.first:
            target[...] = 1
        else:
            _copy(rows[i - weight.first], weight, shape, index[1:], target)
    return out


def _copy(row: Stored, weight: Weight, shape: tuple[int, ...], index: tuple[slice, ...], target: np.ndarray) -> None:
    at = weight.part * shape[-1]
    index = (*index[:-1], slice(index[-1].start + at, index[-1].stop + at))
    if weight.transpose:
        index, target = index[::-1], target.T
    if weight.lead:
        index, target = (slice(0, 1), *index), target[None]
    width = math.prod(part.stop - part.start for part in index[1:]) * target.dtype.itemsize
    most, start = max(1, PIECE // max(width, 1)), index[0].start
    for a in range(start, index[0].stop, most):
        piece = slice(a, min(a + most, index[0].stop))
        target[piece.start - start : piece.stop - start] = row.read((piece, *index[1:]))


def _fresh(path: str, shape: tuple[int, ...], std: float, seed: int) -> jax.Array:
    leaf = path.rsplit("/", 1)[-1]
    if leaf == "kernel":
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
        return jax.random.normal(key, shape) * std
    return jnp.ones(shape) if leaf == "scale" else jnp.zeros(shape)


def write(family: Family, model: Transformer, params: Any) -> dict[str, np.ndarray]:
    """{name: tensor} of a checkpoint, with the prefix that its architecture has; inverts `read`.

    Raises:
      UserError: parameters that are missing, unexpected, of a wrong shape or without a place in this family.
    """
    shapes, table = _shapes(model.cfg), family.places(model.cfg, bare=model.cfg.head == "none")
    flat = tree.flatten(params)
    problems = {
        "missing": [p for p in shapes if p not in flat],
        "unexpected": [p for p in flat if p not in shapes],
        "of a wrong shape": [p for p in flat if p in shapes and flat[p].shape != shapes[p]],
        f"without a place in a {family.model_type} checkpoint": [p for p in shapes if p not in table],
    }
    if any(problems.values()):
        raise UserError("parameters " + "; ".join(f"{k}: {', '.join(v)}" for k, v in problems.items() if v))
    pieces: dict[str, dict[int, np.ndarray]] = {}
    for path, shape in shapes.items():
        weight, value = table[path], np.asarray(flat[path])
        for name, row in zip(_rows(path, weight, shape)[0], value[weight.first :] if layered(path) else [value]):
            pieces.setdefault(name, {})[weight.part] = row
    tensors = {}
    for path, shape in shapes.items():
        for name in _rows(path, table[path], shape)[0]:
            whole = np.concatenate([piece for _, piece in sorted(pieces[name].items())], -1)
            tensors[name] = whole.T if table[path].transpose else whole[None] if table[path].lead else whole
    return tensors
