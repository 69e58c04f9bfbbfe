"""Metrics of generated text against one reference."""

from collections.abc import Sequence


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """1.0 for each prediction that equals its reference, spaces at the ends apart."""
    return [float(p.strip() == r.strip()) for p, r in zip(predictions, references, strict=True)]
