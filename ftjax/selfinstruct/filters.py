"""Which of the written tasks and examples are kept (Wang et al. 2023, section 2.2)."""

import re
from collections.abc import Iterable, Sequence

from ftjax.metrics.rouge import plain_rouge_l, plain_words

ALIKE = 0.7  # ROUGE-L's F1
WORDS = (4, 150)  # of an instruction
LONGEST = 300  # words of an input or an output
UNSEEN = re.compile(r"\b(image|picture|graph)s?\b", re.IGNORECASE)  # nothing that a language model sees


class Pool:
    """Instructions that there are, and how like them another is."""

    def __init__(self, instructions: Iterable[str]):
        self._words = [plain_words(text) for text in instructions]

    def __len__(self) -> int:
        return len(self._words)

    def add(self, instruction: str) -> None:
        """One more."""
        self._words.append(plain_words(instruction))

    def cut(self, count: int) -> None:
        """Only the first so many stay."""
        del self._words[count:]

    def nearest(self, instruction: str) -> tuple[float, int]:
        """(ROUGE-L's F1 without stems, number) of the likest one; (0, -1) in an empty pool."""
        words = plain_words(instruction)
        scores = [plain_rouge_l(words, other) for other in self._words]
        best = max(range(len(scores)), key=scores.__getitem__, default=-1)
        return (scores[best], best) if scores else (0.0, -1)


def wrong_with(instruction: str) -> str | None:
    """'empty', 'length', 'sign' (it begins with one) or 'unseen' (it is about a picture); None for what may stay."""
    words = instruction.split()
    if not words:
        return "empty"
    if not WORDS[0] <= len(words) <= WORDS[1]:
        return "length"
    if not (words[0][0].isascii() and words[0][0].isalnum()):
        return "sign"
    return "unseen" if UNSEEN.search(instruction) else None


def good_instances(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The (input, output) pairs that may stay: each once, with an output, which is not the input again, and neither too
    long; of inputs that have two outputs none."""
    fine = [
        (given, output)
        for given, output in dict.fromkeys(pairs)
        if output and output != given and max(len(given.split()), len(output.split())) <= LONGEST
    ]
    inputs = [given for given, _ in fine]
    return [pair for pair in fine if inputs.count(pair[0]) == 1]
