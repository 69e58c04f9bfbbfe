"""What a type of PEFT adapter is to us."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ftjax.hub.peft.modules import ROOT, Base

Shapes = dict[str, tuple[int, ...]]
Tensors = Mapping[str, np.ndarray]


class Read(NamedTuple):
    """A method of ours, with the fields that rebuild the structure of its adapters (trained form)."""

    method: str
    fields: dict[str, Any]
    adapters: dict


class Written(NamedTuple):
    """The type's own part of adapter_config.json, and its tensors."""

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]


class Kind(NamedTuple):
    """One `peft_type`.

    options: keys of its config that we follow, or that change nothing here.
    check: (config, base) -> what of these we cannot follow, `key=value` each.
    expected: (config, base) -> {key: shape} of the tensors that a file must hold.
    read: (config, base, tensors) -> the adapters.
    write: (base, params, cfg, adapters in trained form) -> the file; UserError names a field that it cannot say.
    root: of the head's keys.
    """

    options: frozenset[str]
    check: Callable[[Mapping[str, Any], Base], list[str]]
    expected: Callable[[Mapping[str, Any], Base], Shapes]
    read: Callable[[Mapping[str, Any], Base, Tensors], Read]
    write: Callable[[Base, Any, Any, Any], Written]
    root: str = ROOT
