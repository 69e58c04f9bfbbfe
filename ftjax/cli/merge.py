"""ftjax merge --workdir=RUN [--workdir=RUN2 --weights=0.5,0.5] --output=DIR: adapters into plain weights.

Writes a Hugging Face directory with the tokenizer. Several runs of LoRA on one base are merged as their weighted sum.
The runs keep their adapters and the base is not changed, so a merge is undone by not using it.
"""

from typing import Any

from absl import flags

from ftjax.errors import UserError
from ftjax.files import as_path, local


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags."""
    flags.DEFINE_multi_string("workdir", [], "a run's folder; repeat for more", flag_values=values)
    flags.DEFINE_list("weights", [], "of the runs' adapters, 1 each where not given", flag_values=values)
    flags.DEFINE_string("output", None, "the folder to write", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Merges and saves."""
    from ftjax import methods, tree
    from ftjax.train.restore import changes_base, load_run
    from ftjax.train.save import save_model

    get: Any = lambda name: values[name].value  # noqa: E731
    workdirs, written = [as_path(name) for name in get("workdir")], get("weights")
    if not workdirs or not get("output"):
        raise UserError("give --workdir=RUN (one or more) and --output=DIR")
    folder = local(get("output"), "--output")
    try:
        weights = [float(w) for w in written] or [1.0] * len(workdirs)
    except ValueError:
        raise UserError(f"--weights={','.join(written)}: give numbers, as in 0.5,0.5") from None
    if len(weights) != len(workdirs):
        raise UserError(f"--weights: {len(weights)} weights for {len(workdirs)} runs; give one each")
    runs = [load_run(workdir) for workdir in workdirs]
    f, parts = runs[0]
    adapters = parts.variables["adapters"]
    if len(runs) > 1 or weights != [1.0]:
        bases = {_base(run) for run, _ in runs}
        trained = {path for _, one in runs for path, name in tree.flatten(one.labels).items() if name != tree.FREEZE}
        whole = any(path.startswith("params/") for path in trained)
        if len(bases) > 1 or whole or any(changes_base(run.warm_start) for run, _ in runs):
            raise UserError(
                f"a weighted sum is of LoRA runs on one base ({'; '.join(sorted(bases))}) that train nothing of it, nor"
                " a head; merge them one by one"
            )
        each = [one.method.expand(one.variables["adapters"], one.variables["params"]) for _, one in runs]
        adapters = methods.combine(each, weights)
    merged = parts.method.merge(parts.variables["params"], adapters, parts.model.cfg)
    save_model(f, parts, merged, folder, workdirs)
    print(f"{folder}: {tree.count(merged):,} parameters, {f.method.name} merged into {f.model.path}")


def _base(f: Any) -> str:
    """What a run's base weights are of."""
    layers = f", layers {', '.join(map(str, f.model.layers))}" if f.model.layers else ""
    return f"{f.model.path}{layers}{f', random by seed={f.seed}' if f.model.init == 'random' else ''}"
