"""Where a run's numbers go: metrics.jsonl, TensorBoard events, Weights & Biases if asked, and the terminal."""

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ftjax.files import Growing, write_text
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
        run_id: str,
        config: Mapping[str, Any],
        name: str = "",
    ):
        """`name` begins the lines of one of several runs of a process, which have no bars."""
        from tensorboardX import SummaryWriter  # its import is slow, and only a run needs it

        path = place.file("metrics.jsonl") if is_first() else Path(os.devnull)
        if is_first():
            keep_rows(path, start)
        self._file = path.open("a", buffering=1)
        purge = start + 1 if start else None
        self._events = SummaryWriter(str(place.folder), purge_step=purge, write_to_disk=is_first())
        self._bar = tqdm(total=total, initial=start, unit="step", disable=bool(name) or None, file=sys.stderr)
        self._wandb, self._name, self._place = None, f"{name}: " if name else "", place
        if wandb_project and is_first():
            import wandb  # type: ignore[import-not-found]

            self._wandb = wandb.init(
                project=wandb_project, id=run_id, dir=place.folder, config=dict(config), resume="allow"
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row; names with a slash are grouped in TensorBoard."""
        finite = {k: (v if math.isfinite(v) else None) for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)
        self._place.copy(now=False)

    def progress(self, step: int, shown: Mapping[str, float]) -> None:
        """Moves the bar to `step`, with a few values beside it."""
        self._bar.set_postfix_str(" ".join(f"{name} {value:.4g}" for name, value in shown.items()), refresh=False)
        self._bar.update(step - self._bar.n)

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        tqdm.write(self._name + text, file=sys.stderr)

    def flush(self) -> None:
        """All of it is where it is to be."""
        self._events.flush()
        self._place.copy()

    def close(self) -> None:
        """Flushes and closes."""
        self._bar.close()
        self._file.close()
        self._events.close()
        self._place.copy()
        if self._wandb is not None:
            self._wandb.finish()


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
