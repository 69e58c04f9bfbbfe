"""PEFT's ADAPTION_PROMPT and our `llama_adapter` of definition 'peft': one gate a layer, no tanh, the top layers.

Theirs: `adaption_prompt` (1, P, D) and `adaption_gate` (1,) of every adapted attention.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ftjax.errors import UserError
from ftjax.hub.peft.files import CONFIG, whole_number
from ftjax.hub.peft.kinds import Kind, Read, Shapes, Tensors, Written
from ftjax.hub.peft.modules import ROOT, Base
from ftjax.methods.base import find, in_rows, place
from ftjax.methods.llama_adapter import LLaMAAdapter

LLAMA = dict.fromkeys(("llama", "mistral"), ("model.layers.{i}.self_attn", "self_attn"))
ATTENTION = {"gpt2": ("transformer.h.{i}.attn", "attn"), **LLAMA}
OPTIONS = frozenset(("adapter_len", "adapter_layers", "target_modules"))


def _layers(config: Mapping[str, Any], base: Base) -> range:
    rows, count = base.cfg.num_layers, whole_number(config, "adapter_layers")
    if count > rows:
        raise UserError(f"{CONFIG}: adapter_layers={count}: the base has {rows} layers")
    return range(rows - count, rows)


def _name(base: Base, layer: int) -> str:
    name = ATTENTION[base.family.model_type][0].format(i=layer)
    return ROOT + (name.removeprefix(base.family.prefix) if base.cfg.head == "none" else name)


def check(config: Mapping[str, Any], base: Base) -> list[str]:
    """Another family, or other modules than its attention."""
    kind = base.family.model_type
    if kind not in ATTENTION:
        return [f"peft_type='ADAPTION_PROMPT' of a {kind} model"]
    targets = config.get("target_modules")
    return [] if targets in (None, ATTENTION[kind][1]) else [f"target_modules={targets!r}"]


def expected(config: Mapping[str, Any], base: Base) -> Shapes:
    """Prompts and gate of each of the top layers."""
    if base.family.model_type not in ATTENTION:
        return {}
    length, shapes = whole_number(config, "adapter_len"), {}
    for layer in _layers(config, base):
        name = _name(base, layer)
        shapes |= {f"{name}.adaption_prompt": (1, length, base.cfg.hidden_size), f"{name}.adaption_gate": (1,)}
    return shapes


def read(config: Mapping[str, Any], base: Base, tensors: Tensors) -> Read:
    """Our adapter in the top layers."""
    layers, rows = _layers(config, base), base.cfg.num_layers
    stack = lambda leaf: jax.device_put(np.stack([tensors[f"{_name(base, i)}.{leaf}"] for i in layers]))  # noqa: E731
    adapter = LLaMAAdapter(
        prompts=stack("adaption_prompt")[:, 0],
        gate=stack("adaption_gate"),
        head_dim=base.cfg.head_dim,
        tanh=False,
        beyond=base.family.model_type == "gpt2",
    )
    path = in_rows("layers/attn", (layers.start, rows), rows)
    fields = dict(definition="peft", length=adapter.prompts.shape[1], count=len(layers), gate=None, tanh=None)
    return Read("llama_adapter", fields, place({path: adapter}, "llama_adapter"))


def write(base: Base, params: Any, cfg: Any, adapters: Any) -> Written:
    """Prompts and gates; a gate a head, its tanh, or the paper's place on GPT-2 cannot be said."""
    kind = base.family.model_type
    if kind not in ATTENTION:
        raise UserError(f"method.name='llama_adapter': PEFT has it on {' and '.join(ATTENTION)} models, not on {kind}")
    ((_, _, rows, adapter),) = find(adapters, LLaMAAdapter)
    wrong = []
    if adapter.gate.shape[-1] != 1:
        wrong.append("method.gate='head' (PEFT: one scalar a layer)")
    if adapter.tanh:
        wrong.append("method.tanh=True (PEFT: none)")
    if adapter.beyond != (kind == "gpt2"):
        wrong.append(f"method.definition={cfg.definition!r} (PEFT adds after the output projection of a gpt2 model)")
    if base.cfg.num_heads * base.cfg.head_dim != base.cfg.hidden_size:
        wrong.append("heads that do not fill the hidden size (PEFT's forward pass fails on them)")
    if wrong:
        raise UserError(f"a PEFT file cannot say {'; '.join(wrong)}")
    layers, tensors = range(base.cfg.num_layers)[rows], {}
    prompts, gates = np.asarray(adapter.prompts, np.float32), np.asarray(adapter.gate, np.float32)
    for i, layer in enumerate(layers):
        name = _name(base, layer)
        tensors |= {f"{name}.adaption_prompt": prompts[i][None], f"{name}.adaption_gate": gates[i]}
    config = dict(adapter_len=prompts.shape[1], adapter_layers=len(layers), target_modules=ATTENTION[kind][1])
    return Written(config, tensors)


KIND = Kind(OPTIONS, check, expected, read, write)
