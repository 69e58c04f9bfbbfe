"""`ftjax <command>`: one thin file a command."""

import importlib
import logging
import os
import sys

from absl import flags

from ftjax.errors import RunError, UserError, of_config
from ftjax.files import bucket_errors
from ftjax.lean import hide_torch

COMMANDS = {
    "train": "fine-tune a model: --config, --workdir",
    "eval": "evaluate a run or a model: --workdir or --config",
    "teach": "a teacher's probabilities, or with --sequences its text, for a student: --config, --output",
    "score": "texts against references: --task, --predictions",
    "generate": "continue prompts: --workdir or --model, --prompt",
    "self-instruct": "tasks and examples by a model: --seeds, --model or --workdir, --output, --num",
    "fill": "words for masked places: --model or --workdir, --text",
    "embed": "vectors of texts or words, and search among them: --model or --workdir, --input, --output, --query",
    "import": "a run of a PEFT adapter: --adapter, --model, --workdir",
    "export": "a run for PEFT or transformers: --workdir, --format, --output",
    "merge": "adapters into plain weights: --workdir, --output",
    "methods": "what each fine-tuning method trains of a model: --model",
    "plan": "what a run or a table costs, and whether a machine holds it: --config or FILE.py, --topology",
    "sweep": "run what is missing of an experiment's table: FILE.py --scale, --workdir",
    "table": "a sweep's table as it stands: --workdir, --format, --output",
    "status": "a sweep's trials: --workdir",
    "tokenizer": "learn a tokenizer from text: train --kind, --input, --vocab_size, --output",
}


def run(argv: list[str] | None = None) -> None:
    """Entry point of the console script; exits 0, 1 (the run failed), 2 (bad input), 141 (nobody reads on, as behind
    `| head`), 143 (SIGTERM, all is saved)."""
    hide_torch()
    try:
        code = main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python itself flushes at the end
        code = 141
    sys.exit(code)


def main(argv: list[str]) -> int:
    """Runs a command line; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print("usage: ftjax <command> [--flags]\n")
        print("\n".join(f"  {name:<15}{text}" for name, text in COMMANDS.items()))
        print("\nftjax <command> --help shows its flags.")
        return 0 if argv else 2
    name, *rest = argv
    if name not in COMMANDS:
        return _fail(f"no command {name!r}; there are {', '.join(COMMANDS)}")
    logging.basicConfig(level=logging.WARNING, format="ftjax: %(message)s")
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells of every folder that it opens
    logging.getLogger("absl").addFilter(_is_news)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # at length, of errors of orbax's that are raised as well
    sys.path.insert(0, os.getcwd())  # `configs` is a package of the folder that one runs from
    command = importlib.import_module(f"ftjax.cli.{name.replace('-', '_')}")
    values = flags.FlagValues()
    try:
        command.define(values, rest)
        flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
        left = values([f"ftjax {name}", *rest])[1:]
        if values["help"].value:
            print((command.__doc__ or "").strip(), "\n", values.main_module_help() or values.get_help(), sep="\n")
            return 0
        if extra := left[getattr(command, "POSITIONAL", 0) :]:
            raise UserError(f"unexpected {' '.join(extra)}; flags are written --name=value")
        command.main(values, *left)
    except UserError as error:
        return _fail(str(error))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        if not isinstance(error, flags.Error) and not _from_config(error):
            raise
        return _fail(of_config(error))
    except RunError as error:
        print(f"ftjax: {error}", file=sys.stderr)
        return error.code
    except bucket_errors() as error:
        _fail(f"the bucket cannot be reached: {error}")
        return 1
    return 0


def _is_news(record: logging.LogRecord) -> bool:
    """Not what orbax tells of errors, with their traces, that it raises as well."""
    return not record.exc_info


def _from_config(error: BaseException) -> bool:
    """Whether a config file or an override of one raised it: that is bad input, anything else is a bug."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = trace.tb_frame.f_code.co_filename if trace else ""
    return "ml_collections" in name or f"{os.sep}configs{os.sep}" in name


def _fail(message: str) -> int:
    print(f"ftjax: {' '.join(message.split())}", file=sys.stderr)
    return 2
