"""Adapter folders of PEFT in and out: `read` and `write`, and `load_adapter` for use at once."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ftjax import methods, tree
from ftjax.errors import UserError
from ftjax.hub.names import listing
from ftjax.hub.peft import adaption, files, ia3, lora, prompts
from ftjax.hub.peft.kinds import Kind
from ftjax.hub.peft.modules import ROOT, Base, base_of, head_keys, head_names, head_tensors
from ftjax.models.transformer import Transformer

KINDS: dict[str, Kind] = {
    "LORA": lora.KIND,
    "IA3": ia3.KIND,
    "PREFIX_TUNING": prompts.PREFIX_TUNING,
    "PROMPT_TUNING": prompts.PROMPT_TUNING,
    "P_TUNING": prompts.P_TUNING,
    "ADAPTION_PROMPT": adaption.KIND,
}
WRITES = {
    "lora": "LORA",
    "ia3": "IA3",
    "prefix": "PREFIX_TUNING",
    "prompt": "PROMPT_TUNING",
    "p_tuning": "P_TUNING",
    "llama_adapter": "ADAPTION_PROMPT",
}
WHOLE = ("full", "head", "top_layers", "gradual", "bitfit")  # train weights of the base itself
TASKS = {
    "lm": "CAUSAL_LM",
    "classification": "SEQ_CLS",
    "tagging": "TOKEN_CLS",
    "span": "QUESTION_ANS",
    "none": "FEATURE_EXTRACTION",
}
LIBRARIES = {"openai-gpt": "openai", "gemma3_text": "gemma3"}  # modules of transformers that are no model_type
BASE_COPY = ".base_layer.weight"  # PEFT saves the base's own embedding beside an adapter on it


class Imported(NamedTuple):
    """What an adapter folder holds.

    method, fields: ours, as `configs.method` has them: they rebuild the adapters' structure, unless layers differ in a
      way that no fields say.
    adapters: in trained form.
    head: {path: array} of a task's head that was trained with them: `params/classifier/kernel`.
    """

    method: str
    fields: dict[str, Any]
    adapters: dict
    head: dict[str, jax.Array]


def load_adapter(folder: str | os.PathLike, model: Transformer, params: Any) -> dict:
    """The `adapters` collection of a PEFT folder, in site form: for `model.apply` and `generate`.

    Soft prompts stand for the ids V, V + 1, ..., which the caller puts before everything else of every row.

    Raises:
      UserError: as `read`; a folder that also holds a task's head, which adapters cannot be.
    """
    found = read(folder, model, params)
    if found.head:
        names = ", ".join(path.removeprefix("params/") for path in found.head)
        raise UserError(
            f"{folder}: holds a task's head beside its adapter ({names}); take `ftjax import --adapter={folder}`"
        )
    return methods.get(found.method).expand(found.adapters, params)


def read(folder: str | os.PathLike, model: Transformer, params: Any) -> Imported:
    """The adapter of a PEFT folder for `model`; numbers are the file's, bit for bit (fp16 and bf16 become fp32).

    Raises:
      UserError: in one line, every option that we do not follow and every tensor that is missing, unexpected or of a
        wrong shape; a folder that is none, a type that we do not have, targets that the model does not have.
    """
    config, tensors = files.read(Path(folder))
    try:
        return _read(config, tensors, base_of(model), params)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def _read(config: Mapping[str, Any], tensors: dict[str, np.ndarray], base: Base, params: Any) -> Imported:
    kind = KINDS.get(str(config.get("peft_type")))
    if kind is None:
        raise UserError(f"{files.CONFIG}: peft_type={config.get('peft_type')!r} is not one of {', '.join(KINDS)}")
    options = files.unsupported(config, kind.options) + kind.check(config, base)
    head = head_keys(config, base, kind.root)
    wanted = kind.expected(config, base) | {key: one.shape for key, one in head.items()}
    copies = {key: x for key, x in tensors.items() if key.endswith(BASE_COPY) and _is_base(key, x, base, params)}
    problems = {
        "options that are not supported": options,
        "missing": _names([key for key in wanted if key not in tensors]),
        "unexpected": _names([key for key in tensors if key not in wanted and key not in copies]),
        "of a wrong shape": [
            f"{key} {list(tensors[key].shape)} (this base needs {list(shape)})"
            for key, shape in wanted.items()
            if key in tensors and tensors[key].shape != shape
        ],
    }
    if any(problems.values()):
        raise UserError("; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names))
    found = kind.read(config, base, tensors)
    trained = {
        f"params/{one.path}": jax.device_put(tensors[key].T if one.transpose else tensors[key])
        for key, one in head.items()
    }
    return Imported(*found, trained)


def _names(keys: list[str]) -> list[str]:
    return [listing(keys)] if keys else []


def _is_base(key: str, value: np.ndarray, base: Base, params: Any) -> bool:
    """Whether a tensor is a copy of the base's own weight."""
    module = base.modules.get(key.removeprefix(ROOT).removesuffix(BASE_COPY))
    if module is None or module.site not in ("embed", "head"):
        return False
    flat = tree.flatten({name: params[name] for name in ("embed", "head") if name in params})
    mine = flat.get("head/kernel") if module.site == "head" else None
    mine = flat["embed/tokens/embedding"] if mine is None else mine.T
    return np.array_equal(np.asarray(mine, np.float32), value)


def write(
    folder: str | os.PathLike,
    model: Transformer,
    params: Any,
    name: str,
    cfg: Any,
    adapters: Any,
    *,
    base: str = "",
    head: tuple[str, ...] | None = None,
    opens: bool = True,
) -> None:
    """Writes a folder that PEFT loads, from adapters in trained form.

    Args:
      params: the model's, the trained head in them; canonical or with a cut stack.
      name, cfg: the method and its fields, as in `configs.method`.
      base: name or path of the base model, for `base_model_name_or_path`.
      head: the parts of a task's head that were trained, None for all; a classifier always goes along.
      opens: the tokenizer starts texts with a special token, before which PEFT puts virtual ones.
    Raises:
      UserError: what PEFT's format cannot say, with the field; a place that cannot be written to.
    """
    if name in WHOLE:
        raise UserError(f"method.name={name!r} trains the model's own weights, no PEFT adapter: use --format=hf")
    if "+" in name:
        raise UserError(f"method.name={name!r}: a PEFT folder holds one adapter; export the methods of a run apart")
    if name not in WRITES:
        raise UserError(f"method.name={name!r} has no type in PEFT; there are {', '.join(WRITES)}")
    theirs, kind = base_of(model), KINDS[WRITES[name]]
    form = theirs.cfg.head
    task = "SEQ_2_SEQ_LM" if form == "lm" and theirs.cfg.encoder is not None else TASKS.get(form)
    known = tuple(dict.fromkeys(one.part for one in theirs.head))
    lost = [part for part in head or () if part in params and part not in known]
    if lost:
        raise UserError(f"a PEFT folder has no place for the trained {', '.join(lost)} of this model: use --format=hf")
    saved = head_names(theirs, [part for part in known if head is None or part in head or part == "classifier"])
    whole = head_keys({"modules_to_save": saved}, theirs, kind.root)
    if name in ("prompt", "p_tuning", "prefix"):
        prompts.refuse(WRITES[name], theirs)
        if task is None:
            raise UserError(f"method.name={name!r}: PEFT has no virtual tokens for a model with head={form!r}")
    if name in ("prompt", "p_tuning"):
        prompts.refuse_places(name, cfg, theirs, opens)
    if name == "lora":
        lora.refuse_trained_heads(adapters, {one.part for one in whole.values()})
    if name == "llama_adapter" and whole:
        raise UserError("method.name='llama_adapter': PEFT's file of it has no place for a classifier")
    own = kind.write(theirs, params, cfg, adapters)
    config = {
        "peft_type": WRITES[name],
        "task_type": task if task != "FEATURE_EXTRACTION" or kind.root != ROOT else None,
        "base_model_name_or_path": base or None,
        "inference_mode": True,
        **own.config,
        **({} if name == "llama_adapter" else {"modules_to_save": saved or None}),
    }
    if config["task_type"] is None:  # as PEFT says of which class a model without a task is
        model_type = theirs.family.model_type
        module = LIBRARIES.get(model_type, model_type.replace("-", "_"))
        library = f"transformers.models.{module}.modeling_{module}"
        architecture = theirs.family.heads[form].architectures[0]
        config["auto_mapping"] = {"base_model_class": architecture, "parent_library": library}
    files.write(Path(folder), config, own.tensors | head_tensors(whole, params))


__all__ = ["KINDS", "Imported", "load_adapter", "read", "write"]
