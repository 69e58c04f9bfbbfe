"""Checkpoint folders: config.json and safetensors, whole or in shards, from a directory, the hub or this package."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ftjax.errors import UserError

ASSETS = Path(__file__).parents[1] / "assets"
SHIPPED = ("nano-gpt", "nano-bert")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"
TEXT = ("*.json", "*.txt", "*.jinja", "*.model")
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model")
TOKENIZER = ("tokenizer.json", "vocab.json", "vocab.txt", *SENTENCEPIECE)  # any of them is one
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
GENERATION = "generation_config.json"
EDGES = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")  # in it, or in config.json
SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")  # in config.json
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


class Stored(NamedTuple):
    """One tensor of a file, read when asked for."""

    shape: tuple[int, ...]
    dtype: str  # as in the safetensors header: F32, F16, BF16, I64, ...
    read: Callable[[tuple[slice, ...]], np.ndarray]  # of some of it: () for all


def resolve(path_or_id: str | os.PathLike, weights: bool = True) -> Path:
    """The local folder of a directory, a model shipped with ftjax, or a hub id (downloaded: json, tokenizer files
    and, if `weights`, what `read_weights` reads). UserError where it is none of them."""
    path, name = Path(path_or_id), os.fspath(path_or_id)
    if path.is_dir():
        return path
    if name in SHIPPED:
        if not (ASSETS / name).is_dir():
            raise UserError(f"{name}: this installation of ftjax has no {ASSETS / name}")
        return ASSETS / name
    if path.exists() or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise UserError(f"{name!r}: no such directory, nor a hub id (org/name), nor one of {', '.join(SHIPPED)}")
    from huggingface_hub import snapshot_download

    patterns: list[str] = [*TEXT, *([WEIGHTS, SHARDS] if weights else [])]
    try:
        # of folders, none but those of sentence-transformers' modules, 1_Pooling, ...
        others = ["[!0-9]*/*", "*/*.safetensors"]
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=others))
    except (OSError, ValueError) as error:  # hub errors are OSErrors: offline, no such repository, no access
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{name!r}: no such directory, and the hub gave none: {reason[0]}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a json file; UserError where it is absent or no object."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; a checkpoint folder has config.json and {WEIGHTS}") from error
    except ValueError as error:
        raise UserError(f"{path}: no valid json ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a json object is needed, got a {type(content).__name__}")
    return content


def read_weights(folder: Path) -> dict[str, Stored]:
    """{name: tensor} of model.safetensors or of all shards of its index; UserError names a file at fault."""
    if (folder / WEIGHTS).exists():
        return _read(folder / WEIGHTS)
    if not (folder / INDEX).exists():
        pickles = ", ".join(sorted(p.name for p in folder.glob("*.bin")))
        found = f" ({pickles} is a pickle: save it anew as safetensors)" if pickles else ""
        raise UserError(f"{folder}: neither {WEIGHTS} nor {INDEX}{found}")
    owner = read_json(folder / INDEX).get("weight_map")
    if not isinstance(owner, dict) or not all(Path(str(shard)).name == shard for shard in owner.values()):
        raise UserError(f"{folder / INDEX}: needs a weight_map of tensor names to files of the same folder")
    shards = sorted(set(owner.values()))
    absent = [shard for shard in shards if not (folder / shard).exists()]
    if absent:
        raise UserError(f"{folder}: {INDEX} names shards that are missing: {', '.join(absent)}")
    tensors: dict[str, Stored] = {}
    for shard in shards:
        held = _read(folder / shard)
        lost = sorted(name for name, s in owner.items() if s == shard and name not in held)
        if lost:
            raise UserError(f"{folder / shard}: lacks what {INDEX} says it holds: {', '.join(lost)}")
        tensors |= held
    return tensors


def special_ids(folder: Path) -> dict[str, Any]:
    """Those that config.json names."""
    config = read_json(folder / "config.json")
    return {key: config[key] for key in SPECIAL if config.get(key) is not None}


def beside(folder: Path) -> list[Path]:
    """The files of a checkpoint's tokenizer, and its generation config."""
    named = [folder / name for name in (*TOKENIZER, "merges.txt", *SETTINGS, GENERATION)]
    return [*(file for file in named if file.exists()), *folder.glob("*.jinja")]


def amend(path: Path, entries: Mapping[str, Any]) -> None:
    """Sets entries of a json file, or makes it; one that says them already is left as it is."""
    said = read_json(path) if path.exists() else {}
    if any(said.get(key) != value for key, value in entries.items()):
        path.write_text(json.dumps({**said, **entries}, indent=2) + "\n", "utf-8")


def _read(path: Path) -> dict[str, Stored]:
    try:
        file = safe_open(path, "np")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: corrupt or truncated, copy it again ({error})") from error
    tensors = {}
    for name in file.keys():  # noqa: SIM118 - no mapping
        piece = file.get_slice(name)
        read = lambda index, name=name: file.get_slice(name)[index] if index else file.get_tensor(name)  # noqa: E731
        tensors[name] = Stored(tuple(piece.get_shape()), piece.get_dtype(), read)
    return tensors


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """model.safetensors and config.json, each written aside and renamed: a kill leaves no half file."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{WEIGHTS}.{os.getpid()}"
    # save_file writes the buffer as it lies, whatever the strides.
    save_file({k: np.ascontiguousarray(x) for k, x in tensors.items()}, aside, {"format": "pt"})
    os.replace(aside, folder / WEIGHTS)
    aside = folder / f".config.json.{os.getpid()}"
    aside.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    os.replace(aside, folder / "config.json")
