"""A finished run, ready to evaluate or to generate from."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ftjax import methods, tree
from ftjax.errors import UserError
from ftjax.files import as_path
from ftjax.nn.layers import cut, span, uncut, whole_path
from ftjax.nn.layers import parts as spans
from ftjax.train.build import Parts, get_kind, get_task
from ftjax.train.build import build as parts_of
from ftjax.train.checkpoint import read_best, read_config
from ftjax.train.fields import Fields

Tree = Any
log = logging.getLogger(__name__)
OF_A_TASK = rf"{methods.TASK_HEAD}|^params/(head|generator)/"  # the vocabulary's head, ELECTRA's generator
CLASSIFIER = r"^params/(pair_)?classifier/"  # an output means a class
ONLY_AT_START = ("dropout", "init", "text", "init_std")  # fields of a method that do not change what its leaves mean


class Start(NamedTuple):
    """What a run starts from: {path: array} that the runs before it trained last, their methods' fields, and the config
    of the run that the classifier is of, if there is one."""

    leaves: dict[str, np.ndarray]
    methods: dict[str, dict[str, Any]]
    classifies: Fields | None


def read_start(workdir: Path) -> Start:
    """Everything that a finished run, and those that it was started from, trained.

    Raises:
      UserError: no run there, or no checkpoint yet.
    """
    config: Any = read_config(workdir)
    before = read_start(as_path(config.warm_start)) if config.get("warm_start") else Start({}, {}, None)
    mine = of_model(read_best(workdir))
    # in the order of the runs: whole leaves and rows of them may be of different ones
    leaves = {path: x for path, x in before.leaves.items() if path not in mine} | mine
    mine_is = any(re.match(CLASSIFIER, path) for path in mine)
    return Start(
        leaves, before.methods | sections(config.method.to_dict()), Fields(config) if mine_is else before.classifies
    )


def sections(fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{method: its fields} of the method axis, composed or not."""
    names = fields["name"].split("+")
    one = {key: value for key, value in fields.items() if key != "name"}
    return {names[0]: one} if len(names) == 1 else {name: dict(fields[name]) for name in names}


def changes_base(workdir: str) -> bool:
    """Whether a run that others start from trained weights of the base, and not its head alone."""
    return bool(workdir) and any(
        path.startswith("params/") and not re.match(methods.TASK_HEAD, path)
        for path in read_start(as_path(workdir)).leaves
    )


def load_run(workdir: Path, mesh: Mesh | None = None, changes: Mapping[str, Any] = {}) -> tuple[Fields, Parts]:
    """A run's config, with changes by the path of a field, and its parts with the best trained leaves. Where a mesh is
    given, the base is read onto it, and the config has its sizes.

    Raises:
      UserError: no run there, or no checkpoint yet.
    """
    config: Any = read_config(workdir)
    config.update_from_flattened_dict(changes)
    if mesh is not None:
        config.mesh.update(mesh.shape)
    f = Fields(config)
    best = of_model(read_best(workdir))
    parts = build(f, f.warm_start, mesh, best)
    variables = put(parts.variables, best, parts.model.cfg.rows, str(workdir))
    return f, parts._replace(variables=variables, fresh=_without(parts, best))


def of_model(leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Trained leaves without those that were for matching a teacher alone."""
    return {path: x for path, x in leaves.items() if not path.startswith("distill/")}


def build(f: Fields, warm_start: str = "", mesh: Mesh | None = None, best: Mapping[str, np.ndarray] = {}) -> Parts:
    """The parts of a run, from the base (read onto a mesh, where one is given) or from where another run ended.

    Args:
      best: what the run itself trained, if it did: of its own classifier the other run's is not asked.
    Raises:
      UserError: as `train.build.build`; a run to start from whose leaves do not fit, or mean something else here.
    """
    if not warm_start:
        return parts_of(f, mesh=mesh)
    start = read_start(as_path(warm_start))
    mine = sections(f.method.to_dict())
    for name in start.methods.keys() & mine.keys():
        theirs = {key: _plain(value) for key, value in start.methods[name].items() if key not in ONLY_AT_START}
        wrong = [f"{key}={_plain(mine[name].get(key))!r} ({value!r} there)" for key, value in theirs.items()
                 if _plain(mine[name].get(key)) != value]  # fmt: skip
        if wrong:
            raise UserError(
                f"warm_start={warm_start}: method={name} needs the fields of that run, not {', '.join(wrong)}"
            )
    leaves = start.leaves
    mine_is = any(re.match(CLASSIFIER, path) for path in best)
    why = "" if mine_is or not start.classifies else _other_classes(start.classifies, f)
    if why:
        log.warning("%s: %s; newly initialised here", warm_start, why)
    if why or mine_is:
        leaves = {path: x for path, x in leaves.items() if not re.match(CLASSIFIER, path)}
    # What of the base was trained is there before a method looks at the base, what a method made comes after it.
    base = {path: x for path, x in leaves.items() if path.startswith("params/")}
    parts = parts_of(f, lambda params, rows: put({"params": params}, base, rows, warm_start)["params"], mesh)
    found = put(parts.variables, leaves, parts.model.cfg.rows, warm_start)

    def kept(x: jax.Array, here: jax.Array, label: str) -> jax.Array:
        return x.astype(here.dtype) if label == tree.FREEZE else x  # what trains goes on in fp32

    variables = jax.tree.map(kept, found, parts.variables, parts.labels)
    return parts._replace(variables=variables, fresh=_without(parts, leaves))


def _other_classes(theirs: Fields, mine: Fields) -> str:
    """Why the outputs of two runs' classifiers do not mean the same, as far as anyone knows; '' where they do."""
    try:
        known, here = [(get_kind(f, get_task(f)), get_task(f).classes(f.task)) for f in (theirs, mine)]
    except UserError as error:  # the data that would say so are gone
        return f"what the classes of its classifier are cannot be told ({error})"
    return "" if known == here else "its classifier is of other classes"


def _without(parts: Parts, leaves: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """What is new in parts, once leaves are put there."""
    shapes = {path: x.shape for path, x in tree.flatten(parts.variables).items()}
    taken = {path for path, x in leaves.items() if shapes.get(path, x.shape) == x.shape}
    return tuple(path for path in parts.fresh if f"params/{path}" not in taken)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def put(variables: Tree, leaves: Mapping[str, np.ndarray], rows: int, where: str) -> Tree:
    """Variables with trained leaves in place of theirs, on the same devices; a head of another size stays new.

    Raises:
      UserError: a leaf that is not there, or of another shape.
    """
    params = variables["params"]
    edges = [edge for ends, _ in spans(params["layers"], rows) for edge in ends]
    whole = {**variables, "params": {**params, "layers": uncut(params["layers"])}}
    mine = tree.flatten(whole)
    for path, leaf in leaves.items():
        name = whole_path(path) if path.startswith("params/") else path  # adapters stay cut as they are
        part = slice(None) if name == path else slice(*span(path, rows))
        fits = name in mine and mine[name][part].shape == leaf.shape
        if re.match(OF_A_TASK, name) and not fits:
            log.warning("%s: %s belongs to another task; newly initialised here", where, name)
            continue
        if not fits:
            here = f"has shape {mine[name].shape}" if name in mine else "is not there"
            raise UserError(f"{where}: {path} {leaf.shape} of that run {here} in this one; match model and method")
        old, all_rows = mine[name], part == slice(None)
        mine[name] = jax.device_put(leaf, old.sharding) if all_rows else old.astype(leaf.dtype).at[part].set(leaf)
    new = tree.map_paths(lambda path, _: mine[path], whole)
    return {**new, "params": {**new["params"], "layers": cut(new["params"]["layers"], rows, edges)}}
