"""Processes that hide torch, and code that may need it."""

import sys

import pytest

from ftjax.data.sources import load_hub
from ftjax.errors import UserError
from ftjax.lean import hide_torch, show_torch


def test_torch_is_hidden_and_shown(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    hide_torch()
    with pytest.raises(ImportError):
        import torch  # noqa: F401
    show_torch()
    assert "torch" not in sys.modules


def test_what_is_imported_stays(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", sys)
    hide_torch()
    show_torch()
    assert sys.modules["torch"] is sys


def test_the_hub_is_asked_with_torch_in_sight(monkeypatch):
    """`datasets` imports it where its name is among the modules."""
    monkeypatch.setitem(sys.modules, "torch", None)
    seen = []

    def load(*args, **options):
        seen.append("torch" in sys.modules)
        raise OSError("no network")

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(UserError, match="no network"):
        load_hub("owner/name", "train")
    assert seen == [False]
