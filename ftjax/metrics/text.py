"""Generated text against one right answer, or any of several."""

from collections.abc import Sequence


def exact_match(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> list[float]:
    """1.0 for each prediction that equals its reference, or one of them, spaces at the ends apart."""
    return [
        float(p.strip() in ([r.strip()] if isinstance(r, str) else [x.strip() for x in r]))
        for p, r in zip(predictions, references, strict=True)
    ]
