"""Processes without torch, which transformers and tensorboardX import where it is installed: seconds, for nothing."""

import os
import sys


def hide_torch() -> None:
    """Imports from here on find no torch; nothing where it was imported before. For a process of one's own."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # of which one says that torch is missing


def show_torch() -> None:
    """Takes `hide_torch` back, for code that may need it, or that takes its name among the modules for the module."""
    if sys.modules.get("torch", sys) is None:
        del sys.modules["torch"]
