"""Experiments: a table's trials, run where they are missing, and read back as a table."""

from ftjax.sweep.trial import Trial

__all__ = ["Trial"]
