"""ftjax table --workdir=SWEEP [--format=text|markdown|latex|csv|html] [--output=FILE]: a sweep's table as it stands.

Cells are mean and standard deviation over seeds; missing and damaged runs are named, the paper's numbers stand beneath.
A page (html) has the curves and links to each run; it goes to report.html of the sweep's folder.
"""

from pathlib import Path
from typing import Any

from absl import flags

from ftjax.errors import RunError, UserError
from ftjax.files import as_path, make_folder, write_text


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags."""
    from ftjax.sweep.table import FORMATS

    flags.DEFINE_string("workdir", None, "the sweep's folder", flag_values=values)
    flags.DEFINE_enum("format", None, list(FORMATS), "by --output's ending, else text", flag_values=values)
    flags.DEFINE_string("output", None, "a file in place of the terminal", flag_values=values)
    flags.DEFINE_bool("strict_code", False, "results by other code are an error", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Prints or writes; exit code 1 where a record is damaged."""
    from ftjax.sweep.record import read
    from ftjax.sweep.table import FORMATS, check_code, make_table, write
    from ftjax.sweep.workdir import open_sweep
    from ftjax.train.report import commit

    get: Any = lambda name: values[name].value  # noqa: E731
    if not get("workdir"):
        raise UserError("give --workdir=DIR of a sweep")
    workdir, now = as_path(get("workdir")), commit()
    sweep = open_sweep(workdir)
    records = [read(run) for run in sweep.runs]
    if get("strict_code"):
        check_code(records, now)
    output = as_path(get("output")) if get("output") else None
    by_ending = {ending: form for form, ending in FORMATS.items()}
    form = get("format") or (by_ending.get(output.suffix, "text") if output else "text")
    if form == "html" and output is None:
        output = workdir / "report.html"
    text = write(make_table(sweep, records), form, now, output.parent if output else Path())
    if output is None:
        print(text, end="")
    else:
        make_folder(output.parent)
        write_text(output, text)
        print(f"{output}")
    if damaged := [record for record in records if record.state == "damaged"]:
        raise RunError(f"{len(damaged)} damaged: {damaged[0].problem}")
