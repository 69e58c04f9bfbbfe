"""Paths, first-match labels, and the split of a pytree into what trains and what is frozen.

A path is a leaf's keys joined by `/`: `params/layers/attn/q/kernel`, `adapters/layers/attn/q/lora/a`.
Trees are nested dicts whose leaves may sit inside adapter objects (dataclasses); every function keeps structure.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

Tree = Any
FREEZE = "freeze"


def path_name(path: tuple) -> str:
    """`a/b/c` for a key path of `jax.tree_util`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def flatten(tree: Tree) -> dict[str, Any]:
    """{path: leaf}, in the tree's order."""
    return {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(flat: Mapping[str, Any]) -> dict:
    """Nested dicts from {path: leaf}; inverts `flatten` on trees of dicts."""
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def merge(*trees: Tree) -> Tree:
    """One tree of all keys of nested dicts; a later leaf replaces an earlier one."""
    first, *rest = trees
    for other in rest:
        if not (isinstance(first, Mapping) and isinstance(other, Mapping)):
            first = other
            continue
        both = {key: merge(first[key], other[key]) for key in first if key in other}
        first = {**first, **other, **both}
    return first


def map_paths(f: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """`f(path, leaf, *leaves of rest)` over every leaf."""
    return jax.tree_util.tree_map_with_path(lambda p, *xs: f(path_name(p), *xs), tree, *rest)


def first_match(rules: Iterable[tuple[str, Any]], path: str) -> Any:
    """The value of the first rule whose regular expression is found in `path`; KeyError where none is."""
    for pattern, value in rules:
        if re.search(pattern, path):
            return value
    raise KeyError(path)


def label(tree: Tree, rules: Sequence[tuple[str, str]]) -> Tree:
    """A label per leaf, by first match; ValueError names every leaf that no rule covers."""
    missing = [p for p in flatten(tree) if not any(re.search(r, p) for r, _ in rules)]
    if missing:
        raise ValueError(f"no label rule covers {', '.join(missing)}")
    return map_paths(lambda path, _: first_match(rules, path), tree)


def split(tree: Tree, labels: Tree) -> tuple[Tree, Tree]:
    """(train, frozen): the tree twice, each with None where the other holds the leaf."""
    train = jax.tree.map(lambda x, name: None if name == FREEZE else x, tree, labels)
    frozen = jax.tree.map(lambda x, name: x if name == FREEZE else None, tree, labels)
    return train, frozen


def join(train: Tree, frozen: Tree) -> Tree:
    """Inverts `split`."""
    return jax.tree.map(lambda a, b: b if a is None else a, train, frozen, is_leaf=lambda x: x is None)


def count(tree: Tree) -> int:
    """Number of scalars in all leaves (arrays or abstract shapes)."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))
