"""A run's model as a Hugging Face directory."""

from pathlib import Path
from typing import Any

from ftjax import hub
from ftjax.files import whole
from ftjax.hub import files
from ftjax.train.build import Parts
from ftjax.train.fields import Fields

KEPT = ("pad_token_id", "bos_token_id", "eos_token_id")  # of the base's config.json


def save_model(f: Fields, parts: Parts, params: Any, folder: Path) -> None:
    """config.json (with the names of the task's classes), model.safetensors and the tokenizer's files, or nothing.

    Args:
      params: plain ones, as `Method.merge` gives them.
    """
    base = files.read_json(files.resolve(f.model.path) / "config.json")
    extra: dict[str, Any] = {key: base[key] for key in KEPT if base.get(key) is not None}
    if classes := parts.task.classes(f.task):
        extra["id2label"] = {str(i): name for i, name in enumerate(classes)}
        extra["label2id"] = {name: i for i, name in enumerate(classes)}
        if parts.tokenizer.pad_token_id is not None:
            extra.setdefault("pad_token_id", parts.tokenizer.pad_token_id)
    with whole(folder) as aside:
        hub.save(aside, parts.model, params, extra=extra)
        parts.tokenizer.save_pretrained(aside)
