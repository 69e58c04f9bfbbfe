"""ftjax import --adapter=DIR --model=NAME_OR_DIR --workdir=RUN [--config=configs/default.py:task=...]

Makes a run of a PEFT adapter folder: `ftjax eval`, `generate` and `export` work from it, and a run warm-started from it
trains on. The method and its fields come from the adapter; any other field is set by --config.field=value.
"""

import json
from pathlib import Path
from typing import Any

from absl import flags

from ftjax.cli.flags import config_file, define_config, read_config, run_config
from ftjax.errors import UserError
from ftjax.files import local


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags."""
    define_config(values, argv)
    flags.DEFINE_string("adapter", None, "the folder of a saved PEFT adapter", flag_values=values)
    flags.DEFINE_string("model", None, "its base: a shipped model, a hub id or a local directory", flag_values=values)
    flags.DEFINE_string("workdir", None, "the run's folder, which is made", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Makes the run, and prints its method, fields and sizes."""
    from ftjax import tree
    from ftjax.hub import peft
    from ftjax.train.build import build, get_kind, get_task, load_model
    from ftjax.train.fields import Fields

    get: Any = lambda name: values[name].value  # noqa: E731
    adapter, model, workdir = get("adapter"), get("model"), get("workdir")
    missing = [
        f"--{name}=..." for name, value in dict(adapter=adapter, model=model, workdir=workdir).items() if not value
    ]
    if missing:
        raise UserError(f"give {', '.join(missing)}")
    folder = local(workdir, "--workdir")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--workdir={workdir} is there already; take another one")
    f = Fields(_config(values, f"model={model}"))
    task = get_task(f)
    found = peft.read(adapter, *load_model(f, get_kind(f, task), task.classes(f.task)))
    config = _config(values, f"model={model},method={found.method}")
    config.method.update(found.fields)
    parts = build(Fields(config))
    variables = _take_over(parts.variables, found, adapter)
    trained = tree.flatten(tree.split(variables, parts.labels)[0])
    if lost := sorted(found.head.keys() - trained.keys()):
        raise UserError(
            f"{adapter}: holds {', '.join(lost)}, which this task keeps as the base has it; merge it in PEFT"
        )
    result = {
        "imported": str(adapter),
        "method": config.method.to_dict(),
        "metrics": {},
        "steps": 0,
        "trainable_parameters": tree.count(trained),
        "total_parameters": tree.count(parts.variables["params"]),
    }
    _write(folder, config, trained, result)
    print(json.dumps(result, indent=2))


def _config(values: flags.FlagValues, axes: str) -> Any:
    """The config flag's, of other axes, with the command line's overrides.

    Raises:
      UserError: a model or method, as an axis or by a field: --model and the adapter say them.
    """
    from ftjax.train.fields import leaves

    config, default = read_config(values)
    before = dict(leaves(default))
    changed = {path: value for path, value in leaves(config) if before[path] != value}
    path, given = config_file(values)
    wrong = [f"config.{path}" for path in changed if path.startswith("method.") or path == "model.path"]
    wrong += [item for item in given.split(",") if item.startswith(("model=", "method="))]
    if wrong:
        raise UserError(f"{', '.join(wrong)}: --model and the adapter say it; remove it")
    new = run_config(path)(",".join(filter(None, (given, axes))))
    new.update_from_flattened_dict(changed)
    return new


def _take_over(variables: Any, found: Any, adapter: str) -> Any:
    """The run's variables with the adapter's numbers, where its fields rebuild the same structure.

    Raises:
      UserError: an adapter of another structure.
    """
    import jax
    import numpy as np

    from ftjax import tree

    mine, theirs = variables["adapters"], found.adapters
    same = jax.tree.structure(mine) == jax.tree.structure(theirs) and all(
        x.shape == y.shape for x, y in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs))
    )
    if same and found.method == "lora":  # scales and rates are not trained, and so in no checkpoint
        flat = tree.flatten(theirs)
        same = all(
            np.array_equal(x, flat[path])
            for path, x in tree.flatten(mine).items()
            if path.endswith(("/scale", "/rate"))
        )
    if not same:
        raise UserError(
            f"{adapter}: its layers differ in a way that the fields of method={found.method} cannot say, so it can be"
            " no run; take ftjax.load_adapter"
        )
    new = {path.removeprefix("params/"): value for path, value in found.head.items()}
    return {"params": tree.merge(variables["params"], tree.unflatten(new)), "adapters": theirs}


def _write(folder: Path, config: Any, trained: dict[str, Any], result: dict[str, Any]) -> None:
    """A run's folder with a checkpoint of its best, and the result of one that is done."""
    import jax.numpy as jnp
    import orbax.checkpoint as ocp

    from ftjax import tree
    from ftjax.files import whole, write_json

    if folder.exists():
        folder.rmdir()  # empty
    with whole(folder) as aside:
        best = (aside / "checkpoints" / "best").resolve()
        leaves = tree.unflatten({path: jnp.asarray(x, jnp.float32) for path, x in trained.items()})
        with ocp.CheckpointManager(best, options=ocp.CheckpointManagerOptions()) as manager:
            manager.save(0, args=ocp.args.StandardSave(leaves))
        write_json(aside / "result.json", result)
        write_json(aside / "config.json", config.to_dict())
