"""ftjax: fine-tuning language models in JAX."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftjax.decode.embed import embed, embed_words
    from ftjax.decode.generate import generate
    from ftjax.hub import load, save
    from ftjax.hub.peft import load_adapter

__all__ = ["embed", "embed_words", "generate", "load", "load_adapter", "save"]
__version__ = "0.1.0"
_HOMES = {
    "embed": "ftjax.decode.embed",
    "embed_words": "ftjax.decode.embed",
    "generate": "ftjax.decode.generate",
    "load": "ftjax.hub",
    "load_adapter": "ftjax.hub.peft",
    "save": "ftjax.hub",
}


def __getattr__(name: str) -> Any:
    # Late, so that `import ftjax` and the command line's --help do not wait for jax.
    if name not in _HOMES:
        raise AttributeError(f"module 'ftjax' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
