"""ftjax export --workdir=RUN --format=peft|hf --output=DIR: a run's best checkpoint in the formats of others.

peft: an adapter folder (adapter_config.json, adapter_model.safetensors) that PEFT loads onto the base model.
hf: a model directory that transformers loads, the adapters merged into the weights, with the tokenizer's files.
"""

from pathlib import Path
from typing import Any

from absl import flags

from ftjax.errors import UserError
from ftjax.files import as_path, local

FORMATS = ("peft", "hf")


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags."""
    flags.DEFINE_string("workdir", None, "a run's folder", flag_values=values)
    flags.DEFINE_string("format", "peft", "peft or hf", flag_values=values)
    flags.DEFINE_string("output", None, "the folder to write", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Writes the folder, and prints its files."""
    get: Any = lambda name: values[name].value  # noqa: E731
    workdir, form, output = get("workdir"), get("format"), get("output")
    if form not in FORMATS:
        raise UserError(f"--format={form}: give {' or '.join(FORMATS)}")
    if not workdir or not output:
        raise UserError("give --workdir=RUN and --output=DIR")
    folder = local(output, "--output")
    from ftjax.train.restore import load_run
    from ftjax.train.save import save_model

    f, parts = load_run(as_path(workdir))
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output={output} is a file; give a folder")
    if form == "peft":
        _peft(f, parts, folder)
    else:
        merged = parts.method.merge(parts.variables["params"], parts.variables["adapters"], parts.model.cfg)
        save_model(f, parts, merged, folder, [as_path(workdir)])
    print("\n".join(str(file) for file in sorted(folder.iterdir())))


def _peft(f: Any, parts: Any, folder: Path) -> None:
    from ftjax import tree
    from ftjax.hub import peft
    from ftjax.train.restore import changes_base

    if changes_base(f.warm_start):
        raise UserError(
            f"this adapter belongs to the weights that {f.warm_start} trained, not to those of {f.model.path}; write"
            " both merged by --format=hf"
        )
    if f.model.init == "random" or f.model.layers:
        raise UserError(f"this adapter's base is not {f.model.path} as it is there; write both merged by --format=hf")
    params = parts.variables["params"]
    trained = {path.split("/")[1] for path, label in tree.flatten(parts.labels).items() if label == "head"}
    if "pooler" in trained and _is_base_pooler(f, parts):
        trained.remove("pooler")
    text = parts.tokenizer("a")["input_ids"]
    opening = {parts.tokenizer.cls_token_id, parts.tokenizer.bos_token_id} - {None}
    peft.write(
        folder, parts.model, params, f.method.name, f.method, parts.variables["adapters"],
        base=f.model.path, head=tuple(trained), opens=bool(text) and text[0] in opening,
    )  # fmt: skip


def _is_base_pooler(f: Any, parts: Any) -> bool:
    """Whether the pooler is that of the base's files, as after an import: no adapter folder needs it then."""
    import numpy as np

    from ftjax import hub
    from ftjax.hub import files, names

    family = hub.family_of(parts.model.cfg)
    stored = names.normalise(family, files.read_weights(files.resolve(f.model.path)))
    places = family.places(parts.model.cfg)
    for leaf, value in parts.variables["params"]["pooler"].items():
        weight = places[f"pooler/{leaf}"]
        if weight.name not in stored:
            return False
        base = stored[weight.name].read(())
        if not np.array_equal((base.T if weight.transpose else base).astype(value.dtype), np.asarray(value)):
            return False
    return True
