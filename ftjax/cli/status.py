"""ftjax status --workdir=SWEEP: each trial's state, step, age of its last progress, attempts by cause, job and log.

A job is `slurm 12`, or of this machine host:process. What a scheduler says is not asked: `ftjax sweep` does.
"""

from collections import Counter

from absl import flags

from ftjax.errors import UserError
from ftjax.files import as_path


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags."""
    flags.DEFINE_string("workdir", None, "the sweep's folder", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Prints a table, what is damaged, and a count by state."""
    from ftjax.sweep.attempt import causes
    from ftjax.sweep.record import read
    from ftjax.sweep.render import text_table
    from ftjax.sweep.workdir import open_sweep

    if not values["workdir"].value:
        raise UserError("give --workdir=DIR of a sweep")
    sweep = open_sweep(as_path(values["workdir"].value))
    records = [read(run) for run in sweep.runs]
    rows = []
    for record in records:
        (step, age), last = record.progress, record.attempts[-1] if record.attempts else None
        total = record.result.get("steps") or record.run.config["steps"] or "?"
        rows.append([
            record.run.label, record.state, f"{step}/{total}", "" if age is None else _ago(age),
            ", ".join(f"{count} {cause}" for cause, count in causes(record.run.folder, record.attempts).items()),
            last.where if last else "", str(last.log(record.run.folder)) if last else "",
        ])  # fmt: skip
    print(text_table(("trial", "state", "step", "progress", "attempts", "job", "log"), rows))
    for record in records:
        if record.problem:
            print(f"damaged: {record.run.label}: {record.problem}")
    for folder in sweep.strays():
        print(f"no trial of this experiment as it is now: {folder}")
    print(", ".join(f"{count} {state}" for state, count in Counter(r.state for r in records).items()))


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
