"""What a run's folder says: whether it is done, what came of it, and what is wrong with it."""

import json
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ftjax.files import modified, read_text
from ftjax.sweep.attempt import FREE, Attempt, read_attempts
from ftjax.sweep.trial import PREPARED, Run

State = Literal["done", "running", "queued", "stale", "failed", "waiting", "damaged"]
NEEDED = {"metrics": dict, "best": dict, "steps": int, "commit": str | None}


class Record(NamedTuple):
    """A run as it stands. Done is a whole result.json of this very config, whatever a process or scheduler said.

    state: running or stale by whether the last attempt's processes live (a job is queued until it starts, and then
      running until somebody writes its end); failed where it ended by itself without a result; waiting also after an
      interruption or preemption.
    problem: what is damaged.
    """

    run: Run
    state: State
    result: dict[str, Any]
    attempts: list[Attempt]
    problem: str = ""

    @property
    def progress(self) -> tuple[int, float | None]:
        """(last step in metrics.jsonl, seconds since the run last wrote something)."""
        rows, folder = read_rows(self.run.folder), self.run.folder
        files = [folder / "metrics.jsonl", *(log for attempt in self.attempts[-1:] for log in attempt.logs(folder))]
        times = [modified(file) for file in files if file.exists()]
        return (rows[-1]["step"] if rows else 0), (time.time() - max(times) if times else None)


def read(run: Run) -> Record:
    """The record of a run."""
    try:
        attempts = read_attempts(run.folder)
        result = _result(run)
    except ValueError as error:
        return Record(run, "damaged", {}, [], str(error))
    if result:
        return Record(run, "done", result, attempts)
    if not attempts:
        return Record(run, "waiting", {}, [])
    last = attempts[-1]
    if last.ended is None:
        queued = last.job and not last.starts(run.folder).exists()
        return Record(run, "queued" if queued else "running" if last.alive else "stale", {}, attempts)
    return Record(run, "waiting" if last.cause in FREE else "failed", {}, attempts)


def idle(folder: Path, attempt: Attempt) -> float:
    """Seconds since a started attempt made a step, as its metrics.jsonl says, or since its last start."""
    files = [path for path in (folder / "metrics.jsonl", attempt.starts(folder)) if path.exists()]
    return time.time() - max([attempt.started, *map(modified, files)])


def _result(run: Run) -> dict[str, Any]:
    path = run.folder / "result.json"
    if not path.exists():
        return {}
    result, config = _object(path), _object(run.folder / "config.json")
    if missing := [name for name, kind in NEEDED.items() if name not in result or not isinstance(result[name], kind)]:
        raise ValueError(f"{path}: has no {', '.join(missing)}")
    if missing := {"metric", "value"} - result["best"].keys():
        raise ValueError(f"{path}: has no best {', '.join(missing)}")
    theirs = {k: v for k, v in _flat(config) if not k.startswith("mesh.")}
    if wrong := sorted(k for k in theirs.keys() | run.config.keys() if not _same(theirs.get(k), run.config.get(k))):
        raise ValueError(f"{run.folder}/config.json is of another config: {', '.join(wrong)} differ")
    return result


def _same(theirs: Any, ours: Any) -> bool:
    """Whether a run's field is the trial's, wherever the sweep was when it ran."""
    if not isinstance(ours, str) or PREPARED not in ours:
        return theirs == ours
    before, _, after = ours.partition(PREPARED)
    return isinstance(theirs, str) and theirs.startswith(before) and theirs.endswith(f"prepared{after}")


def _flat(config: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for name, value in config.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return pairs


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: no JSON object")
    return found


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; a half one, as a running or killed process leaves, is none."""
    path, rows = folder / "metrics.jsonl", []
    for line in read_text(path).splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def curve(folder: Path, name: str) -> list[tuple[float, float]]:
    """(step, value) of one name in a run's metrics.jsonl."""
    return [(row["step"], row[name]) for row in read_rows(folder) if row.get(name) is not None]
