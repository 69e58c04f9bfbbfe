"""ROUGE-1, ROUGE-2 and ROUGE-L of summaries (Lin 2004), by rouge-score."""

import functools
import re
from collections.abc import Sequence

from ftjax.metrics.rouge_l import common_words


def rouge(name: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Each row's F1 by 'rouge1', 'rouge2' or 'rougeL', with stems, against the best reference; a corpus's: the mean.

    `rougeL` is the usual one of summarisation; `ftjax.metrics.rouge_l` is that of the captioning scripts.
    """
    scorer = _scorer(name)
    return [scorer.score_multi(list(r), p)[name].fmeasure for p, r in zip(predictions, references, strict=True)]


@functools.cache
def _scorer(name: str):
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([name], use_stemmer=True)


def plain_words(text: str) -> list[str]:
    """Words as rouge-score has them without stems: runs of a-z and 0-9, in small letters."""
    return re.findall("[a-z0-9]+", text.lower())


def plain_rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """F1 of ROUGE-L of two texts as `plain_words`, without stems; 0 where one is empty."""
    return 2 * common_words(a, b) / (len(a) + len(b)) if a and b else 0.0
