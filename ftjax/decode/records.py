"""A file of answers that a killed run goes on with: JSON lines in the order of the prompts, and beside it
`<name>.options.json`, which says how they were made."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ftjax.errors import UserError
from ftjax.files import finite, write_json


@contextlib.contextmanager
def appending(
    path: Path, options: dict[str, Any], *, total: int, together: int
) -> Iterator[tuple[int, Callable[[dict[str, Any]], None]]]:
    """(how many of `total` records are there, a function that adds one), while no other process may have the file.

    Records are made so many `together`: a file that is not complete is cut back to whole such parts, so that the next
    one is as in a run that was not killed.
    A file without a whole record is begun anew, with these options (JSON-able). A record is on the disk before the
    function returns.

    Raises:
      UserError: a file made otherwise, or with other options, or that another process has, or that cannot be written.
    """
    try:
        with path.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{path}: another process is writing it; wait for it, or give another file") from None
            file.seek(0)
            there = file.readlines()
            said = path.with_name(f"{path.name}.options.json")
            if there and not said.exists():
                raise UserError(f"{path}: exists, and no {said.name} beside it says how it was made; give another file")
            lines = [line for line in there if line.endswith(b"\n")]
            if lines:
                _check_same(path, said, options)
            else:
                write_json(said, options)
            done = len(lines) if len(lines) == total else len(lines) // together * together
            file.truncate(sum(map(len, lines[:done])))

            def add(record: dict[str, Any]) -> None:
                file.write(json.dumps(finite(record), allow_nan=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

            yield done, add
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror or error}") from None


def _check_same(path: Path, said: Path, options: dict[str, Any]) -> None:
    try:
        before = json.loads(said.read_text())
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise UserError(f"{said}: not a JSON object, as it was written; give another file than {path}")
    now = json.loads(json.dumps(finite(options)))
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if changed:
        what = ", ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in changed)
        raise UserError(f"{path}: begun otherwise ({what}); give the same options or another file")
