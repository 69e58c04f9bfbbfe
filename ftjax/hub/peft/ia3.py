"""PEFT's IA3 and our `ia3`. Theirs: `ia3_l` `(out, 1)` of a module's output, `(1, in)` of a feed-forward's input."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ftjax.hub.names import listing
from ftjax.hub.peft.kinds import Kind, Read, Shapes, Tensors, Written
from ftjax.hub.peft.modules import ROOT, Base, Module, as_targets, pattern, targeted
from ftjax.methods.base import find, in_rows, layer_spans, place
from ftjax.methods.ia3 import ScaledActivation, ScaledInput, ScaledOutput
from ftjax.nn.layers import layered

OPTIONS = frozenset(("target_modules", "feedforward_modules", "fan_in_fan_out", "modules_to_save", "init_ia3_weights"))


def check(config: Mapping[str, Any], base: Base) -> list[str]:
    """Embeddings have no vector of ours; the input of a fused module is that of all its parts."""
    modules = targeted(config, base)
    inputs = _scales_input(config, base, modules)
    wrong = {
        "target_modules={} (an embedding)": [m.name for m in modules if m.kind == "embedding"],
        "feedforward_modules={} (its parts share an input)": [
            m.name for m in modules if m.name in inputs and len(m.parts) > 1
        ],
    }
    return [what.format(listing(names)) for what, names in wrong.items() if names]


def _scales_input(config: Mapping[str, Any], base: Base, modules: list[Module]) -> set[str]:
    """Names of those of the modules that are feed-forward ones: PEFT takes any ending here."""
    named = config.get("feedforward_modules") or []
    if isinstance(named, str):
        return {m.name for m in targeted({"target_modules": named}, base)} & {m.name for m in modules}
    return {m.name for m in modules if any(m.name.endswith(one) for one in named)}


def expected(config: Mapping[str, Any], base: Base) -> Shapes:
    """One vector a module."""
    modules = targeted(config, base)
    inputs = _scales_input(config, base, modules)
    return {f"{ROOT}{m.name}.ia3_l": (1, m.shape[0]) if m.name in inputs else (m.shape[1], 1) for m in modules}


def read(config: Mapping[str, Any], base: Base, tensors: Tensors) -> Read:
    """Vectors at our sites: a fused module's cut into its parts."""
    modules = targeted(config, base)
    inputs = _scales_input(config, base, modules)
    found: dict[tuple[str, type], dict[int | None, np.ndarray]] = {}
    for module in modules:
        value, scales_input = tensors[f"{ROOT}{module.name}.ia3_l"].reshape(-1), module.name in inputs
        if scales_input:
            down = module.site.endswith("layers/ffn/down")
            kind = ScaledActivation if down else ScaledInput
            site = module.site.removesuffix("/down") if down else module.site
            found.setdefault((site, kind), {})[module.layer] = value
        else:
            for part, piece in zip(module.parts, np.split(value, len(module.parts))):
                found.setdefault((part, ScaledOutput), {})[module.layer] = piece
    adapters: dict[str, Any] = {}
    for (site, kind), by_layer in found.items():
        if None in by_layer:
            adapters[site] = kind(jax.device_put(by_layer[None]))
            continue
        rows = base.rows(site)
        for span in layer_spans([layer for layer in by_layer if layer is not None], rows):
            stack = np.stack([by_layer[layer] for layer in range(*span)])
            adapters[in_rows(site, span, rows)] = kind(jax.device_put(stack))
    beyond_paper = {("layers/attn/q", ScaledOutput), ("layers/attn/o", ScaledInput)} & set(found)
    layers = sorted({module.layer for module in modules if module.layer is not None})
    whole = all(len(by_layer) == base.rows(site) for (site, _), by_layer in found.items() if layered(site))
    fields = dict(
        definition="peft" if beyond_paper else "paper",
        layers=() if whole else tuple(layers),
    )
    return Read("ia3", fields, place(adapters, "ia3"))


def write(base: Base, params: Any, cfg: Any, adapters: Any) -> Written:
    """One vector a module; ones for those parts of a fused module that have none."""
    tensors: dict[str, np.ndarray] = {}
    inputs: list[Module] = []
    modules: dict[str, Module] = {}
    for found in find(adapters, (ScaledOutput, ScaledActivation, ScaledInput)):
        site = f"{found.site}/down" if isinstance(found.adapter, ScaledActivation) else found.site
        scale = np.asarray(found.adapter.scale, np.float32)
        rows = layered(site)
        for i, layer in enumerate(range(base.rows(site))[found.rows] if rows else [None]):
            module, part = base.at(site, layer)
            key, value = f"{ROOT}{module.name}.ia3_l", scale[i] if rows else scale
            modules[module.name] = module
            if not isinstance(found.adapter, ScaledOutput):
                inputs.append(module)
                tensors[key] = value[None]
                continue
            whole = tensors.setdefault(key, np.ones((module.shape[1], 1), np.float32))
            width = len(value)
            whole[part * width : (part + 1) * width, 0] = value
    targets = as_targets(modules.values(), base)
    feedforward = as_targets(inputs, base)
    if isinstance(targets, str) or isinstance(feedforward, str):  # lists must be a subset of one another
        targets, feedforward = pattern(modules), pattern(module.name for module in inputs) if inputs else []
    config = dict(
        target_modules=targets,
        feedforward_modules=feedforward,
        fan_in_fan_out=any(module.kind == "conv" for module in modules.values()),
        init_ia3_weights=True,
    )
    return Written(config, tensors)


KIND = Kind(OPTIONS, check, expected, read, write)
