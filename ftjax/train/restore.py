"""A finished run, ready to evaluate or to generate from."""

import logging
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ftjax import methods, tree
from ftjax.errors import UserError
from ftjax.nn.layers import cut, uncut
from ftjax.nn.layers import parts as spans
from ftjax.train.build import Parts, build
from ftjax.train.checkpoint import read_best, read_config
from ftjax.train.fields import Fields

log = logging.getLogger(__name__)
_ROWS = re.compile(r"params/layers/(\d+):(\d+)/")


def load_run(workdir: Path) -> tuple[Fields, Parts]:
    """A run's config, and its parts with the best trained leaves.

    Raises:
      UserError: no run there, or no checkpoint yet.
    """
    f = Fields(read_config(workdir))
    parts = build(f)
    return f, warm_start(parts, workdir)


def warm_start(parts: Parts, workdir: Path) -> Parts:
    """The parts with the best trained leaves of another run in place of theirs; a head of another task stays new.

    Raises:
      UserError: the run trained something that this model and method do not have.
    """
    rows, params = parts.model.cfg.num_layers, parts.variables["params"]
    edges = [edge for span, _ in spans(params["layers"], rows) for edge in span]
    whole = {**parts.variables, "params": {**params, "layers": uncut(params["layers"], rows)}}
    flat = tree.flatten(whole)
    _take_over(flat, workdir)
    new = tree.map_paths(lambda path, _: flat[path], whole)
    params = {**new["params"], "layers": cut(new["params"]["layers"], rows, edges)}
    return parts._replace(variables={**new, "params": params})


def _take_over(mine: dict[str, Any], workdir: Path) -> None:
    """Puts a run's trained leaves into flat canonical variables."""
    before: Any = read_config(workdir).get("warm_start")
    if before:  # that run's checkpoint holds only what it trained, on top of the run that it started from
        _take_over(mine, Path(before))
    for path, leaf in read_best(workdir).items():
        rows, name = slice(None), path
        if cut_rows := _ROWS.match(path):
            rows, name = slice(int(cut_rows[1]), int(cut_rows[2])), _ROWS.sub("params/layers/", path, count=1)
        fits = name in mine and mine[name][rows].shape == leaf.shape
        if re.match(methods.TASK_HEAD, name) and not fits:
            log.warning("%s: %s belongs to another task; newly initialised here", workdir, name)
            continue
        if not fits:
            here = f"has shape {mine[name].shape}" if name in mine else "is not there"
            raise UserError(f"{workdir}: {path} {leaf.shape} of that run {here} in this one; match model and method")
        mine[name] = jnp.asarray(leaf) if rows == slice(None) else mine[name].astype(leaf.dtype).at[rows].set(leaf)
