"""The layer stack: parameters stored `[L, ...]`, run by one scan, whole or cut by rows.

A stack is a tree whose leaves lead with L, or has such trees of fewer rows under row ranges (`{"0:6": ...,
"6:8": ...}`) where trainability or adapters change along it. Parameters and adapters may be cut differently,
adapters of several methods too, with gaps and overlaps: the run takes the union of the cuts, and a row all that
covers it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from ftjax import tree

Tree = Any
_ROWS = re.compile(r"(\d+):(\d+)")
_STACK = re.compile(r"(?P<above>(?:^|.*/)layers)/(?:(?P<first>\d+):(?P<end>\d+)/)?")


def layered(path: str) -> bool:
    """Whether a leaf or site at this path is one of a layer stack: it has rows."""
    return _STACK.match(path) is not None


def whole_path(path: str) -> str:
    """The path without the rows of a cut stack: `layers/0:6/attn` -> `layers/attn`."""
    return _STACK.sub(r"\g<above>/", path, count=1)


def span(path: str, rows: int) -> tuple[int, int]:
    """(first row, end row) that the path names, of a stack of so many rows."""
    found = _STACK.match(path)
    return (int(found["first"]), int(found["end"])) if found and found["first"] else (0, rows)


def parts(stack: Tree, rows: int) -> list[tuple[tuple[int, int], Tree]]:
    """[((first row, end row), tree)]: one for a whole stack, none for an empty one; what is whole comes first."""
    if not isinstance(stack, Mapping):
        return [((0, rows), stack)]
    spans = {key: match for key in stack if (match := _ROWS.fullmatch(key))}
    whole = {key: value for key, value in stack.items() if key not in spans}
    found = sorted(((int(m[1]), int(m[2])), stack[key]) for key, m in spans.items())
    return [((0, rows), whole), *found] if whole else found


def cut(stack: Tree, rows: int, boundaries: Sequence[int]) -> Tree:
    """A whole stack cut at the given row numbers; the stack itself where there is nothing to cut."""
    edges = sorted({0, rows, *boundaries})
    if edges == [0, rows]:
        return stack
    if edges[0] < 0 or edges[-1] > rows:
        raise ValueError(f"a cut at {sorted(boundaries)} is outside a stack of {rows} layers")
    return {f"{a}:{b}": jax.tree.map(lambda x, a=a, b=b: x[a:b], stack) for a, b in pairwise(edges)}


def uncut(stack: Tree, module: str = "") -> Tree:
    """The canonical `[L, ...]` stack of one that was cut, or a module of it."""
    pieces = [piece[module] if module else piece for _, piece in parts(stack, 0)]
    return pieces[0] if len(pieces) == 1 else jax.tree.map(lambda *xs: jnp.concatenate(xs), *pieces)


def _take(pieces: list[tuple[tuple[int, int], Tree]], a: int, b: int) -> Tree:
    found = []
    for (start, end), piece in pieces:
        if start <= a and b <= end:
            rows = slice(a - start, b - start)
            whole = (start, end) == (a, b)
            found.append(piece if whole else jax.tree.map(lambda x, rows=rows: x[rows], piece))
    return tree.merge({}, *found)


def _unstack(row: Tree, n: int) -> list[Tree]:
    # lax.split transposes to one concatenation; indexing would transpose to n additions of the whole stack.
    leaves, treedef = jax.tree.flatten(row)
    columns = [[row[0] for row in jax.lax.split(x, (1,) * n)] for x in leaves]
    return [treedef.unflatten([column[i] for column in columns]) for i in range(n)]


def run_layers(
    block: Callable[..., tuple[Any, Tree, Any]],
    stacks: Mapping[str, Tree],
    carry: Any,
    *,
    held: Tree = None,
    rows: int,
    repeats: int = 1,
    unroll: int = 1,
    remat: bool = False,
) -> tuple[Any, Tree, Any]:
    """Runs `block(carry, held, place, row, {name: row's tree}) -> carry, held, out` over all rows.

    Args:
      stacks: {collection: stack}, cut or whole; a collection missing in some rows gives `{}` there.
      carry: what flows through the rows (hidden states).
      held: a stack that is changed in place (the cache), which a row gets, and gives, with its own `place` in it; or a
        list of all rows' trees, of which it gets and gives its own (place None).
      repeats: how often one row is run, where all layers share it (rows = 1).
      unroll: rows per scan iteration; -1 for none of the scan.
      remat: recompute a row's activations in its backward pass.
    Returns:
      (carry, held, outs stacked over rows).
    """
    pieces = {name: parts(stack, rows) for name, stack in stacks.items()}
    shared: dict[str, Tree] = {}
    if repeats > 1:
        shared = {name: jax.tree.map(lambda x: x[0], _take(spans, 0, 1)) for name, spans in pieces.items()}
        pieces = {}
    n, apart, outs = rows * repeats, isinstance(held, list), []
    edges = {0, n, *(edge for found in pieces.values() for span, _ in found for edge in span)}

    def body(both: Any, xs: tuple[jax.Array, dict[str, Tree]]) -> tuple[Any, Any]:
        *both, out = block(*both, None if apart else xs[0], xs[0], shared or xs[1])
        return tuple(both), out

    for a, b in pairwise(sorted(edges | set(range(n)) if apart else edges)):
        trees = {name: _take(spans, a, b) for name, spans in pieces.items()}
        both, alone = (carry, held[a] if apart else held), unroll < 0 or b - a == 1
        run = jax.checkpoint(body, prevent_cse=alone) if remat else body
        if alone:
            for i, row in enumerate(_unstack(trees, b - a)):
                both, out = run(both, (jnp.asarray(a + i), row))
                outs.append(jax.tree.map(lambda x: x[None], out))
        else:
            both, out = jax.lax.scan(run, both, (jnp.arange(a, b), trees), unroll=unroll)
            outs.append(out)
        carry, new = both
        held = [*held[:a], new, *held[b:]] if apart else new
    return carry, held, outs[0] if len(outs) == 1 else jax.tree.map(lambda *xs: jnp.concatenate(xs), *outs)
