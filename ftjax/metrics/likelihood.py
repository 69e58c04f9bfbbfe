"""Metrics of summed negative log-likelihoods, in nats."""

import math

import numpy as np

from ftjax.metrics.bootstrap import ratio


def perplexity(sums: np.ndarray) -> np.ndarray:
    """exp(nats / tokens), `[..., 2]` of (nats, tokens) to `[...]`; at most exp(700)."""
    return np.exp(np.minimum(ratio(sums), 700.0))


def bits_per_byte(sums: np.ndarray) -> np.ndarray:
    """Bits that a byte of UTF-8 text costs, `[..., 2]` of (nats, bytes) to `[...]`: comparable over tokenizers."""
    return ratio(sums) / math.log(2)
