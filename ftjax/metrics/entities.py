"""F1 of entities that tags spell (Tjong Kim Sang & De Meulder 2003), by seqeval."""

from collections.abc import Sequence

import numpy as np


def entity_counts(predictions: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> np.ndarray:
    """`[n, 3]`: entities of a row that are found, are predicted, are there.

    Tags are `B-`, `I-`, `E-`, `S-` with a type, and `O`: IOB1, IOB2 (BIO) and BIOES are all read, as conlleval does.

    Raises:
      ValueError: a row of other length than its labels.
    """
    from seqeval.metrics.sequence_labeling import get_entities

    rows = []
    for number, (guess, gold) in enumerate(zip(predictions, labels, strict=True)):
        if len(guess) != len(gold):
            raise ValueError(f"row {number}: {len(guess)} tags of {len(gold)} words")
        found, there = set(get_entities(list(guess))), set(get_entities(list(gold)))
        rows.append([len(found & there), len(found), len(there)])
    return np.array(rows, np.float64).reshape(-1, 3)


def entity_f1(counts: np.ndarray) -> np.ndarray:
    """F1 over all entities, `[..., 3]` of `entity_counts` summed to `[...]`; 0 where there are none at all."""
    right, guessed, gold = np.moveaxis(counts, -1, 0)
    return 2 * right / np.maximum(guessed + gold, 1)
