"""Distillation: a student learns from a teacher's probabilities, stored or live, or from what a teacher writes."""

from ftjax.distill.cache import Cache, Entries, Writer, open_cache
from ftjax.distill.forward import entries
from ftjax.distill.keys import data_key, teacher_key, tokenizer_key
from ftjax.distill.losses import Divergence, TopK, top_k
from ftjax.distill.match import Match, student_of, uniform
from ftjax.distill.objective import check_vocabularies, distillation

__all__ = [
    "Cache",
    "Divergence",
    "Entries",
    "Match",
    "TopK",
    "Writer",
    "check_vocabularies",
    "data_key",
    "distillation",
    "entries",
    "open_cache",
    "student_of",
    "teacher_key",
    "tokenizer_key",
    "top_k",
    "uniform",
]
