"""BERT's pre-training: masked words of pairs of segments, and whether the second follows the first.

Pairs are drawn once, from `seed`, masks in every step (see `ftjax.kinds.mlm`).
"""

from typing import Any

from ftjax.data.documents import encode_pairs
from ftjax.data.encoded import Collector, Encoded
from ftjax.data.tasks.task import Text
from ftjax.kinds.base import Kind, Setting
from ftjax.kinds.masks import masks, without_soft_tokens
from ftjax.objectives.base import Objective
from ftjax.objectives.nsp import next_sentence


def head(f: Any, classes: tuple[str, ...]) -> dict[str, Any]:
    """The masked words' and, on the pooled first token, that of the two cases."""
    return dict(head="pretraining")


def encode(setting: Setting, examples: list[Text], out: Collector, training: bool) -> Encoded:
    """[CLS] A [SEP] B [SEP]; 0 where B follows A."""
    return encode_pairs(examples, setting.tokenizer, setting.f.seed, out)


def objective(setting: Setting) -> Objective:
    """The sum of the two losses."""
    without_soft_tokens(setting, "the first token is pooled")
    return next_sentence(setting.model, **masks(setting))


KIND = Kind((Text,), head, encode, objective, metrics=("loss",))
