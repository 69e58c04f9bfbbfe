"""One text as it comes."""

from collections.abc import Iterator
from typing import Any

from ftjax.decode.batches import lay
from ftjax.decode.generate import pieces, request
from ftjax.decode.text import Stops
from ftjax.errors import UserError
from ftjax.models.transformer import Transformer


def stream(model: Transformer, params: Any, prompt: list[int], *, stops: Stops, **options: Any) -> Iterator[str]:
    """The continuation of one prompt in pieces, each as soon as no further token can change it.

    Compiles for the prompt's bucket, as a batch of one.

    Args:
      stops: how to read tokens, and the strings that end the text (none of them in it).
      options: as for `ftjax.decode.generate.request`.
    Raises:
      UserError: as `request`; several sequences, or beams, which are only known at the end.
    """
    asked = request(model, params, *lay([prompt], 1), stops=stops, **options)
    if asked.options.beams or asked.options.num_return_sequences > 1:
        raise UserError("only one sequence can be streamed: num_beams=1 and num_return_sequences=1")
    shown, tokens, reader = "", [], asked.readers[0]
    for found in pieces(asked, 1):
        tokens = asked.cut(found.tokens[0, 0, : found.lengths[0, 0]])
        text = reader.settled(tokens)
        if len(text) > len(shown):
            yield text[len(shown) :]
            shown = text
    if rest := reader.text(tokens)[len(shown) :]:
        yield rest
