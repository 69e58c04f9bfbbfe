"""What a fine-tuning method is, and what methods share: naming sites, placing adapters, finding them again."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ftjax import tree
from ftjax.errors import UserError
from ftjax.nn.config import Config
from ftjax.nn.layers import layered, span, uncut, whole_path

Tree = Any
Sites = dict[str, tuple[int, ...]]  # site path -> shape of the hook
ALIASES = {
    "attention": r"(attn|cross)/[qkvo]",
    "mlp": r"ffn/[^/]+",
    "all_linear": r"layers/((attn|cross)/[qkvo]|ffn/[^/]+)",
}
ALL: Any = None  # rows: to the end
STARTS = ("the base", "near the base", "another model")


def _needs(what: str) -> Any:
    raise UserError(f"this method starts from the base's {what}, which are not given here")


class Context(NamedTuple):
    """What a method may look at when it makes its adapters."""

    cfg: Config  # the model's
    params: Tree  # arrays, canonical
    sites: Mapping[str, Mapping[str, tuple[int, ...]]]  # site path -> {hook: shape}
    # ids -> the base's k, v, [L, P, K, hd] each
    keys_values: Callable[[Sequence[int]], tuple[jax.Array, jax.Array]] = lambda ids: _needs("keys and values")
    encode: Callable[[str], list[int]] = lambda text: _needs("tokenizer")  # text -> ids, no special tokens
    unknown: int | None = None  # the id of what the vocabulary does not have
    classes: tuple[str, ...] = ()  # names, of a classification task

    def rows(self, path: str) -> int:
        """How many rows the layer stack has that a site is of."""
        stack = self.cfg.encoder if self.cfg.encoder is not None and path.startswith("encoder/") else self.cfg
        return stack.rows


class Template(NamedTuple):
    """What is put around an example's text: strings to encode, and virtual ids (>= V) as they are."""

    before: tuple[str | int, ...]
    after: tuple[str | int, ...] = ()  # before a completion, or before a closing special token
    inside: bool = True  # after an opening special token ([CLS], bos), not before it
    left: tuple[str | int, ...] = ()  # right before the mask of a text that has a gap
    right: tuple[str | int, ...] = ()  # right after it


class Method(NamedTuple):
    """A fine-tuning method: one file each, listed in `ftjax.methods`.

    init: (context, cfg, key) -> adapters, trained form.
    labels: (variables, cfg) -> one label per leaf: `freeze`, or the name of an optimizer group.
    merge: (params, adapters, the model's Config) -> plain params that give the same outputs; raises UserError where
      there are none.
    expand: (adapters, params) -> adapters as the sites see them; inside the loss, and once before decoding or export.
    cuts: (cfg, L) -> rows at which the parameters of the layer stack are cut, where trainability changes.
    template: (cfg, the model's Config) -> what the method puts around the text.
    pads: whether zeros at the ends of the axes of its leaves, and in all that goes with them, change nothing and get no
      gradient other than zero: runs of several sizes are then one program.
    """

    init: Callable[[Context, Any, jax.Array], dict]
    labels: Callable[[Tree, Any], Tree]
    merge: Callable[[Tree, Tree, Config], Tree]
    expand: Callable[[Tree, Tree], Tree] = lambda adapters, params: adapters
    cuts: Callable[[Any, int], tuple[int, ...]] = lambda cfg, rows: ()
    template: Callable[[Any, Config], Template | None] = lambda cfg, model: None
    paper: str = ""
    pads: bool = False
    at_start: str = STARTS[0]  # what the model is before the first step


def no_adapters(ctx: Context, cfg: Any, key: jax.Array) -> dict:
    """For methods that train what the model already has."""
    return {}


def unmergeable(why: str) -> Callable[[Tree, Tree, Config], Tree]:
    """The `merge` of a method whose effect no plain weights have."""

    def merge(params: Tree, adapters: Tree, model: Config) -> Tree:
        raise UserError(f"cannot merge: {why}")

    return merge


def hooked(ctx: Context, hook: str) -> Sites:
    """{path: shape} of the sites of a hook."""
    return {path: hooks[hook] for path, hooks in ctx.sites.items() if hook in hooks}


def match_sites(known: Sites, targets: Sequence[str]) -> Sites:
    """{path: shape} of those of the `known` sites that the targets name.

    A target is an alias (`attention`, `mlp`, `all_linear`) or a regular expression for the end of a path, from a `/`
    on, or after a `^` for all of it: `q` and `attn/(q|v)` both match `layers/attn/q`, and `encoder/layers/attn/q` too,
    which `^layers/attn/q` does not.

    Raises:
      UserError: a target that is no pattern or matches no site; the message lists the sites.
    """
    matched: set[str] = set()
    for target in targets:
        found = _matching("method.targets", target, known)
        if not found:
            raise UserError(
                f"method.targets: {target!r} matches no site; there are {', '.join(known)}"
                f" (or the aliases {', '.join(ALIASES)})"
            )
        matched |= found
    if not matched:
        raise UserError(f"method.targets is empty; name some of {', '.join(known)}")
    return {path: shape for path, shape in known.items() if path in matched}


def _matching(field: str, target: str, known: Sites) -> set[str]:
    above = "" if target.startswith("^") else "(?:.*/)?"
    try:
        pattern = re.compile(f"{above}(?:{ALIASES.get(target, target)})")
    except re.error as error:
        raise UserError(f"{field}: {target!r} is no regular expression ({error})") from None
    return {path for path in known if pattern.fullmatch(path)}


def by_pattern(field: str, text: str, chosen: Sites, default: float, whole: bool = False) -> dict[str, float]:
    """{path: value} of `target:value,...`, the first match wins, `default` elsewhere.

    Raises:
      UserError: no number, or a target that matches none of the chosen sites.
    """
    values: dict[str, float] = {}
    for item in filter(None, text.split(",")):
        target, _, value = item.rpartition(":")
        found = _matching(field, target, chosen)
        if not target or not re.fullmatch(r"\d+" if whole else r"\d+(\.\d+)?", value):
            raise UserError(f"{field}={text!r}: write target:number, as in attn/q:4,mlp:16")
        if not found:
            raise UserError(f"{field}: {target!r} matches none of the chosen sites ({', '.join(chosen)})")
        values = dict.fromkeys(found, float(value)) | values
    return {path: values.get(path, default) for path in chosen}


def tokens(ctx: Context, field: str, text: str) -> list[int]:
    """The ids of a text that the user gave; UserError where it has none, or one that the vocabulary does not know."""
    ids = ctx.encode(text)
    if not ids or ctx.unknown in ids:
        raise UserError(f"{field}: the vocabulary has no tokens for {text!r}; give other words")
    return ids


def layer_spans(layers: Sequence[int], rows: int) -> list[tuple[int, int]]:
    """[(first, end)] of the runs of consecutive layers; no layers given: all.

    Raises:
      UserError: a layer that the model does not have.
    """
    wrong = [n for n in layers if not 0 <= n < rows]
    if wrong:
        raise UserError(f"method.layers: {', '.join(map(str, wrong))} of {rows} layers; give 0..{rows - 1}")
    spans: list[tuple[int, int]] = []
    for n in sorted(set(layers)) or range(rows):
        if spans and spans[-1][1] == n:
            spans[-1] = (spans[-1][0], n + 1)
        else:
            spans.append((n, n + 1))
    return spans


def positive(name: str, value: int, most: int | None = None) -> None:
    """UserError where `method.<name>` is not 1 or more (and at most `most`)."""
    if value < 1 or (most is not None and value > most):
        raise UserError(f"method.{name}={value}: give 1{' or more' if most is None else f'..{most}'}")


def choose(name: str, value: str, choices: Sequence[str]) -> None:
    """UserError where `method.<name>` is none of the choices."""
    if value not in choices:
        raise UserError(f"method.{name}={value!r}: give {', '.join(choices)}")


def place(adapters: Mapping[str, Any], name: str) -> dict:
    """Nested adapters from {site path: object} of the method `name`; the root's path is empty."""
    return tree.unflatten({f"{path}/{name}".lstrip("/"): adapter for path, adapter in adapters.items()})


def in_rows(path: str, span: tuple[int, int], rows: int) -> str:
    """The path of a site of the layer stack, for some of its rows."""
    return path if span == (0, rows) else path.replace("layers/", f"layers/{span[0]}:{span[1]}/", 1)


class Found(NamedTuple):
    """An adapter object in a tree of adapters."""

    path: str  # of the object: site path and method's name
    site: str  # canonical: without row ranges
    rows: slice  # of the layer stack; all of what is not in it
    adapter: Any


def find(adapters: Tree, kind: type | tuple[type, ...]) -> Iterator[Found]:
    """Every adapter object of the given classes."""
    for key, leaf in jax.tree_util.tree_leaves_with_path(adapters, is_leaf=lambda x: not isinstance(x, Mapping)):
        if isinstance(leaf, kind):
            path = tree.path_name(key)
            rows = slice(*span(path, ALL)) if layered(path) else slice(None)
            yield Found(path, whole_path(path).rpartition("/")[0], rows, leaf)


def replace(adapters: Tree, kind: type | tuple[type, ...], f: Callable[[Found], Mapping[str, Any]]) -> Tree:
    """The adapters with each object of the given classes replaced by those of `f(found) -> {path: object}`."""
    new: dict[str, Any] = {}
    drop: set[str] = set()
    for found in find(adapters, kind):
        new |= f(found)
        drop.add(found.path)
    if not drop:
        return adapters
    kept = {
        tree.path_name(key): leaf
        for key, leaf in jax.tree_util.tree_leaves_with_path(adapters, is_leaf=lambda x: not isinstance(x, Mapping))
    }
    return tree.unflatten({path: leaf for path, leaf in kept.items() if path not in drop} | new)


def canonical(params: Tree) -> Tree:
    """Parameters with a whole layer stack."""
    return {**params, "layers": uncut(params["layers"])}


def change(params: dict[str, jax.Array], path: str, rows: slice, f: Callable[[jax.Array], jax.Array]) -> None:
    """Applies `f` in fp32 to some rows of a leaf of flat parameters, in place; the leaf keeps its dtype."""
    leaf = params[path]
    new = f(leaf[rows].astype("float32")).astype(leaf.dtype)
    params[path] = leaf.at[rows].set(new)
