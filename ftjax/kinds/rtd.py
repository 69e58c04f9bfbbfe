"""ELECTRA's pre-training: a small generator fills in masked words, the model tells which tokens it replaced.

The model is the discriminator, with the head `rtd`. The generator has `task.generator_size` of its heads and widths, as
many layers and the same tables of words and positions; it lives in `params/generator`. Masks and samples are drawn as
`ftjax.kinds.mlm` says.
"""

from typing import Any

import jax

from ftjax.data.documents import encode_chunks
from ftjax.data.encoded import Collector, Encoded
from ftjax.data.tasks.task import Text
from ftjax.kinds.base import Kind, Setting, require
from ftjax.kinds.masks import masks
from ftjax.models.transformer import Transformer
from ftjax.objectives.base import Objective
from ftjax.objectives.rtd import generator_params, replaced_tokens, with_generator


def head(f: Any, classes: tuple[str, ...]) -> dict[str, Any]:
    """One score a token."""
    return dict(head="rtd")


def generator_of(setting: Setting) -> Transformer:
    """The generator, without parameters: ELECTRA's masked-word model with whole heads of the model's width each.

    Raises:
      UserError: a size outside (0, 1].
    """
    size, cfg = setting.f.task.generator_size, setting.model.cfg
    require("task.generator_size", size, 0 < size <= 1, "a share of the model's width above 0, at most 1")
    heads = max(round(size * cfg.num_heads), 1)
    hidden = heads * cfg.head_dim
    return Transformer(
        cfg.replace(
            num_heads=heads, num_kv_heads=heads, hidden_size=hidden, ffn_size=max(round(size * cfg.ffn_size), 1),
            embed_size=0 if hidden == cfg.embed_width else cfg.embed_width, head="mlm", head_bias=True, tied_head=True,
            pooler="none",
        )
    )  # fmt: skip


def params(setting: Setting, values: Any, key: jax.Array) -> Any:
    """With a new generator beside the model's own.

    Raises:
      UserError: a method that does not train it.
    """
    name = setting.f.method.name
    require("method.name", name, name == "full", "full: a new generator has to train")
    return with_generator(values, generator_of(setting), key)


def encode(setting: Setting, examples: list[Text], out: Collector, training: bool) -> Encoded:
    """[CLS] chunk [SEP], without labels."""
    return encode_chunks(examples, setting.tokenizer, out)


def objective(setting: Setting) -> Objective:
    """The generator's loss plus `task.detection_weight` times the detector's."""
    weight = setting.f.task.detection_weight
    require("task.detection_weight", weight, weight > 0, "a number above 0")
    return replaced_tokens(setting.model, generator_of(setting), weight=weight, **masks(setting))


def models(setting: Setting, values: Any) -> dict[str, tuple[Transformer, Any]]:
    """The discriminator, and in the folder `generator` the model of masked words."""
    mine = {name: x for name, x in values.items() if name != "generator"}
    return {"": (setting.model, mine), "generator": (generator_of(setting), generator_params(values))}


KIND = Kind((Text,), head, encode, objective, params=params, packs=True, metrics=("loss",), models=models)
