"""A run of several processes: how they find each other, which one writes, and when SIGTERM ends them all."""

import re
import signal
import threading
from types import TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ftjax.errors import UserError


def join(told: str) -> None:
    """Makes this process one of several; before anything else of JAX is used.

    Args:
      told: 'auto' where Slurm, GKE or a TPU VM says who is there (JAX_COORDINATOR_ADDRESS overrides the address; under
        Slurm a process has one GPU, unless JAX_LOCAL_DEVICE_IDS names others), else 'HOST:PORT,I,N': process I of N, of
        which number 0 listens there.

    Raises:
      UserError: neither of the two, or nothing that 'auto' could find.
    """
    if told == "auto":
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise UserError(f"--distributed=auto: no cluster is found here ({error}); write HOST:PORT,I,N") from None
        return
    found = re.fullmatch(r"(\S+:\d+),(\d+),(\d+)", told)
    if not found or int(found[2]) >= int(found[3]):
        raise UserError(f"--distributed={told}: write auto, or HOST:PORT,I,N for process I of N, counted from 0")
    jax.distributed.initialize(found[1], int(found[3]), int(found[2]))


def is_first() -> bool:
    """Whether this is the process that writes what all of them know."""
    return jax.process_index() == 0


def check_all_used(mesh: Mesh) -> None:
    """UserError where a mesh leaves out devices of a run of several processes, for then some would have nothing."""
    count = len(jax.devices())
    if jax.process_count() > 1 and mesh.size != count:
        raise UserError(
            f"mesh: {mesh.size} of the {count} devices of {jax.process_count()} processes; all have to be used, as with"
            " --config.mesh.data=0"
        )


class Terminated:
    """Whether SIGTERM has come: within it, from `listen` on, that signal ends nothing by itself.

    In a run of several processes JAX listens from the start, and tells all of them before the same step.
    """

    def __init__(self) -> None:
        self._came = False
        self._before: Any = None

    def __enter__(self) -> "Terminated":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def listen(self) -> None:
        """Until then a signal ends the process, as there is nothing to save."""
        if self._before is None and jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: Any) -> None:
        self._came = True

    def __call__(self, step: int) -> bool:
        """Whether to stop before this step; to be asked by every process before every step."""
        return self._came if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)
