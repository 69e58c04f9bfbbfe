"""PEFT's LORA (with DoRA and rsLoRA) and our `lora`. Theirs: lora_A `(r, in)`, lora_B `(out, r)`; ours: the transposes.

Where a model fuses its query, key and value (GPT-2's c_attn), a file's adapter is ours at the site `qkv`; where others
(ModernBERT's Wi), it is one for each of them, their A equal. Separate ones of ours share a matrix there: their ranks
side by side, B block-diagonal.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftjax import tree
from ftjax.errors import UserError
from ftjax.hub.peft.files import CONFIG, whole_number
from ftjax.hub.peft.kinds import Kind, Read, Shapes, Tensors, Written
from ftjax.hub.peft.modules import (
    ROOT,
    Base,
    Module,
    as_targets,
    by_module,
    common,
    pattern,
    plain_number,
    targeted,
)
from ftjax.methods.base import Found, canonical, find, in_rows, place
from ftjax.methods.lora import METHOD, LoRA, LoRAEmbedding
from ftjax.nn.layers import layered

KEEPS_BASE = (True, False, None, "gaussian", "orthogonal", "eva")  # inits that leave the base's weights as they are
OPTIONS = frozenset(
    (
        "r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "layers_to_transform", "layers_pattern",
        "lora_dropout", "use_rslora", "use_dora", "fan_in_fan_out", "modules_to_save", "init_lora_weights",
        "eva_config", "megatron_core", "qalora_group_size",
    )
)  # fmt: skip


def check(config: Mapping[str, Any], base: Base) -> list[str]:
    """An initialisation that changed the base, numbers that are none."""
    wrong = []
    init = config.get("init_lora_weights")
    if init not in KEEPS_BASE:
        wrong.append(f"init_lora_weights={init!r} (it changes the base; save the adapter converted to a plain one)")
    for key in ("lora_alpha", "lora_dropout"):
        if not isinstance(config.get(key) or 0, int | float):
            wrong.append(f"{key}={config[key]!r} (no number)")
    for key in ("rank_pattern", "alpha_pattern"):
        values = config.get(key) or {}
        if not isinstance(values, dict) or not all(isinstance(x, int | float) for x in values.values()):
            wrong.append(f"{key}={values!r} (no object of numbers)")
    return wrong


def _rank(config: Mapping[str, Any], name: str) -> int:
    return whole_number({"r": by_module("rank_pattern", config, name, config.get("r", 8))}, "r")


def _scale(config: Mapping[str, Any], name: str) -> float:
    rank, alpha = _rank(config, name), by_module("alpha_pattern", config, name, config.get("lora_alpha", 8))
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _keys(module: Module) -> tuple[str, str]:
    if module.kind == "embedding":
        return f"{ROOT}{module.name}.lora_embedding_A", f"{ROOT}{module.name}.lora_embedding_B"
    return f"{ROOT}{module.name}.lora_A.weight", f"{ROOT}{module.name}.lora_B.weight"


def _magnitude(name: str) -> str:
    return f"{ROOT}{name}.lora_magnitude_vector"


def expected(config: Mapping[str, Any], base: Base) -> Shapes:
    """Of every targeted module: A, B, and DoRA's magnitudes."""
    shapes: Shapes = {}
    for module in targeted(config, base):
        (size_in, size_out), rank = module.shape, _rank(config, module.name)
        a, b = _keys(module)
        shapes |= {a: (rank, size_in), b: (size_out, rank)}
        if config.get("use_dora"):
            shapes[_magnitude(module.name)] = (size_out,)
    return shapes


def read(config: Mapping[str, Any], base: Base, tensors: Tensors) -> Read:
    """An adapter a site; of the layer stack, one for each run of layers of the same rank."""
    by_site: dict[str, list[Module]] = {}
    for module in targeted(config, base):
        for site in module.sites:
            by_site.setdefault(site, []).append(module)
    adapters = {}
    for site, modules in by_site.items():
        runs: list[list[Module]] = []
        for module in sorted(modules, key=lambda module: module.layer or 0):
            last = runs[-1][-1] if runs else None
            follows = last is not None and module.layer == (last.layer or 0) + 1
            if last is not None and follows and _rank(config, last.name) == _rank(config, module.name):
                runs[-1].append(module)
            else:
                runs.append([module])
        for run in runs:
            first = run[0].layer
            path = site if first is None else in_rows(site, (first, first + len(run)), base.rows(site))
            adapters[path] = _adapter(config, run, site, tensors)
    return Read("lora", _fields(config, by_site, base), place(adapters, "lora"))


def _adapter(config: Mapping[str, Any], run: list[Module], site: str, tensors: Tensors) -> LoRA | LoRAEmbedding:
    """One object of a site's run of layers: its own columns of B, where the module has several sites."""
    sites = run[0].sites
    own = lambda x: np.split(x, len(sites), -1)[sites.index(site)]  # noqa: E731

    def stack(values: list[np.ndarray]) -> Any:
        return jax.device_put(values[0] if run[0].layer is None else np.stack(values))

    a, b = (stack([part(tensors[_keys(m)[i]].T) for m in run]) for i, part in ((0, lambda a: a), (1, own)))
    scale = stack([np.full(_rank(config, m.name), _scale(config, m.name), np.float32) for m in run])
    magnitude = stack([own(tensors[_magnitude(m.name)]) for m in run]) if config.get("use_dora") else None
    if run[0].kind == "embedding":
        return LoRAEmbedding(a, b, scale, magnitude)
    rate = config.get("lora_dropout") or 0.0
    return LoRA(
        a=a,
        b=b,
        scale=scale,
        rate=jnp.full(scale.shape[:-1], rate) if rate else None,
        magnitude=magnitude,
    )


def _fields(config: Mapping[str, Any], by_site: Mapping[str, list[Module]], base: Base) -> dict[str, Any]:
    """Of `configs.method`; where the layers of a site differ, or the sites in their layers, they say the commonest."""
    ranks = {site: common([_rank(config, m.name) for m in modules]) for site, modules in by_site.items()}
    alphas = {
        site: common([by_module("alpha_pattern", config, m.name, config.get("lora_alpha", 8)) for m in modules])
        for site, modules in by_site.items()
    }
    layers = sorted({m.layer for modules in by_site.values() for m in modules if m.layer is not None})
    whole = all(len(modules) == base.rows(site) for site, modules in by_site.items() if layered(site))
    rank, alpha = common(list(ranks.values())), common(list(alphas.values()))
    listed = lambda values, usual: ",".join(  # noqa: E731
        f"^{site}:{np.format_float_positional(x, trim='-')}" for site, x in values.items() if x != usual
    )
    return dict(
        rank=rank,
        alpha=float(alpha),
        targets=tuple(f"^{site}" for site in by_site),
        dropout=0.0 if by_site.keys() == {"embed"} else float(config.get("lora_dropout") or 0.0),  # PEFT's has none
        layers=() if whole else tuple(layers),
        rank_pattern=listed(ranks, rank),
        alpha_pattern=listed(alphas, alpha),
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
        pissa=False,
    )


def write(base: Base, params: Any, cfg: Any, adapters: Any) -> Written:
    """Every module's A and B; scales that differ within one go into B (exactly, where by a sign or a power of two)."""
    pieces: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for found in find(METHOD.expand(adapters, params), (LoRA, LoRAEmbedding)):
        for layer, one in _layers(found, base.rows(found.site)):
            module, part = base.at(found.site, layer)
            pieces.setdefault(module.name, {})[part] = one
    modules = [base.modules[name] for name in pieces]
    tensors, ranks, alphas = {}, {}, {}
    for module in modules:
        a, b, scale = _fused(pieces[module.name], module)
        s = float(np.abs(scale).max()) or 1.0
        keys = _keys(module)
        tensors |= {keys[0]: a.T, keys[1]: (b * (scale / np.float32(s))[:, None]).T}
        ranks[module.name] = len(scale)
        alphas[module.name] = _alpha(s, len(scale), cfg.rslora)
        if cfg.dora:
            tensors[_magnitude(module.name)] = _magnitudes(pieces[module.name], module, params)
    rank, alpha = common(list(ranks.values())), common(list(alphas.values()))
    config = dict(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=cfg.dropout,
        target_modules=as_targets(modules, base),
        fan_in_fan_out=any(module.kind == "conv" for module in modules),
        use_rslora=cfg.rslora,
        use_dora=cfg.dora,
        rank_pattern=_patterns(ranks, rank),
        alpha_pattern=_patterns(alphas, alpha),
        bias="none",
        init_lora_weights=True,
    )
    return Written(config, tensors)


def _layers(found: Found, rows: int) -> list[tuple[int | None, dict[str, np.ndarray]]]:
    one = found.adapter
    leaves = {"a": one.a, "b": one.b, "scale": one.scale}
    if getattr(one, "magnitude", None) is not None:
        leaves["magnitude"] = one.magnitude
    whole = {name: np.asarray(x, np.float32) for name, x in leaves.items()}
    if not layered(found.site):
        return [(None, whole)]
    numbers = range(rows)[found.rows]
    return [(layer, {name: x[i] for name, x in whole.items()}) for i, layer in enumerate(numbers)]


def _fused(parts: Mapping[int, dict[str, np.ndarray]], module: Module) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, B and scale of a module: of a fused one, from its parts."""
    each = [parts[i] for i in sorted(parts)]
    if len(module.parts) == 1:
        return each[0]["a"], each[0]["b"], each[0]["scale"]
    shared = len(each) == len(module.parts) and all(
        np.array_equal(one[leaf], each[0][leaf]) for one in each for leaf in ("a", "scale")
    )
    if shared:
        return each[0]["a"], np.concatenate([one["b"] for one in each], -1), each[0]["scale"]
    width = module.shape[1] // len(module.parts)
    b = np.zeros((sum(len(one["b"]) for one in each), module.shape[1]), np.float32)
    at = 0
    for i, one in sorted(parts.items()):
        rank = len(one["b"])
        b[at : at + rank, i * width : (i + 1) * width] = one["b"]
        at += rank
    return np.concatenate([one["a"] for one in each], -1), b, np.concatenate([one["scale"] for one in each])


def _magnitudes(parts: Mapping[int, dict[str, np.ndarray]], module: Module, params: Any) -> np.ndarray:
    """DoRA's m; of a part without an adapter |W|, which changes nothing."""

    def norm(site: str) -> np.ndarray:
        kernel = tree.flatten(canonical(params))[f"{site}/kernel"]
        return np.linalg.norm(np.asarray(kernel, np.float32)[module.layer], axis=0)

    return np.concatenate([parts[i]["magnitude"] if i in parts else norm(s) for i, s in enumerate(module.parts)])


def _alpha(scale: float, rank: int, rslora: bool) -> int | float:
    """The alpha of a scale kept in fp32: the shortest number that gives it."""
    by = rank**0.5 if rslora else rank
    short = float(f"{scale * by:.6g}")
    return plain_number(short if np.float32(short / by) == np.float32(scale) else scale * by)


def _patterns(values: Mapping[str, Any], usual: Any) -> dict[str, Any]:
    """`rank_pattern` or `alpha_pattern`: the modules of each unusual value."""
    rest = dict.fromkeys(x for x in values.values() if x != usual)
    return {pattern(name for name, x in values.items() if x == value): value for value in rest}


def refuse_trained_heads(adapters: Any, parts: Collection[str]) -> None:
    """UserError for a LoRA on what `modules_to_save` would hold whole."""
    for found in find(adapters, (LoRA, LoRAEmbedding)):
        if found.site.split("/")[0] in parts:
            raise UserError(
                f"method.targets: {CONFIG} cannot hold a LoRA at {found.site}, which is itself trained whole"
            )


KIND = Kind(OPTIONS, check, expected, read, write)
