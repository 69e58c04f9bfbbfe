"""PEFT adapter folders on disk: adapter_config.json and adapter_model.safetensors, whole or absent."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ftjax.errors import UserError
from ftjax.files import whole, write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FLOATS = ("float32", "float16", "bfloat16")
UNSET: tuple[Any, ...] = (None, False, {}, [], "", "none")  # what an option holds that is not in use
ABOUT = frozenset(  # tells of the file or of its making; no arithmetic
    ("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode")
)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(config, {key: tensor in fp32}) of an adapter folder.

    Raises:
      UserError: a file that is missing, damaged or a pickle; tensors that are no floats.
    """
    absent = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if absent:
        pickles = ", ".join(sorted(p.name for p in folder.glob("*.bin")))
        more = f" ({pickles} is a pickle: save it anew as safetensors)" if pickles else ""
        raise UserError(f"{folder}: no {' and no '.join(absent)}{more}; give the folder of a saved PEFT adapter")
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / CONFIG}: no valid json ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG}: a json object is needed, got a {type(config).__name__}")
    try:
        with safe_open(folder / WEIGHTS, "np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS}: corrupt or truncated, copy it again ({error})") from None
    wrong = [f"{name} ({x.dtype})" for name, x in tensors.items() if str(x.dtype) not in FLOATS]
    if wrong:
        raise UserError(f"{folder / WEIGHTS}: not fp32, fp16 or bf16: {', '.join(wrong)}")
    return config, {name: x.astype(np.float32) for name, x in tensors.items()}


def unsupported(config: Mapping[str, Any], known: Collection[str]) -> list[str]:
    """`key=value` of every option in use that is not among the known ones."""
    return [
        f"{key}={value!r}"
        for key, value in config.items()
        if key not in ABOUT and key not in known and value not in UNSET
    ]


def whole_number(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """An option that is 1 or more; UserError otherwise."""
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{CONFIG}: {key}={value!r}; a whole number of 1 or more is needed")
    return value


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """An adapter folder; a kill leaves no half of one."""
    with whole(folder) as aside:
        # save_file writes the buffer as it lies, whatever the strides.
        save_file({k: np.ascontiguousarray(x) for k, x in tensors.items()}, aside / WEIGHTS, {"format": "pt"})
        write_json(aside / CONFIG, dict(config))
