"""Commands of ftjax for what an experiment prepares, in the process that prepares it."""

import sys
from collections.abc import Mapping
from typing import Any

from ftjax.cli.main import main


def command(name: str, axes: str, fields: Mapping[str, Any], *flags: str) -> None:
    """Runs `ftjax <name>` with a config of these axes and fields; where it fails, the process ends as it did."""
    told = [f"--config.{k}={tuple(v) if isinstance(v, list) else v}" for k, v in fields.items() if v is not None]
    if code := main([name, f"--config=configs/default.py:{axes}", *told, *flags]):
        sys.exit(code)
