"""Masked words of raw text (BERT's first objective).

Masks are drawn from the step's key. Micro-batches have a key each, so k of them mask other words than the whole batch
would: gradients are the sum of theirs (tested), and equal in expectation to the whole batch's, not bit for bit.
Evaluation draws from one fixed key: its figure repeats with the same `eval_batch_size`.
"""

from typing import Any

from ftjax.data.documents import encode_chunks
from ftjax.data.encoded import Collector, Encoded
from ftjax.data.tasks.task import Text
from ftjax.kinds.base import Kind, Setting
from ftjax.kinds.masks import masks
from ftjax.objectives.base import Objective
from ftjax.objectives.mlm import masked_lm


def head(f: Any, classes: tuple[str, ...]) -> dict[str, Any]:
    """BERT's transform and the vocabulary."""
    return dict(head="mlm")


def encode(setting: Setting, examples: list[Text], out: Collector, training: bool) -> Encoded:
    """[CLS] chunk [SEP], without labels."""
    return encode_chunks(examples, setting.tokenizer, out)


def objective(setting: Setting) -> Objective:
    """Cross-entropy of `task.mask_rate` of the tokens."""
    return masked_lm(setting.model, **masks(setting))


KIND = Kind((Text,), head, encode, objective, packs=True, metrics=("loss",))
