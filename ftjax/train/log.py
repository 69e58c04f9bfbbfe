"""Where a run's numbers and samples go: JSON lines, TensorBoard events, Weights & Biases if asked, and the terminal."""

import json
import math
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from ftjax.files import Growing, write_text, writing
from ftjax.parallel.processes import is_first


class Log:
    """Writes rows `{"step": n, name: value}`; on resume, rows past the resumed step are dropped first.

    Of several processes the first writes files; all of them `say`.
    """

    def __init__(
        self,
        place: Growing,
        start: int,
        total: int,
        wandb_project: str,
        config: Mapping[str, Any],
        name: str = "",
    ):
        """`name` begins the lines of one of several runs of a process, which have no bars. Of Weights & Biases, the run
        is the folder's, by an id that is kept there."""
        from tensorboardX.event_file_writer import EventsWriter  # its import is slow, and only a run needs it

        self._place = place
        with writing(place.folder):
            self._rows, self._samples = (_opened(place, name, start) for name in ("metrics.jsonl", "samples.jsonl"))
            # not by a SummaryWriter: its thread dies of a full disk, and who waits for it waits for ever
            self._events = EventsWriter(str(place.folder / "events")) if is_first() else None
        if start:
            self._event(start + 1, session_log={"status": 1})  # START: what there was from that step on is void
        self._bar = tqdm(total=total, initial=start, unit="step", disable=bool(name) or None, file=sys.stderr)
        self._wandb, self._name = None, f"{name}: " if name else ""
        if wandb_project and is_first():
            import wandb  # type: ignore[import-not-found]

            known = place.file("wandb_id")
            if not known.exists():
                write_text(known, secrets.token_hex(8))
                place.copy()
            self._wandb = wandb.init(
                project=wandb_project, id=known.read_text(), dir=place.folder, config=dict(config), resume="allow"
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row; names with a slash are grouped in TensorBoard.

        Raises:
          UserError: a place that cannot be written to.
        """
        finite = {k: (v if math.isfinite(v) else None) for k, v in values.items()}
        with writing(self._place.folder):
            self._rows.write(json.dumps({"step": step, **finite}) + "\n")
        self._event(step, summary={"value": [{"tag": name, "simple_value": value} for name, value in values.items()]})
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)
        self._place.copy(now=False)

    def sample(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """What the model wrote at a step.

        Raises:
          UserError: a place that cannot be written to.
        """
        with writing(self._place.folder):
            self._samples.writelines(json.dumps({"step": step, **sample}) + "\n" for sample in samples)

    def progress(self, step: int, shown: Mapping[str, float]) -> None:
        """Moves the bar to `step`, with a few values beside it."""
        self._bar.set_postfix_str(" ".join(f"{name} {value:.4g}" for name, value in shown.items()), refresh=False)
        self._bar.update(step - self._bar.n)

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        tqdm.write(self._name + text, file=sys.stderr)

    def _event(self, step: int, **what: Any) -> None:
        from tensorboardX.proto import event_pb2

        if self._events is not None:
            with writing(self._place.folder):
                event = event_pb2.Event(wall_time=time.time(), step=step, **what)  # type: ignore[attr-defined]
                self._events.write_event(event)
                self._events.flush()

    def flush(self) -> None:
        """All of it is where it is to be."""
        self._place.copy()

    def close(self) -> None:
        """Flushes and closes."""
        self._bar.close()
        with writing(self._place.folder):
            for file in filter(None, (self._rows, self._samples, self._events)):
                file.close()
        self._place.copy()
        if self._wandb is not None:
            self._wandb.finish()


def _opened(place: Growing, name: str, start: int) -> TextIO:
    path = place.file(name) if is_first() else Path(os.devnull)
    if is_first():
        keep_rows(path, start)
    return path.open("a", buffering=1)


def keep_rows(path: Path, step: int) -> None:
    """Drops the rows past a step, and the half row of a killed run."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if _step(line) <= step]
        write_text(path, "".join(line + "\n" for line in kept))


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return math.inf
