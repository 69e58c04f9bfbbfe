"""A finished run, ready to evaluate or to generate from."""

import logging
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ftjax import methods, tree
from ftjax.errors import UserError
from ftjax.train.build import Parts, build
from ftjax.train.checkpoint import read_best, read_config
from ftjax.train.fields import Fields

Tree = Any
log = logging.getLogger(__name__)


def load_run(workdir: Path) -> tuple[Fields, Parts]:
    """A run's config, and its parts with the best trained leaves.

    Raises:
      UserError: no run there, or no checkpoint yet.
    """
    f = Fields(read_config(workdir))
    parts = build(f)
    return f, parts._replace(variables=warm_start(parts.variables, workdir))


def warm_start(variables: Tree, workdir: Path) -> Tree:
    """Variables with the best trained leaves of another run in place of theirs; a head of another task stays new.

    Raises:
      UserError: the run trained something that this model and method do not have.
    """
    before: Any = read_config(workdir).get("warm_start")
    if before:  # that run's checkpoint holds only what it trained, on top of the run that it started from
        variables = warm_start(variables, Path(before))
    saved = read_best(workdir)
    mine = tree.flatten(variables)
    for path, leaf in saved.items():
        if re.match(methods.TASK_HEAD, path) and (path not in mine or mine[path].shape != leaf.shape):
            log.warning("%s: %s belongs to another task; newly initialised here", workdir, path)
            continue
        if path not in mine or mine[path].shape != leaf.shape:
            here = f"has shape {mine[path].shape}" if path in mine else "is not there"
            raise UserError(f"{workdir}: {path} {leaf.shape} of that run {here} in this one; match model and method")
        mine[path] = jnp.asarray(leaf)
    return tree.map_paths(lambda path, _: mine[path], variables)
