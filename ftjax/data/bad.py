"""What happens to rows that are not right."""

from types import TracebackType

from ftjax.errors import UserError


class BadRows:
    """`with bad:` around what may raise a UserError about one row: raised again, or counted and the row left out.

    Attributes:
      policy: 'error' or 'skip'.
      messages: what was wrong with each row that was left out.
    """

    def __init__(self, policy: str = "error"):
        """Raises UserError for an unknown policy."""
        if policy not in ("error", "skip"):
            raise UserError(f"data.on_bad_row={policy!r}: give error or skip")
        self.policy = policy
        self.messages: list[str] = []

    def __enter__(self) -> "BadRows":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self.policy != "skip" or not isinstance(error, UserError):
            return False
        self.messages.append(str(error))
        return True
