"""PEFT's PROMPT_TUNING, P_TUNING and PREFIX_TUNING: one tensor `prompt_embeddings` each.

A soft prompt `[P, D]` stands before everything, [CLS] too. P_TUNING's encoder is not saved, only the rows that it gave.
Where a model scales its embeddings (Gemma), it scales our rows with them, and not theirs.
A prefix is `[P, 2 L K hd]`, slot 2l the keys of layer l and 2l + 1 its values.
"""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ftjax.errors import UserError
from ftjax.hub.peft.files import whole_number
from ftjax.hub.peft.kinds import Kind, Read, Shapes, Tensors, Written
from ftjax.hub.peft.modules import Base
from ftjax.methods import p_tuning, prefix, prompt
from ftjax.methods.base import Template, find, place
from ftjax.methods.prefix import Prefix, Shift
from ftjax.methods.prompt import SoftPrompt

log = logging.getLogger(__name__)
KEY = "prompt_embeddings"
NO_CACHE = ("albert", "deberta-v2", "modernbert", "openai-gpt")  # PEFT puts a prefix into it
LEARNED = "base_model."  # of the head's keys
OPTIONS = frozenset(  # PEFT's encoder and projection are folded into what is saved
    (
        "num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers",
        "modules_to_save", "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path",
        "tokenizer_kwargs", "init_weights", "prefix_projection", "encoder_reparameterization_type",
        "encoder_hidden_size", "encoder_num_layers", "encoder_dropout",
    )
)  # fmt: skip


def _without(peft_type: str, base: Base) -> bool:
    prefix = peft_type == "PREFIX_TUNING"
    return base.cfg.encoder is not None or (prefix and base.family.model_type in NO_CACHE)


def check(config: Mapping[str, Any], base: Base) -> list[str]:
    """Prompts of an encoder and a decoder; a prefix of a model that PEFT can give none."""
    parts, kind = config.get("num_transformer_submodules"), str(config.get("peft_type"))
    if _without(kind, base):
        return [f"peft_type={kind!r} of a {base.family.model_type} model"]
    return [] if parts in (None, 1) else [f"num_transformer_submodules={parts!r}"]


def refuse(peft_type: str, base: Base) -> None:
    """UserError where `check` would refuse what we wrote."""
    if _without(peft_type, base):
        raise UserError(f"no PEFT folder: peft_type={peft_type!r} of a {base.family.model_type} model is not supported")


def _sizes(base: Base) -> dict[str, Any]:
    cfg = base.cfg
    return dict(
        token_dim=cfg.embed_width,
        num_attention_heads=cfg.num_heads,
        num_layers=cfg.num_layers,
        num_transformer_submodules=1,
    )


def expected_rows(config: Mapping[str, Any], base: Base) -> Shapes:
    """`[P, D]`."""
    return {KEY: (whole_number(config, "num_virtual_tokens"), base.cfg.embed_width)}


def read_rows(config: Mapping[str, Any], base: Base, tensors: Tensors) -> Read:
    """Our `prompt`, before everything; of P_TUNING too."""
    rows = jax.device_put(tensors[KEY] / np.float32(base.cfg.embed_scale))
    adapters = place({"embed": SoftPrompt(rows, base.cfg.vocab_size)}, "prompt")
    return Read("prompt", dict(length=len(rows), init="random", text="", inside=False), adapters)


def _write_rows(adapters: Any, base: Base) -> Written:
    ((_, _, _, adapter),) = find(adapters, SoftPrompt)
    rows = np.asarray(adapter.rows, np.float32) * np.float32(base.cfg.embed_scale)
    return Written(dict(num_virtual_tokens=len(rows), **_sizes(base)), {KEY: rows})


def write_prompt(base: Base, params: Any, cfg: Any, adapters: Any) -> Written:
    """The rows."""
    written = _write_rows(adapters, base)
    return written._replace(config={**written.config, "prompt_tuning_init": "RANDOM"})


def write_p_tuning(base: Base, params: Any, cfg: Any, adapters: Any) -> Written:
    """The rows that the encoder gives."""
    written = _write_rows(p_tuning.METHOD.expand(adapters, params), base)
    encoder = dict(encoder_reparameterization_type="MLP" if cfg.definition == "peft" else "LSTM")
    if cfg.definition == "paper":
        encoder |= dict(encoder_hidden_size=base.cfg.embed_width // 2)
    else:
        encoder |= dict(encoder_hidden_size=base.cfg.embed_width if cfg.hidden is None else cfg.hidden)
    return written._replace(config={**written.config, **encoder})


def refuse_places(name: str, cfg: Any, base: Base, opens: bool) -> None:
    """UserError where the virtual tokens do not stand before everything, as PEFT puts them.

    Args:
      opens: texts start with a special token of the tokenizer's ([CLS], bos), so that before and after it differ.
    """
    method = prompt.METHOD if name == "prompt" else p_tuning.METHOD
    template: Template | None = method.template(cfg, base.cfg)
    assert template is not None
    if (
        template.after
        or template.left
        or template.right
        or not all(isinstance(piece, int) for piece in template.before)
    ):
        raise UserError(
            f"method.template={cfg.template!r} (definition={cfg.definition!r}): PEFT puts virtual tokens before"
            " the text only; a template such as '{3}{text}' can be exported"
        )
    if template.inside and opens:
        field = f"method.inside={cfg.inside}" if name == "prompt" else f"method.definition={cfg.definition!r}"
        raise UserError(
            f"{field}: the virtual tokens stand after the text's opening special token, PEFT's before it;"
            " only method.name='prompt' with method.inside=False can be exported here"
        )


def _prefix_width(base: Base) -> int:
    cfg = base.cfg
    return 2 * cfg.num_layers * cfg.num_kv_heads * cfg.head_dim


def _warn_of_window(base: Base, length: int) -> None:
    window = base.cfg.window
    if window:
        log.warning(
            "a prefix of PEFT's takes %d places of this model's window of %d, ours none: texts of more than %d tokens"
            " differ", length, window, max(window - length, 0),
        )  # fmt: skip


def expected_prefix(config: Mapping[str, Any], base: Base) -> Shapes:
    """`[P, 2 L K hd]`."""
    return {KEY: (whole_number(config, "num_virtual_tokens"), _prefix_width(base))}


def read_prefix(config: Mapping[str, Any], base: Base, tensors: Tensors) -> Read:
    """Our `prefix` of definition 'peft': keys and values as they are."""
    flat, cfg = jax.device_put(tensors[KEY]), base.cfg
    _warn_of_window(base, len(flat))
    adapters = {
        "layers/attn": prefix.unpack(flat, cfg.num_layers, cfg.num_kv_heads, cfg.head_dim),
        "": Shift(len(flat)),
    }
    return Read("prefix", dict(definition="peft", length=len(flat), init="random", text=""), place(adapters, "prefix"))


def write_prefix(base: Base, params: Any, cfg: Any, adapters: Any) -> Written:
    """Keys and values; those that the paper's MLP gives."""
    ((_, _, _, adapter),) = find(prefix.METHOD.expand(adapters, params), Prefix)
    flat, width = np.asarray(prefix.pack(adapter), np.float32), base.cfg.num_kv_heads * base.cfg.head_dim
    _warn_of_window(base, len(flat))
    sizes = _sizes(base) | dict(token_dim=width, num_attention_heads=base.cfg.num_kv_heads, encoder_hidden_size=width)
    return Written(dict(num_virtual_tokens=len(flat), prefix_projection=False, **sizes), {KEY: flat})


PROMPT_TUNING = Kind(OPTIONS, check, expected_rows, read_rows, write_prompt, LEARNED)
P_TUNING = Kind(OPTIONS, check, expected_rows, read_rows, write_p_tuning, LEARNED)
PREFIX_TUNING = Kind(OPTIONS, check, expected_prefix, read_prefix, write_prefix, LEARNED)
