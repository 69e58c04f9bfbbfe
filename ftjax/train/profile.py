"""A trace of some of a run's steps, by jax.profiler."""

from collections.abc import Callable
from types import TracebackType
from typing import Any

import jax

from ftjax.files import Growing
from ftjax.train.log import Log

SKIPPED = 2  # steps at the start, for they compile


class Profile:
    """Traces `asked` steps into the folder `profile` of a place; where the loop within it ends before they are done,
    what there is of them, and says so."""

    def __init__(self, asked: int, start: int, place: Growing, log: Log):
        self._asked, self._first, self._place, self._log = asked, start + SKIPPED, place, log
        self._done = -1  # steps of the trace; below 0 before it

    def __enter__(self) -> "Profile":
        return self

    def before(self, n: int) -> None:
        """Step n + 1 comes."""
        if self._asked and n == self._first:
            jax.profiler.start_trace(str(self._place.folder / "profile"))
            self._done = 0

    def after(self, n: int, values: Callable[[], Any]) -> None:
        """Step n has been given to the devices; `values` are of it."""
        if 0 <= self._done < self._asked:
            self._done = n - self._first
            if self._done == self._asked:
                jax.block_until_ready(values())
                jax.profiler.stop_trace()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._done == self._asked or not self._asked:
            return
        if self._done >= 0:
            jax.profiler.stop_trace()
            self._place.copy()
        what = f"{max(self._done, 0)} of {self._asked} steps"
        self._log.say(f"profile  of {what}: it begins at step {self._first + 1}, and no more came")
