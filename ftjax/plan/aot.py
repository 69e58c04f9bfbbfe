"""Compiles a step for a machine that is not here, and remembers what came of it."""

import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from ftjax.errors import RunError, UserError
from ftjax.files import cache, write_json
from ftjax.parallel.mesh import shardings
from ftjax.plan.hlo import Moved, collectives
from ftjax.plan.machines import Machine, installed
from ftjax.plan.program import Program, nbytes

FORMAT = 3  # of what is remembered
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Compiled(NamedTuple):
    """What the compiler says of a program, bytes by device; of one that it refused as too large, `peak` alone.

    arguments: what a run places on a device, of which the step may read less: `read`.
    aliased: of the arguments, what outputs take the place of. peak: what is held at most.
    """

    arguments: int = 0
    read: int = 0
    outputs: int = 0
    temporaries: int = 0
    aliased: int = 0
    code: int = 0
    peak: int = 0
    refused: bool = False
    collectives: dict[str, Moved] = {}  # noqa: RUF012
    seconds: float = 0.0  # of compiling
    cached: bool = False


def compile_step(program: Program, mesh: Mesh, machine: Machine) -> Compiled:
    """The step as `ftjax.train.loop` compiles it, for that machine's mesh. To be called as its programs are traced:
    within `jax.set_mesh` and `kernels.compiled_for`.

    Remembered under `$XDG_CACHE_HOME/ftjax/plan` (`~/.cache` where it is not set), by the program and by the versions
    of JAX and of the machine's compiler.

    Raises:
      UserError: fused attention for a GPU where there is no cuDNN.
      RunError: the compiler fails, for another reason than the memory.
    """
    args = program.placed(mesh)
    out = (shardings(program.state, mesh), None)
    try:
        lowered = jax.jit(program.step, donate_argnums=0, out_shardings=out).lower(*args)
    except RuntimeError as error:
        if "cuDNN" not in str(error):
            raise
        raise UserError(
            f"--topology={machine.name}: fused attention needs cuDNN, which is not here: pip install 'ftjax[cuda]', or"
            " plan with --config.model.attention=xla"
        ) from None
    held = sum(nbytes(values, mesh) for values in (program.state, program.frozen))  # jit drops what is not read
    kept = cache("plan") / f"{_key(lowered.as_text(), held, machine)}.json"
    if (found := _read(kept)) is not None:
        return found._replace(cached=True)
    started = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = too_large(str(error))
        if needed is None:
            told = " ".join(str(error).split())[:300]
            raise RunError(f"--topology={machine.name}: the compiler failed ({told})") from error
        made = Compiled(peak=needed, refused=True)
    else:
        m: Any = compiled.memory_analysis()
        made = Compiled(
            max(m.argument_size_in_bytes, held), m.argument_size_in_bytes, m.output_size_in_bytes,
            m.temp_size_in_bytes, m.alias_size_in_bytes, m.generated_code_size_in_bytes,
            collectives=collectives(compiled.as_text() or "", mesh.size),
        )  # fmt: skip
        made = made._replace(peak=made.arguments + made.outputs - made.aliased + made.temporaries + made.code)
    made = made._replace(seconds=time.perf_counter() - started)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, made._asdict() | {"collectives": {name: x._asdict() for name, x in made.collectives.items()}})
    return made


def too_large(message: str) -> int | None:
    """The bytes that a program needs of a device, where a compiler says that they are more than it has."""
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM", message)
    return int(float(found[1]) * UNITS[found[2]]) if found else None


def _key(text: str, held: int, machine: Machine) -> str:
    versions = [installed(name) for name in ("jax", "jaxlib", *machine.compilers)]
    options = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    told = [str(FORMAT), machine.name, *versions, *options, str(held), text]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:32]


def _read(path: Path) -> Compiled | None:
    try:
        found = json.loads(path.read_text())
        moved = {name: Moved(**x) for name, x in found.pop("collectives").items()}
        return Compiled(**found, collectives=moved)
    except (OSError, ValueError, TypeError, KeyError):  # not there, or not ours: compiled anew
        return None
