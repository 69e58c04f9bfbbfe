"""SQuAD's exact match and F1 (Rajpurkar et al. 2016), unanswerable questions included (2018)."""

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """Lower case, without ASCII punctuation, without a, an, the, with single spaces."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer.lower().translate(_PUNCTUATION)).split())


def squad_exact_match(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> list[float]:
    """1.0 for each prediction that equals one of its answers, both normalised.

    No answers, or only ones that normalise to nothing: right is what normalises to nothing.
    """
    return [float(normalise(p) in _golds(golds)) for p, golds in zip(predictions, answers, strict=True)]


def squad_f1(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> list[float]:
    """The best F1 of words, over the answers, of each prediction; without an answer as `squad_exact_match`."""
    return [
        max(_f1(normalise(p), gold) for gold in _golds(golds)) for p, golds in zip(predictions, answers, strict=True)
    ]


def _golds(answers: Sequence[str]) -> list[str]:
    return [gold for gold in map(normalise, answers) if gold] or [""]


def _f1(guess: str, gold: str) -> float:
    if not guess or not gold:
        return float(guess == gold)
    a, b = guess.split(), gold.split()
    return 2 * (Counter(a) & Counter(b)).total() / (len(a) + len(b))
