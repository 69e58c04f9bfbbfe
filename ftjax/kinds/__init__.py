"""The kinds of tasks, one file each: what `task.objective` may name."""

from ftjax.kinds import (
    choice,
    classification,
    cloze,
    lm,
    mlm,
    nsp,
    regression,
    rtd,
    similarity,
    span,
    spans,
    tagging,
    words,
)
from ftjax.kinds.base import Found, Kind, Result, Setting, require

KINDS: dict[str, Kind] = {
    "lm": lm.KIND,
    "mlm": mlm.KIND,
    "nsp": nsp.KIND,
    "rtd": rtd.KIND,
    "spans": spans.KIND,
    "classification": classification.KIND,
    "regression": regression.KIND,
    "tagging": tagging.KIND,
    "span": span.KIND,
    "similarity": similarity.KIND,
    "words": words.KIND,
    "choice": choice.KIND,
    "cloze": cloze.KIND,
}

__all__ = ["KINDS", "Found", "Kind", "Result", "Setting", "require"]
