"""The errors that a user sees as one line."""

import re


class UserError(Exception):
    """Bad user input; the message is one line saying what is wrong, where, and what would be right. Exit code 2."""


class RunError(Exception):
    """A run that cannot go on, its last good state saved; the message is one line."""

    code = 1


class Preempted(RunError):
    """A run that SIGTERM ended, its state saved: the same command goes on."""

    code = 143


def of_config(error: Exception) -> str:
    """What absl and ml_collections say of a config file or a flag, without what they wrap it in."""
    absent = next((each for each in (error, *error.args) if isinstance(each, KeyError)), None)
    # absl carries a config file's error as the text of its traceback, whose last line says it
    told = re.split(r"\n\w*Error: ", str(absent.args[0] if absent else error))[-1]
    return f"--config has no such field: {told}" if absent else told
