"""Commands of ftjax for what an experiment prepares, in the process that prepares it."""

import sys
from collections.abc import Mapping
from typing import Any

from ftjax.cli.main import main


def command(name: str, axes: str, fields: Mapping[str, Any], *flags: str) -> None:
    """Runs `ftjax <name>` with a config of these axes and fields, or without one where there are no axes; where it
    fails, the process ends as it did."""
    told = [f"--config.{k}={tuple(v) if isinstance(v, list) else v}" for k, v in fields.items() if v is not None]
    config = [f"--config=configs/default.py:{axes}"] if axes else []
    if code := main([name, *config, *told, *flags]):
        sys.exit(code)
