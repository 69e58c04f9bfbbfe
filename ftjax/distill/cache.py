"""A teacher's likeliest tokens at every label of a data set, on disk: training from them needs no teacher in memory.

A folder of safetensors files of whole examples, `shard-00000.safetensors`, ..., and index.json, which says what they
are of and which are whole. Per label: `ids [K]`, `log_probs [K]` at temperature 1, and for each of the R temperatures T
of the index (1 is the first) `log_z [R]`, the log-sum-exp of logits / T, and `log_tail [R]`, the logarithm of the mass
outside K. So log p at T is (log_probs + log_z at 1) / T - log_z at T.

A log-probability x is stored to within |x| / 2048 in float16 and |x| / 256 in bfloat16. Between nano-gpt and a copy at
a mean KL of 0.6 that moved the KL of 64 stored tokens by 7e-6 and 1e-4, whatever the estimator.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from ftjax.distill.losses import TopK
from ftjax.errors import UserError
from ftjax.files import write_json

INDEX = "index.json"
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
_STORED = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32, "U16": np.uint16, "I32": np.int32}
NAMES = ("ids", "log_probs", "log_z", "log_tail")


class Entries(NamedTuple):
    """What is stored of a number of labels."""

    ids: Any  # int [..., K]
    log_probs: Any  # [..., K]
    log_z: Any  # [..., R]
    log_tail: Any  # [..., R]


class Writer:
    """Appends a data set's entries, example by example, to the cache in a folder; goes on where it was killed.

    done: how many examples are on the disk.
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, str],
        counts: np.ndarray,
        *,
        k: int,
        vocab: int,
        temperatures: Sequence[float] = (1.0,),
        dtype: str = "float16",
        shard_labels: int = 1 << 18,
    ):
        """Begins a cache, or opens one that was begun alike.

        Args:
          key: hashes of what it is made from (`teacher`, `tokenizer`, `data`: see `ftjax.distill.keys`).
          counts: labels of each example, int `[n]`.
          vocab: the teacher's vocabulary; ids are stored as they fit.
          shard_labels: a file is written once it has so many.
        Raises:
          UserError: k, temperatures or dtype that cannot be, or a folder that holds a cache made otherwise.
        """
        if not 1 <= k <= vocab:
            raise UserError(f"--top_k={k}: give 1 to {vocab}, the teacher's vocabulary")
        if temperatures[0] != 1 or min(temperatures) <= 0 or len(set(temperatures)) < len(temperatures):
            raise UserError(f"--temperatures={list(temperatures)}: give 1 first, then others above 0, each once")
        if dtype not in DTYPES:
            raise UserError(f"--dtype={dtype}: give {', '.join(DTYPES)}")
        self._folder, self._counts, self._limit = folder, np.asarray(counts, np.int32), shard_labels
        self._dtypes = (np.uint16 if vocab <= 1 << 16 else np.int32, DTYPES[dtype], np.float32, np.float32)
        made = dict(
            key=dict(key), examples=len(counts), k=k, temperatures=[float(t) for t in temperatures], dtype=dtype
        )
        self._index: dict[str, Any] = {**made, "shards": []}
        self._pending: list[Entries] = []
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / INDEX).exists():
            self._index = _read_index(folder)
            for name, value in made.items():
                if self._index[name] != value:
                    raise UserError(
                        f"{folder / INDEX}: the cache there was made with {name} {self._index[name]}, not {value}; give"
                        " another folder, or remove this one"
                    )
        self.done = self._next = self._index["shards"][-1]["end"] if self._index["shards"] else 0

    def add(self, count: int, entries: Entries) -> None:
        """The next `count` examples: arrays `[labels of all of them, ...]` in order.

        Raises:
          ValueError: not as many labels as those examples have.
        """
        wanted = int(self._counts[self._next : self._next + count].sum())
        if self._next + count > len(self._counts) or any(len(x) != wanted for x in entries):
            raise ValueError(
                f"examples {self._next} to {self._next + count} of {len(self._counts)} have {wanted} labels"
            )
        self._pending.append(entries)
        self._next += count
        if self._next == len(self._counts) or sum(len(e.ids) for e in self._pending) >= self._limit:
            self._write()

    def _write(self) -> None:
        number = len(self._index["shards"])
        path = self._folder / f"shard-{number:05}.safetensors"
        arrays = {
            name: _as(np.concatenate([np.asarray(part) for part in parts]), dtype)
            for name, parts, dtype in zip(NAMES, zip(*self._pending), self._dtypes)
        }
        arrays["counts"] = self._counts[self.done : self._next]
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            save_file(arrays, aside)
            size = aside.stat().st_size
            os.replace(aside, path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise UserError(f"cannot write to {path}: {error.strerror or error}") from None
        shard = {"file": path.name, "end": self._next, "bytes": size}
        self._index = {**self._index, "shards": [*self._index["shards"], shard]}
        write_json(self._folder / INDEX, self._index)
        self._pending, self.done = [], self._next


class Cache:
    """A whole cache, read where it lies; see `open_cache`."""

    def __init__(self, folder: Path, index: dict[str, Any], temperature: float):
        self.folder, self.k, self._temperature = folder, index["k"], temperature
        self._column = index["temperatures"].index(temperature)
        self._shards = [_map(folder / shard["file"], shard["bytes"]) for shard in index["shards"]]
        counts = np.concatenate([shard["counts"] for shard in self._shards]).astype(np.int64)
        if len(counts) != index["examples"] or any(len(s["ids"]) != s["counts"].sum() for s in self._shards):
            raise UserError(f"{folder / INDEX}: its shards hold other examples than it says; make the cache anew")
        self.counts = counts
        self._offsets = np.concatenate([[0], np.cumsum(counts)])
        self._starts = np.cumsum([0, *(len(shard["ids"]) for shard in self._shards)])

    def take(self, example: np.ndarray, nth: np.ndarray) -> TopK:
        """Entries at the cache's temperature of the `nth` label of each `example`, int `[...]` both: `[..., K]`; those
        of example -1 are zeros.

        Raises:
          ValueError: a label that an example has not.
        """
        shape, real = example.shape, example.ravel() >= 0
        wanted, nth = example.ravel()[real], nth.ravel()[real]
        if np.any(nth >= self.counts[wanted]):
            raise ValueError(f"{self.folder}: an example has not as many labels")
        rows = self._offsets[wanted] + nth
        out: dict[str, np.ndarray] = {
            name: np.zeros((len(real), *self._shards[0][name].shape[1:]), np.float32) for name in NAMES[1:]
        }
        out["ids"] = np.zeros((len(real), self.k), np.int32)
        owner, slots = np.searchsorted(self._starts, rows, "right") - 1, np.flatnonzero(real)
        for number in np.unique(owner):
            mine = owner == number
            for name, values in out.items():
                values[slots[mine]] = self._shards[number][name][rows[mine] - self._starts[number]]
        log_probs = out["log_probs"]
        if self._temperature != 1:
            log_probs = (log_probs + out["log_z"][:, :1]) / self._temperature - out["log_z"][:, self._column, None]
        arrays: Any = out["ids"], log_probs, out["log_tail"][:, self._column]
        return TopK(*(x.reshape(*shape, *x.shape[1:]) for x in arrays))

    def attach(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A loader's batch, with what `ftjax.distill.objective` reads: `teacher_ids`, `teacher_log_probs`
        `[B, M, K]`, `teacher_log_tail` `[B, M]` beside `labels [B, M]`; without M beside `labels [B]`.

        `example` says whose each label is; the labels of an example lie side by side and in order.
        """
        example = batch["example"]
        nth = np.zeros_like(example)
        if example.ndim == 2:
            begins = np.pad(example[:, 1:] != example[:, :-1], ((0, 0), (1, 0)), constant_values=True)
            slots = np.arange(example.shape[1])
            nth = slots - np.maximum.accumulate(np.where(begins, slots, 0), 1)
        entry = self.take(example, nth)
        return {**batch, **{f"teacher_{name}": value for name, value in entry._asdict().items()}}


def open_cache(folder: Path, key: Mapping[str, str], counts: np.ndarray, temperature: float = 1.0) -> Cache:
    """The cache in a folder, for a data set whose examples have `counts [n]` labels, at one of its temperatures.

    key: what is known of what it must be made from; without a teacher in memory not the teacher's hash.

    Raises:
      UserError: no cache, one that is not whole, a shard that is missing or cut off, or one of another teacher,
        tokenizer, data set, number of examples or temperature.
    """
    index = _read_index(folder)
    for name, value in key.items():
        if index["key"].get(name) != value:
            raise UserError(f"{folder / INDEX}: the cache is of another {name}; make one for this {name} (ftjax teach)")
    if index["examples"] != len(counts):
        raise UserError(
            f"{folder / INDEX}: the cache is of {index['examples']} examples, the data has {len(counts)}; make it anew"
        )
    done = index["shards"][-1]["end"] if index["shards"] else 0
    if done < index["examples"]:
        raise UserError(
            f"{folder / INDEX}: {done} of {index['examples']} examples are there; let the same ftjax teach finish"
        )
    if temperature not in index["temperatures"]:
        there = ", ".join(f"{t:g}" for t in index["temperatures"])
        raise UserError(f"distill.temperature={temperature:g}: {folder} is for {there}; take one, or make it anew")
    cache = Cache(folder, index, temperature)
    if np.any(cache.counts != counts):
        first = int(np.argmax(cache.counts != counts))
        raise UserError(
            f"{folder}: example {first} has {cache.counts[first]} labels there and {counts[first]} in the data; make"
            " the cache anew"
        )
    return cache


def _as(x: np.ndarray, dtype: Any) -> np.ndarray:
    """In a storage type, what is below its range at its lowest."""
    floats = np.issubdtype(x.dtype, np.floating)
    return np.ascontiguousarray((np.maximum(x, ml_dtypes.finfo(dtype).min) if floats else x).astype(dtype))


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        index = json.loads(path.read_text("utf-8"))
        ends = [shard["end"] for shard in index["shards"]]
        if {"key", "examples", "k", "temperatures", "dtype"} <= set(index) and ends == sorted(ends):
            return index
    except FileNotFoundError:
        raise UserError(f"{path}: not found; make the cache with ftjax teach, or give its folder") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path}: not the index of a teacher cache; make the cache anew (ftjax teach)")


def _map(path: Path, size: int) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, none of them read yet: `safe_open` has no rows by number."""
    if not path.exists():
        raise UserError(f"{path}: missing, though {INDEX} lists it; copy it again, or make the cache anew")
    if path.stat().st_size != size:
        raise UserError(
            f"{path}: {path.stat().st_size} bytes of {size}; copy it again, or make the cache anew (ftjax teach)"
        )
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    data = np.memmap(path, np.uint8, "r", 8 + length)
    return {
        name: data[slice(*x["data_offsets"])].view(_STORED[x["dtype"]]).reshape(x["shape"])
        for name, x in header.items()
    }
