"""The training loop: it reads top to bottom, and is the only one there is."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ftjax.errors import Preempted, RunError
from ftjax.parallel.mesh import make_mesh, trial_mesh
from ftjax.parallel.processes import Terminated, check_all_used
from ftjax.train.course import Course
from ftjax.train.fields import Fields
from ftjax.train.profile import Profile
from ftjax.train.program import make_program, programs, room
from ftjax.train.report import gradient_report


def train(config: ConfigDict, default: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains, or resumes, the run that `config` describes; returns what its `result.json` holds.

    Raises:
      UserError: anything wrong with the input, before the workdir is touched; a field that differs from `default` and
        that nothing in this run uses.
      RunError: a loss that is not finite; the last good state is saved.
      Preempted: SIGTERM came once steps were being done; the state is saved.
    """
    return train_together([(config, default, workdir)])[0]


def train_together(asked: Sequence[tuple[ConfigDict, ConfigDict, Path]]) -> list[dict[str, Any]]:
    """As `train`, of several runs of one model and mesh: those of the same program as one, these one after another.

    Args:
      asked: (config, default, workdir) of each run.
    Raises:
      RunError: once the others are done.
    """
    mesh = make_mesh(Fields(asked[0][0]).mesh)
    check_all_used(mesh)
    with Terminated() as terminated, jax.set_mesh(mesh):  # fused attention is spread over the mesh by hand
        # What is asked for. Nothing is written until all of it is found right.
        courses: list[Course] = []
        for one in asked:
            courses.append(Course(*one, mesh, courses))
        for course in courses:
            course.claim()
        left = sorted((c for c in courses if c.result is None), key=lambda course: course.f.seed)
        size, free = room(left) if len(left) > 1 else 1, 0.0  # when the one before was done
        for at in range(0, len(left), size):
            opened: list[Course] = []
            for course in left[at : at + size]:
                course.open(mesh, opened, "/".join(course.workdir.parts[-2:]) if len(courses) > 1 else "")
                opened.append(course)
            for part in programs(opened, mesh):
                if len(left) > 1:
                    devices = max(mesh.size, trial_mesh(len(part)).size)
                    part[0].log.say(f"together {len(part)} of {len(left)} runs, devices {devices}")
                for course in part:
                    course.began = max(course.began, free)
                first = part[0]
                with Profile(first.f.profile_steps, first.start, first.place, first.log) as profile:
                    _train(part, mesh, terminated, profile)
                free = time.perf_counter()
    if failed := [course.failed for course in courses if course.failed]:
        raise RunError("; ".join(failed))
    return [course.result for course in courses if course.result is not None]


def _train(courses: list[Course], mesh: Mesh, terminated: Terminated, profile: Profile) -> None:
    first = courses[0]
    program: Any = make_program(courses, mesh)  # of one run or of several
    step, stream = program.step, program.stream()
    going = list(enumerate(courses))
    n = first.start

    def settle() -> None:
        """Ends the runs that are over."""
        for item in [item for item in going if item[1].is_over(n)]:
            going.remove(item)
            if not item[1].failed:
                item[1].finish(n, step, mesh, len(courses))

    settle()
    terminated.listen()
    for _, course in going:
        course.clock.start(step.seconds)
    while going:
        if terminated(n):
            windows = program.windows()
            for i, course in going:
                course.preempted(n, program.own(i)[0], windows[i], step.seconds)
            raise Preempted(f"SIGTERM: the state is saved at step {n}; the same command goes on")
        profile.before(n)
        hosts, batch = next(stream)  # of several runs one of each part
        has_gradient = program(batch, [i for i, _ in going])
        n += 1
        for i, course in going:
            if n == 1 and not course.lesson.rollout:  # answers that are rewarded alike give none
                has = np.concatenate([np.atleast_2d(part) for part in has_gradient])[i]
                course.log.say(gradient_report(program.own(i)[1], has))
            course.count(hosts[i], batch_shape(batch if len(courses) == 1 else hosts[i]))
        profile.after(n, lambda: program.own(0))
        evaluates = n % first.eval_every == 0 or n == first.steps
        if n % first.f.log_every and not evaluates:
            continue

        means = program.means()
        rows = [course.row(n, means[i], step.seconds) for i, course in going]
        for (i, course), row in zip(going, rows):
            course.write(n, row)
            if row["finite"] < 1:
                course.not_finite(n, program.own(i)[0])
            elif evaluates:
                course.evaluate(n, *program.own(i))
        settle()
        for _, course in going:
            course.clock.start(step.seconds)


def batch_shape(batch: Mapping[str, Any]) -> tuple[int, ...]:
    """(rows, tokens, labelled positions, an encoder's tokens) of a batch; no tokens where it holds features."""
    if "input_ids" not in batch:
        return len(batch["labels"]), 0
    ids = batch["input_ids"]
    scored = batch["label_positions"].shape[1] if "label_positions" in batch else 0
    source = batch["encoder_input_ids"].shape[1] if "encoder_input_ids" in batch else 0
    return math.prod(ids.shape[:-1]), ids.shape[-1], scored, source
