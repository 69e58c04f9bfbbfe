"""Distillation: none yet."""

from ml_collections import ConfigDict


def get(name: str) -> ConfigDict:
    """Fields of the distill axis; ValueError lists what exists."""
    if name != "none":
        raise ValueError(f"config axis distill={name!r} is unknown; there is none")
    return ConfigDict(dict(name=name))
