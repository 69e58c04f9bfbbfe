"""A file of answers that a killed run goes on with: JSON lines in the order of the prompts, and beside it
`<name>.options.json`, which says how they were made."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ftjax.errors import UserError
from ftjax.files import write_json


def whole_records(path: Path, options: dict[str, Any]) -> int:
    """How many records `path` has of a run with these options (JSON-able); a half-written last line is cut off.

    Raises:
      UserError: a file made otherwise, or with other options.
    """
    said = path.with_name(f"{path.name}.options.json")
    try:
        if not path.exists():
            write_json(said, options)
            return 0
        if not said.exists():
            raise UserError(f"{path}: exists, and no {said.name} beside it says how it was made; give another --output")
        before, now = json.loads(said.read_text()), json.loads(json.dumps(options))
        changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        if changed:
            what = ", ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in changed)
            raise UserError(f"{path}: begun otherwise ({what}); give the same options or another --output")
        data = path.read_bytes()
        end = data.rfind(b"\n") + 1
        os.truncate(path, end)
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror or error}") from None
    except json.JSONDecodeError:
        raise UserError(f"{said}: not JSON; give another --output") from None
    return data.count(b"\n", 0, end)


@contextlib.contextmanager
def appending(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that adds one record, on the disk before it returns."""
    with path.open("a", encoding="utf-8") as file:

        def add(record: dict[str, Any]) -> None:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()

        yield add
