"""Device meshes: `single`, or sizes of the axes as in `mesh=data2-fsdp2-tensor2`; 0 takes the devices that are left."""

import re

from ml_collections import ConfigDict


def get(name: str) -> ConfigDict:
    """Fields of the mesh axis; ValueError says how to write one."""
    sizes = dict(data=1, fsdp=1, tensor=1)
    if name != "single":
        parts = [re.fullmatch(r"(data|fsdp|tensor)(\d+)", part) for part in name.split("-")]
        if not all(parts):
            raise ValueError(f"config axis mesh={name!r}: write single, or sizes as in data2-fsdp2-tensor2")
        sizes.update({m[1]: int(m[2]) for m in parts if m})
    return ConfigDict(sizes)
