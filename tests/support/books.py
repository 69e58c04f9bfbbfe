"""Documents of a few words, and tokenizers that have read them."""

import numpy as np

from ftjax.data.tokenizer import train_tokenizer

TEXT = "the cat sat on a mat and Anna ran home to Rome by the sea where did Bob run again in Oslo"
WORDS = TEXT.split()


def sentences(n, seed):
    """A document of so many."""
    rng = np.random.default_rng(seed)
    return " ".join(" ".join(rng.choice(WORDS, int(rng.integers(3, 9)))) + "." for _ in range(n))


def write_books(folder):
    """Six documents; their paths."""
    paths = [folder / f"{i}.txt" for i in range(6)]
    for i, path in enumerate(paths):
        path.write_text(sentences(24, i))
    return paths


def tokenizers(paths):
    """{kind: a tokenizer of 90 pieces and its special tokens}; the unigrams have 8 sentinels."""
    return {
        "wordpiece": train_tokenizer("wordpiece", paths, 90),
        "unigram": train_tokenizer("unigram", paths, 90, sentinels=8),
    }
