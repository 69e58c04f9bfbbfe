"""The kinds of tasks, one file each: what `task.objective` may name."""

from ftjax.kinds import choice, classification, cloze, lm, regression, similarity, span, tagging, words
from ftjax.kinds.base import Found, Kind, Result, Setting, require

KINDS: dict[str, Kind] = {
    "lm": lm.KIND,
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
