"""The errors that a user sees as one line."""


class UserError(Exception):
    """Bad user input; the message is one line saying what is wrong, where, and what would be right. Exit code 2."""


class RunError(Exception):
    """A run that cannot go on, its last good state saved; the message is one line."""

    code = 1


class Preempted(RunError):
    """A run that SIGTERM ended, its state saved: the same command goes on."""

    code = 143
