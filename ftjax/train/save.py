"""A run's model as a Hugging Face directory."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftjax import hub, tree
from ftjax.files import read_text, whole
from ftjax.hub import files
from ftjax.train.build import Parts
from ftjax.train.fields import Fields


def save_model(f: Fields, parts: Parts, params: Any, folder: Path, runs: Sequence[Path]) -> None:
    """config.json (with the names of the task's classes), model.safetensors, the tokenizer's files and a model card
    (README.md), or nothing. A model that the kind trains beside it (ELECTRA's generator) is in a folder inside.

    Args:
      params: plain ones, as `Method.merge` gives them; runs: where they come from.
    """
    extra: dict[str, Any] = {}
    if (start := parts.setting.decoder_start) is not None:
        extra["decoder_start_token_id"] = start
    if parts.model.cfg.encoder is not None:
        extra |= parts.setting.forced
    if classes := parts.task.classes(f.task):
        extra["id2label"] = {str(i): name for i, name in enumerate(classes)}
        extra["label2id"] = {name: i for i, name in enumerate(classes)}
        base = files.special_ids(files.resolve(f.model.path, weights=False))
        if parts.tokenizer.pad_token_id is not None and "pad_token_id" not in base:
            extra["pad_token_id"] = parts.tokenizer.pad_token_id
    told = getattr(parts.tokenizer, "tgt_lang", None)  # by the task, perhaps, and not by the base's files
    languages = {name: getattr(parts.tokenizer, name) for name in ("src_lang", "tgt_lang")} if told else {}
    with whole(folder) as aside:
        for name, (model, values) in parts.kind.models(parts.setting, params).items():
            hub.save(aside / name, model, values, like=f.model.path, extra=extra)
            files.amend(aside / name / "tokenizer_config.json", languages)
        (aside / "README.md").write_text(card(f, parts, params, runs), "utf-8")


def card(f: Fields, parts: Parts, params: Any, runs: Sequence[Path]) -> str:
    """A model card: what the model was, what was trained on what, and what came of it."""
    base = Path(f.model.path).name if Path(f.model.path).is_dir() else f.model.path
    rows = [
        ("base", f"`{base}`"),
        ("task", f"`{f.task.name}`"),
        ("method", f"`{f.method.name}`, merged into the weights"),
    ]
    rows += [("parameters", f"{tree.count(params):,}")]
    results = [json.loads(read_text(file)) for run in runs if (file := run / "result.json").exists()]
    for result in (found for found in results if found.get("steps")):  # not of an imported adapter
        trained = f"{result['trainable_parameters']:,} parameters, {result['steps']} steps, seed {result['seed']}"
        rows += [("trained", trained), ("config, commit", f"`{result['config_hash']}`, `{result['commit']}`")]
        best = result["best"]
        if len(runs) == 1 and best["value"] is not None:
            rows += [(f"{best['metric']} on `{f.task.eval_split}`", f"{best['value']:.4g}, at step {best['step']}")]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    known = f"base_model: {base}\n" if base == f.model.path and "/" in base else ""
    return (
        f"---\nlibrary_name: transformers\n{known}tags:\n- ftjax\n---\n\n# {base}, fine-tuned on {f.task.name}\n\n"
        f"| | |\n|---|---|\n{table}\n\nTrained and exported by ftjax. The base model's licence and limits apply.\n"
    )
