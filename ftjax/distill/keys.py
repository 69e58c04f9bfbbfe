"""Hashes of what a teacher's output depends on."""

import dataclasses
import hashlib
import json
from typing import Any

import jax
import numpy as np

from ftjax import tree
from ftjax.models.transformer import Transformer
from ftjax.nn.config import OF_BOTH


def teacher_key(model: Transformer, variables: Any) -> str:
    """Of a model's config, how it computes apart (all but its dtype), and of all its parameters and adapters."""
    digest = hashlib.sha256()
    fields = dataclasses.asdict(model.cfg)
    for cfg in (fields, fields["encoder"] or {}):
        for name in set(OF_BOTH) - {"dtype"}:
            cfg.pop(name, None)
    digest.update(json.dumps(fields, sort_keys=True, default=str).encode())
    for path, leaf in tree.flatten(variables).items():
        digest.update(path.encode())
        _add(digest, jax.device_get(leaf))
    return digest.hexdigest()


def tokenizer_key(tokenizer: Any) -> str:
    """Of which id each token has."""
    return hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()


def data_key(*arrays: np.ndarray) -> str:
    """Of encoded examples: token ids, offsets, labels, and whatever else the teacher reads."""
    digest = hashlib.sha256()
    for x in arrays:
        _add(digest, x)
    return digest.hexdigest()


def _add(digest: Any, x: np.ndarray) -> None:
    digest.update(f"{x.dtype} {x.shape}".encode())
    digest.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8))
