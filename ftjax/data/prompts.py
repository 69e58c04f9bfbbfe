"""Examples of one prompt behind one copy of it: what is equal is computed once.

In E2E 8.7 references share a meaning representation, a teacher's hypotheses share their input. Inside a packed row the
prompt then stands once, and each completion sees it and itself: the losses are those of the examples apart.
"""

import numpy as np

from ftjax.data.encoded import IGNORED, Encoded


def prompt_lengths(encoded: Encoded) -> np.ndarray:
    """Tokens before each example's first label, int64 [n]; 0 where nothing but the last token is behind them.

    encoded: labels by next token, one sequence an example.
    """
    starts, ends = encoded.offsets[:-1], encoded.offsets[1:]
    labelled = np.append(np.flatnonzero(encoded.labels != IGNORED), len(encoded.labels))
    length = np.minimum(labelled[np.searchsorted(labelled, starts)], ends) - starts
    return np.where(length < ends - starts - 1, length, 0)


def families(encoded: Encoded, prompts: np.ndarray) -> np.ndarray:
    """The number of each example's prompt, int64 [n], of `prompts` [n] tokens: equal where prompts are, in tokens and
    extras."""
    known: dict[tuple[bytes, ...], int] = {}
    aligned = [encoded.tokens, *encoded.extras.values()]
    numbers = np.empty(len(encoded), np.int64)
    for i, (start, length) in enumerate(zip(encoded.offsets[:-1], prompts)):
        key = tuple(x[start : start + length].tobytes() for x in aligned) if length else (b"", bytes(str(i), "ascii"))
        numbers[i] = known.setdefault(key, len(known))
    return numbers


def units(family: np.ndarray, lengths: np.ndarray, prompts: np.ndarray, most: int, room: int = 0) -> list[list[int]]:
    """Examples that are laid together: at most `most` of a family, in its order, and at most `room` tokens (0: any).

    Args:
        family, lengths, prompts: [n], of each example its prompt's number, its tokens and those of its prompt.
    """
    order = np.argsort(family, kind="stable")
    made: list[list[int]] = []
    used = 0
    for i in order.tolist():
        own = int(lengths[i] - prompts[i])
        new = not made or family[made[-1][0]] != family[i] or len(made[-1]) == most or (room and used + own > room)
        if new:
            made.append([])
            used = int(prompts[i])
        made[-1].append(i)
        used += own
    return sorted(made)  # by their first example: evaluation is nearly in the data set's order
