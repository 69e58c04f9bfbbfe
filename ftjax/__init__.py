"""ftjax: fine-tuning language models in JAX."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftjax.decode.generate import generate
    from ftjax.hub import load, save

__all__ = ["generate", "load", "save"]
__version__ = "0.1.0"
_HOMES = {"generate": "ftjax.decode.generate", "load": "ftjax.hub", "save": "ftjax.hub"}


def __getattr__(name: str) -> Any:
    # Late, so that `import ftjax` and the command line's --help do not wait for jax.
    if name not in _HOMES:
        raise AttributeError(f"module 'ftjax' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
