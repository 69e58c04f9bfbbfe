"""Which module of a torch model is which site of ours, and which modules a PEFT config means."""

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ftjax import tree
from ftjax.errors import UserError
from ftjax.hub import family_of
from ftjax.hub.family import Family
from ftjax.hub.peft.files import CONFIG
from ftjax.models.transformer import Transformer, abstract
from ftjax.nn.config import Config
from ftjax.nn.layers import layered

ROOT = "base_model.model."  # of every key, but for those beside a soft prompt or a prefix
CLASSES = ("classifier", "score")
SAVES = {"classification": CLASSES, "tagging": CLASSES, "span": ("qa_outputs",)}  # what PEFT saves whatever the family
QKV = ("layers/attn/q", "layers/attn/k", "layers/attn/v")
_LAYER = re.compile(r"(.*?)\.(\d+)\.(.*)")  # stem, number, the rest


class Module(NamedTuple):
    """A Linear, Conv1D or Embedding of the torch model."""

    name: str  # transformer.h.0.attn.c_attn
    kind: str  # linear, conv, embedding
    site: str  # layers/attn/qkv; empty where no adapter of ours acts, or only on the parts
    parts: tuple[str, ...]  # the sites of a fused one: layers/attn/q, ...; else its own
    layer: int | None
    shape: tuple[int, int]  # in, out

    @property
    def sites(self) -> tuple[str, ...]:
        """Where a LoRA of ours stands for one of PEFT's: its own site, else all of its parts."""
        return (self.site,) if self.site else self.parts


class Saved(NamedTuple):
    """A parameter of the task's head, as a file has it."""

    path: str  # classifier/kernel
    name: str  # score.weight
    shape: tuple[int, ...]
    transpose: bool

    @property
    def part(self) -> str:
        """Of our parameters: classifier, pooler or transform."""
        return self.path.split("/")[0]


class Base(NamedTuple):
    """A model as PEFT sees it."""

    family: Family
    cfg: Config
    modules: Mapping[str, Module]
    head: Sequence[Saved]

    def rows(self, site: str) -> int:
        """How many rows the layer stack of a site has."""
        stack = self.cfg.encoder if self.cfg.encoder is not None and site.startswith("encoder/") else self.cfg
        return stack.rows

    def at(self, site: str, layer: int | None) -> tuple[Module, int]:
        """The module of a site (of one layer), and which of its parts it is."""
        for module in self.modules.values():
            if module.layer == layer and site in module.parts:
                return module, module.parts.index(site)
        raise UserError(f"a PEFT file has no place for an adapter at {site} of a {self.family.model_type} model")


def base_of(model: Transformer) -> Base:
    """The modules of a model, under the names that transformers gives them."""
    return _base_of(model.cfg)


@functools.lru_cache(maxsize=8)
def _base_of(cfg: Config) -> Base:
    family = family_of(cfg)
    places = family.places(cfg, bare=cfg.head == "none")
    shapes = {path: x.shape for path, x in tree.flatten(abstract(Transformer(cfg))).items()}
    found: dict[str, list[tuple[str, str, int | None, tuple[int, int]]]] = {}
    head = []
    for path, weight in places.items():
        site, _, leaf = path.rpartition("/")
        if path not in shapes:
            continue
        if cfg.head not in ("lm", "mlm", "none") and path in family.heads[cfg.head].weights:
            turned = weight.transpose
            head.append(Saved(path, weight.name, shapes[path][::-1] if turned else shapes[path], turned))
        if leaf not in ("kernel", "embedding"):
            continue
        kind = "embedding" if leaf == "embedding" else "linear" if weight.transpose else "conv"
        if kind == "embedding":
            # In torch an encoder and its decoder call tables of their own, tied to this one: no adapter acts on it.
            site = "embed" if site == "embed/tokens" and cfg.encoder is None else ""
        rows = layered(path)
        if len(shapes[path]) - rows != 2:  # a convolution
            continue
        for i in range(shapes[path][0]) if rows else [None]:
            module = weight.name.removesuffix(".weight").format(i=i)
            found.setdefault(module, []).append((kind, site, i, shapes[path][rows:]))
    if cfg.head in ("lm", "mlm") and "head/kernel" not in shapes:  # tied: a module without a weight of its own
        name = places["head/kernel"].name if "head/kernel" in places else next(iter(family.copies))
        width = cfg.embed_width if cfg.head == "mlm" else cfg.hidden_size
        found[name.removesuffix(".weight")] = [("linear", "head", None, (width, cfg.vocab_size))]
    modules = {}
    for name, pieces in found.items():
        kind, site, layer, (size_in, _) = pieces[0]
        parts = tuple(piece[1] for piece in pieces)
        modules[name] = Module(
            name, kind, site if len(parts) == 1 else "layers/attn/qkv" if parts == QKV else "", parts, layer,
            (size_in, sum(piece[3][1] for piece in pieces)),
        )  # fmt: skip
    return Base(family, cfg, modules, head)


def targeted(config: Mapping[str, Any], base: Base) -> list[Module]:
    """The modules that `target_modules` and `layers_to_transform` mean, by PEFT's rules.

    Raises:
      UserError: a target that means no module, or one where no adapter of ours acts.
    """
    targets, saved = config.get("target_modules"), config.get("modules_to_save") or []
    if not targets or not isinstance(targets, str | list):
        raise UserError(f"{CONFIG}: target_modules={targets!r}; a list of names or a pattern is needed")
    if isinstance(targets, str) and config.get("layers_to_transform") not in (None, []):
        raise UserError(f"{CONFIG}: layers_to_transform goes with a list of target_modules, not with a pattern")
    known = [m for m in base.modules.values() if not any(_inside(m.name, name) for name in saved)]
    if isinstance(targets, str) and targets.lower() == "all-linear":
        chosen = [m for m in known if m.kind != "embedding" and m.site not in ("head", "classifier")]
    elif isinstance(targets, str):
        chosen = [m for m in known if _pattern(targets).fullmatch(m.name)]
    else:
        unknown = [t for t in targets if not any(_ends(m.name, t) for m in base.modules.values())]
        if unknown:
            raise UserError(f"{CONFIG}: target_modules: {', '.join(map(repr, unknown))} {_names_none(base)}")
        chosen = [m for m in known if any(_ends(m.name, t) for t in targets) and _in_layers(m.name, config)]
    if not chosen:
        raise UserError(f"{CONFIG}: target_modules={targets!r} {_names_none(base)}")
    nowhere = [m.name for m in chosen if not all(m.sites)]
    if nowhere:
        raise UserError(f"{CONFIG}: target_modules: no adapter can act on {', '.join(nowhere)} here")
    return chosen


def _names_none(base: Base) -> str:
    kinds = dict.fromkeys(_LAYER.sub(r"\1.*.\3", name) for name in base.modules)
    return f"names no module of this {base.family.model_type} model; it has {', '.join(kinds)}"


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"{CONFIG}: {text!r} is no regular expression ({error})") from None


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _inside(name: str, module: str) -> bool:
    return f".{module}." in f".{name}."


def _in_layers(name: str, config: Mapping[str, Any]) -> bool:
    layers, stems = config.get("layers_to_transform"), config.get("layers_pattern") or []
    if layers is None or layers == []:
        return True
    stems = [stems] if isinstance(stems, str) else stems
    tries = [rf"(?:^|.*?\.){stem}\.(\d+)\." for stem in stems] or [r".*?\.[^.]*\.(\d+)\."]
    match = next((m for one in tries if (m := _pattern(one).match(name))), None)
    return match is not None and int(match[1]) in ([layers] if isinstance(layers, int) else layers)


def by_module(field: str, config: Mapping[str, Any], name: str, default: Any) -> Any:
    """A module's value of `rank_pattern` or `alpha_pattern`: the first pattern that matches its end wins."""
    for key, value in (config.get(field) or {}).items():
        if _pattern(rf"(.*\.)?({key})$").match(name):
            return value
    return default


def as_targets(modules: Iterable[Module], base: Base) -> list[str] | str:
    """`target_modules` for exactly these: a list of short names, or a pattern where such a list would mean more."""
    names = {module.name for module in modules}
    short = sorted({match[3] if (match := _LAYER.fullmatch(name)) else name for name in names})
    meant = {name for name in base.modules if any(_ends(name, one) for one in short)}
    return short if meant == names else pattern(names)


def pattern(names: Iterable[str]) -> str:
    """A regular expression for exactly these module names, the layers' numbers as alternatives."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in sorted(names):
        match = _LAYER.fullmatch(name)
        stem, number, rest = match.groups() if match else (name, "", "")
        groups.setdefault((stem, rest), []).append(number)
    each = [
        rf"{re.escape(stem)}\.({'|'.join(sorted(numbers, key=int))})\.{re.escape(rest)}" if rest else re.escape(stem)
        for (stem, rest), numbers in groups.items()
    ]
    return each[0] if len(each) == 1 else f"({'|'.join(each)})"


def head_names(base: Base, parts: Sequence[str]) -> list[str]:
    """`modules_to_save` for these parts of the task's head (`classifier`, `pooler`, ...), and what PEFT adds to it."""
    if not parts:
        return []
    own = [one.name.removeprefix(base.family.prefix).split(".")[0] for one in base.head if one.part in parts]
    return list(dict.fromkeys([*SAVES.get(base.cfg.head, ()), *own]))


def head_keys(config: Mapping[str, Any], base: Base, root: str = ROOT) -> dict[str, Saved]:
    """{key: parameter} of the task's head that `modules_to_save` puts into the file.

    Raises:
      UserError: another module than the task's head.
    """
    wanted = config.get("modules_to_save") or []
    known = {one.name.rpartition(".")[0] for one in base.head}
    rest = [name for name in base.modules if name not in known and any(_inside(name, one) for one in wanted)]
    if rest:
        raise UserError(
            f"{CONFIG}: modules_to_save: only a task's head (a classifier, its pooler) can be trained whole, not"
            f" {', '.join(rest)}"
        )
    return {f"{root}{one.name}": one for one in base.head if any(_inside(one.name, name) for name in wanted)}


def head_tensors(saved: Mapping[str, Saved], params: Any) -> dict[str, np.ndarray]:
    """{key: tensor} of those parameters."""
    flat = tree.flatten({part: params[part] for part in {one.part for one in saved.values()}})
    values = {key: np.asarray(flat[one.path], np.float32) for key, one in saved.items()}
    return {key: x.T if saved[key].transpose else x for key, x in values.items()}


def common(values: Sequence[Any]) -> Any:
    """The commonest, the first of several."""
    return max(dict.fromkeys(values), key=values.count)


def plain_number(value: float) -> int | float:
    """5.0 as 5."""
    return int(value) if math.isfinite(value) and value == int(value) else value
