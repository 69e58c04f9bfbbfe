"""Metrics: one function each."""

from ftjax.metrics.bootstrap import bootstrap
from ftjax.metrics.text import exact_match

__all__ = ["bootstrap", "exact_match"]
