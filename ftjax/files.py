"""Files that are whole or absent."""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftjax.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Written aside, then renamed.

    Raises:
      UserError: a place that cannot be written to.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text)
        aside.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise UserError(f"cannot write to {path}: {error.strerror or error}") from None


def check_other(source: Path | None, output: Path | None, flag: str) -> None:
    """UserError where what is written would take the place of what is read, or has no folder to go to."""
    if output is None:
        return
    if source is not None and output.resolve() == source.resolve():
        raise UserError(f"{flag}={output} is what is read; give another file")
    if not output.parent.is_dir() or output.is_dir():
        raise UserError(f"{flag}={output}: give a file in a folder that is there")


def write_json(path: Path, value: Any) -> None:
    """Sorted and indented, made `finite`."""
    write_text(path, json.dumps(finite(value), indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines."""
    write_text(path, "".join(json.dumps(finite(row), allow_nan=False) + "\n" for row in rows))


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into: at the end it is `folder`, or its files replace those of the same names.

    Raises:
      UserError: a place that cannot be written to.
    """
    folder = Path(os.path.abspath(folder))
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        yield aside
        if not folder.exists():
            aside.rename(folder)
            return
        # what tells of weights comes last
        for file in sorted(aside.iterdir(), key=lambda file: file.suffix == ".json"):
            os.replace(file, folder / file.name)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def finite(value: Any) -> Any:
    """The same lists and objects with null for each number that is not finite, for JSON has none."""
    if isinstance(value, dict):
        return {name: finite(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
