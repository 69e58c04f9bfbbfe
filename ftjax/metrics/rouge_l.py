"""ROUGE-L (Lin 2004) as the captioning scripts have it, which the E2E challenge uses."""

from collections.abc import Sequence

from ftjax.metrics.ptb import ptb_words

_BETA = 1.2


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Each row's F1.2 of the longest common subsequence of `ptb_words`; the corpus's is their mean.

    Precision and recall are each the best over the references, not of one and the same.
    """
    return [_score(p, row) for p, row in zip(predictions, references, strict=True)]


def _score(prediction: str, references: Sequence[str]) -> float:
    words, golds = ptb_words(prediction), [ptb_words(r) for r in references]
    common = [common_words(words, gold) for gold in golds]
    if not any(common):
        return 0.0
    precision = max(common) / len(words)
    recall = max(n / len(gold) for n, gold in zip(common, golds) if gold)
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def common_words(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a bit of one integer for each word of `a` (Hyyro 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    everywhere = (1 << len(a)) - 1
    left = everywhere
    for word in b:
        hits = left & places.get(word, 0)
        left = (left + hits | left - hits) & everywhere
    return len(a) - left.bit_count()
