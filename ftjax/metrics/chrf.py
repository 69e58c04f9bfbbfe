"""chrF (Popovic 2015): F2 of characters' n-grams up to six, by sacrebleu."""

from collections.abc import Sequence


def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """(the corpus's chrF in [0, 1], each row's); the best of a row's references counts."""
    from sacrebleu.metrics.chrf import CHRF

    scorer = CHRF()
    most = max(map(len, references))
    columns = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    rows = [scorer.sentence_score(p, list(r)).score / 100 for p, r in zip(predictions, references, strict=True)]
    return scorer.corpus_score(list(predictions), columns).score / 100, rows  # pyright: ignore[reportArgumentType]
