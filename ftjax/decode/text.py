"""Text of tokens as they come: where a stop string ends it, and what of it is sure to stay."""

from collections.abc import Callable, Sequence

from ftjax.errors import UserError


class Stops:
    """How new tokens are read, `decode` (ids -> text), and strings that end their text."""

    def __init__(self, strings: Sequence[str], decode: Callable[[Sequence[int]], str]):
        if not all(strings):
            raise UserError("a stop string is empty")
        self._strings, self._decode = tuple(strings), decode

    def __bool__(self) -> bool:
        """Whether there are any to look for."""
        return bool(self._strings)

    def behind(self, token: int) -> "Stops":
        """The same for tokens that go on from `token`, whose own text is cut off: what a SentencePiece decoder begins
        with loses its space."""
        before = len(self._decode([token]))
        return Stops(self._strings, lambda tokens: self._decode([token, *tokens])[before:])

    def length(self, tokens: Sequence[int], known: int = 0) -> int | None:
        """How many tokens there are with the one that completes a stop string, None where there is no such; the first
        `known` are known to complete none."""
        if not self._found(self._decode(tokens)):
            return None
        return next((n for n in range(known + 1, len(tokens)) if self._found(self._decode(tokens[:n]))), len(tokens))

    def text(self, tokens: Sequence[int]) -> str:
        """The text before the first stop string."""
        text = self._decode(tokens)
        return text[: min((at for at in map(text.find, self._strings) if at >= 0), default=len(text))]

    def settled(self, tokens: Sequence[int]) -> str:
        """The text that no further token changes: without half a character, or what may begin a stop string."""
        text = self.text(tokens).rstrip("\N{REPLACEMENT CHARACTER}")
        held = (n for s in self._strings for n in range(1, len(s)) if text.endswith(s[:n]))
        return text[: len(text) - max(held, default=0)]

    def _found(self, text: str) -> bool:
        return any(string in text for string in self._strings)
