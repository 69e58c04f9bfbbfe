"""A config whose reads are counted: a field that was set and that nothing read is an error, not a wish."""

from collections.abc import Container, Iterator
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from ftjax.errors import UserError


class MissingField(UserError, AttributeError):
    """A field that the chosen axes do not have."""


class Fields:
    """Read-only attribute view of a config; remembers which leaves were read."""

    def __init__(self, config: ConfigDict | FrozenConfigDict, read: set[str] | None = None, prefix: str = ""):
        self._config = config
        self._read = set() if read is None else read
        self._prefix = prefix

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self._config:
            raise MissingField(
                f"config.{self._prefix}{name} does not exist, but this run needs it: choose the axis's value after the"
                " colon of --config rather than by its name field; to a run older than the field add it in config.json"
            )
        value = self._config[name]
        if isinstance(value, ConfigDict | FrozenConfigDict):
            return Fields(value, self._read, f"{self._prefix}{name}.")
        self._read.add(self._prefix + name)
        return value

    def __contains__(self, name: str) -> bool:
        return name in self._config

    def of(self, config: ConfigDict) -> "Fields":
        """Another config whose reads count as this one's, and this one's as its: what is made of this is used there."""
        return Fields(config, self._read)

    def to_dict(self) -> dict[str, Any]:
        """The fields below here as plain values; does not count as reading them."""
        return self._config.to_dict()

    def check_all_read(self, default: ConfigDict, among: Container[str] | None = None) -> None:
        """UserError naming every field (`among` some, or all) that differs from its default and was never read."""
        before = dict(leaves(default))
        unread = [
            f"config.{path}={value!r}"
            for path, value in leaves(self._config)
            if (among is None or path in among) and path not in self._read and before.get(path) != value
        ]
        if unread:
            raise UserError(f"{', '.join(unread)}: set, but nothing in this run uses it; remove it")


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every field."""
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict | FrozenConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
