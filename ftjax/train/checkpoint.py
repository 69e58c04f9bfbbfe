"""A run's folder: its config, and checkpoints of what trains (never of the frozen base)."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from ftjax import tree
from ftjax.errors import RunError, UserError
from ftjax.files import absolute, bucket_errors, make_folder, read_text, write_json, writing
from ftjax.parallel.processes import is_first
from ftjax.train.fields import leaves

Tree = Any
log = logging.getLogger(__name__)

PASSING = (  # what tensorstore and XLA call what is not the files' fault
    "(UNKNOWN|INTERNAL|UNAVAILABLE|RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|ABORTED"
    "|CANCELLED):"
)


def read_config(workdir: Path) -> ConfigDict:
    """The config of a run's folder.

    Raises:
      UserError: no such run.
    """
    path = workdir / "config.json"
    try:
        return ConfigDict(json.loads(read_text(path)))
    except FileNotFoundError:
        raise UserError(f"{workdir} is no run: it has no config.json; give the --workdir of a finished train") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); restore it or start another workdir") from None


def claim(workdir: Path, config: ConfigDict) -> None:
    """Makes the folder this config's, or checks that it is; a run may go on on another mesh.

    Raises:
      UserError: the folder holds a run of another config; names the fields.
    """
    if (workdir / "config.json").exists():
        mine = {path: _plain(value) for path, value in leaves(config)}
        theirs = {path: _plain(value) for path, value in leaves(read_config(workdir))}
        differ = [f"{k} ({theirs.get(k)!r} there, {mine.get(k)!r} now)" for k in sorted(mine.keys() | theirs.keys())
                  if theirs.get(k) != mine.get(k) and not k.startswith("mesh.")]  # fmt: skip
        if differ:
            raise UserError(f"{workdir} holds a run of another config: {', '.join(differ)}; take another --workdir")
        return
    if not is_first():
        return
    make_folder(workdir)
    write_json(workdir / "config.json", config.to_dict())


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def read_best(workdir: Path) -> dict[str, np.ndarray]:
    """{path: array} of a run's best trained leaves, as saved.

    Raises:
      UserError: no such run, or it has no checkpoint.
      RunError: one that may be whole, but cannot be read now.
    """
    read_config(workdir)
    folder = absolute(workdir / "checkpoints" / "best")
    if not folder.exists():
        raise UserError(f"{workdir} has no checkpoint yet; let it reach its first evaluation")
    options = ocp.CheckpointManagerOptions(create=False, read_only=True)
    with ocp.CheckpointManager(folder, options=options) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(f"{workdir} has no checkpoint yet; let it reach its first evaluation")
        try:
            metadata: Any = ocp.StandardCheckpointer().metadata(folder / str(step) / "default")
            shapes = metadata.item_metadata.tree
            like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)  # on the host, whatever mesh trained it
            found = manager.restore(step, args=ocp.args.StandardRestore(like))
        except Exception as error:  # orbax and tensorstore raise what they like on damaged files
            if passing := _passing(error):
                raise RunError(
                    f"{folder}: checkpoint {step} cannot be read now ({passing}); give the same command again"
                ) from None
            what = str(error).splitlines()[0]
            raise UserError(
                f"{folder}: checkpoint {step} cannot be read ({what}); train again in another --workdir"
            ) from None
    return tree.flatten(found)


class Checkpoints:
    """`checkpoints/last` (the two newest whole states) and `checkpoints/best` (the two best trained leaves)."""

    def __init__(self, workdir: Path):
        self._root = absolute(workdir / "checkpoints")
        with writing(self._root):
            self._last, self._best = (
                ocp.CheckpointManager(self._root / name, options=ocp.CheckpointManagerOptions(max_to_keep=2))
                for name in ("last", "best")
            )

    def save(self, step: int, state: Tree, progress: dict[str, Any], best: bool) -> None:
        """Saves a state and JSON-able progress (data position, best metric, ...); in the background.

        Raises:
          UserError: a place that cannot be written to, by this or the last state.
        """
        with writing(self._root):
            if best and step not in self._best.all_steps():
                self._best.save(step, args=ocp.args.StandardSave(_dicts(state["train"])))
                self._best.wait_until_finished()  # no state may call a step the best before its leaves are there
            if step not in self._last.all_steps():
                whole, rest = ocp.args.StandardSave(_dicts(state)), ocp.args.JsonSave(progress)
                self._last.save(step, args=ocp.args.Composite(state=whole, progress=rest))

    def restore(self, like: Tree) -> tuple[Tree, dict[str, Any]] | None:
        """The newest readable state, placed as `like` is, and its progress; None where there is none.

        A damaged checkpoint is named in the log, and the one before it taken.

        Raises:
          UserError: all of them are damaged.
          RunError: one that may be whole, but cannot be read now.
        """
        steps, damaged = sorted(self._last.all_steps(), reverse=True), []
        for step in steps:
            try:
                args = ocp.args.Composite(
                    state=ocp.args.StandardRestore(_abstract(like)), progress=ocp.args.JsonRestore()
                )
                found = self._last.restore(step, args=args)
            except Exception as error:  # orbax and tensorstore raise what they like on damaged files
                if passing := _passing(error):
                    raise RunError(
                        f"{self._last.directory}: checkpoint {step} cannot be read now ({passing}); give the same"
                        " command again, or remove it to go on from the one before"
                    ) from None
                what = (str(error) or type(error).__name__).splitlines()[0]
                log.warning("checkpoint %s is damaged (%s); trying the one before", step, what)
                damaged.append(step)
                continue
            for later in damaged:  # or they would stay: a step that is there is not saved again
                self._last.delete(later)
            for later in [s for s in self._best.all_steps() if s > step]:  # of a life that is not gone on with
                self._best.delete(later)
            return _like(found["state"], like), found["progress"]
        if steps:
            where = self._last.directory
            raise UserError(f"no checkpoint of {where} can be read (steps {steps}); start another workdir")
        return None

    def close(self) -> None:
        """Waits for what is still being written."""
        with writing(self._root):
            for manager in (self._last, self._best):
                manager.wait_until_finished()
                manager.close()


def _passing(error: BaseException | None) -> str:
    """What an error, or one that it comes of, tells of the machine or the network; '' where it tells of the files."""
    absent = FileNotFoundError | NotADirectoryError | IsADirectoryError
    while error is not None:
        of_machine = isinstance(error, (OSError, MemoryError, *bucket_errors())) and not isinstance(error, absent)
        if of_machine or re.match(PASSING, str(error)):
            return (str(error) or type(error).__name__).splitlines()[0]
        error = error.__cause__ or error.__context__
    return ""


def _dicts(values: Tree) -> dict:
    return tree.unflatten(tree.flatten(values))


def _abstract(values: Tree) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _dicts(values))


def _like(found: dict, like: Tree) -> Tree:
    flat = tree.flatten(found)
    return tree.map_paths(lambda path, _: flat[path], like)
