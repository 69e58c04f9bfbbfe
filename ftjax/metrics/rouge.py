"""ROUGE-1, ROUGE-2 and ROUGE-L of summaries (Lin 2004), by rouge-score."""

import functools
from collections.abc import Sequence

NAMES = ("rouge1", "rouge2", "rougeL")


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
