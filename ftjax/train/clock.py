"""Throughput of the steps alone: neither compilation nor evaluation nor saving is in it; what the student itself writes
for a step (`ftjax.train.rollout`), its decoding compiled included, is."""

import time
from collections.abc import Mapping

import numpy as np


class Clock:
    """Counts examples and tokens between `start` and `stop`; totals go on across a resume.

    Of several processes each sees a share of a batch's rows, and takes the rest to be like them.
    """

    def __init__(self, totals: tuple[int, int, float, float] = (0, 0, 0.0, 0.0), share: float = 1.0):
        self.examples, self.tokens, self.seconds, self.flops = totals
        self._share = share
        self._since = self._compiling = 0.0
        self._window = (0, 0)

    def start(self, compile_seconds: float) -> None:
        """Starts a window; `compile_seconds` is the compiler's total so far."""
        self._since, self._compiling, self._window = time.perf_counter(), compile_seconds, (0, 0)

    def count(self, batch: Mapping[str, np.ndarray], mean_length: float, flops: float) -> None:
        """Adds a host batch and its work; where it holds no tokens (features), its examples at their mean length."""
        segments = batch.get("segment_ids")
        if segments is None:
            examples = int((batch["example"] >= 0).sum())
            tokens = round(examples * mean_length)
        else:
            of_first = segments if segments.ndim == 2 else segments[:, 0]  # of a group of sequences
            examples = int(of_first.max(1).sum())
            tokens = int((segments != 0).sum()) + int((batch.get("encoder_segment_ids", np.zeros(0)) != 0).sum())
        self._window = (self._window[0] + round(examples / self._share), self._window[1] + round(tokens / self._share))
        self.flops += flops

    def stop(self, compile_seconds: float) -> dict[str, float]:
        """Ends the window, when its last step is done; its rates."""
        seconds = time.perf_counter() - self._since - (compile_seconds - self._compiling)
        examples, tokens = self._window
        self.examples, self.tokens, self.seconds = (
            self.examples + examples,
            self.tokens + tokens,
            self.seconds + seconds,
        )
        return {"examples_per_second": examples / seconds, "tokens_per_second": tokens / seconds}

    @property
    def totals(self) -> tuple[int, int, float, float]:
        """Examples, tokens, seconds, FLOPs."""
        return self.examples, self.tokens, self.seconds, self.flops
