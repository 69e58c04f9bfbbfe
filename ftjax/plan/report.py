"""A plan in figures and in words."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ftjax import tree
from ftjax.errors import UserError
from ftjax.nn import kernels
from ftjax.parallel.mesh import make_mesh
from ftjax.plan.aot import Compiled, compile_step
from ftjax.plan.machines import GIB, Machine
from ftjax.plan.program import Program, make_program
from ftjax.train.fields import Fields
from ftjax.train.report import trainable

CAPABILITY = {"gpu": (9, 0)}


class Plan(NamedTuple):
    """What a step of a run costs. Bytes and FLOPs are of the whole step, over all devices, each thing counted once.

    shape: (rows, tokens, labelled positions, an encoder's tokens) of a batch at full length.
    moments: bytes of the optimizer's state; gradients: fp32, of what trains.
    steps: of the run, None where they depend on the data.
    compiled, machine, mesh, seconds: for a machine that was named; seconds are the least that a step can take by
      arithmetic, by memory and by links.
    """

    path: str
    parameters: int
    trains: int
    flops: float
    shape: tuple[int, ...]
    parameter_bytes: int
    moments: int
    gradients: int
    steps: int | None
    machine: Machine | None = None
    mesh: dict[str, int] = {}  # noqa: RUF012
    compiled: Compiled | None = None
    seconds: dict[str, float] = {}  # noqa: RUF012

    @property
    def fits(self) -> bool:
        """Whether each device holds its part; True where no machine was named."""
        return self.compiled is None or self.machine is None or self.compiled.peak <= self.machine.chip.memory

    @property
    def step_seconds(self) -> float:
        """The least time of a step; 0 where no machine was named."""
        return max(self.seconds.values(), default=0.0)

    @property
    def device_hours(self) -> float | None:
        """Of all steps at that time; None where they are not known."""
        if self.machine is None or self.steps is None or not self.fits:
            return None
        return self.steps * self.step_seconds * len(self.machine.devices) / 3600


def plan_of(f: Fields, machine: Machine | None = None) -> Plan:
    """The plan of a config; for a machine its step is compiled.

    Raises:
      UserError: as `make_program`; a mesh that does not use all devices of the machine.
    """
    if machine is None:
        return _plan(f, make_program(f))
    mesh = make_mesh(f.mesh, machine.devices)
    if mesh.size != len(machine.devices):
        raise UserError(
            f"mesh: {mesh.size} of the {len(machine.devices)} devices of {machine.name}; all have to be used, as with"
            " --config.mesh.fsdp=0"
        )
    with kernels.compiled_for(machine.backend, CAPABILITY.get(machine.backend, (0, 0))):
        program = make_program(f, mesh)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # jax.set_mesh would run things on those devices
            compiled = compile_step(program, mesh, machine)
    plan = _plan(f, program)
    seconds = least_seconds(f, program, dict(mesh.shape), machine, compiled) if compiled.arguments else {}
    return plan._replace(machine=machine, mesh=dict(mesh.shape), compiled=compiled, seconds=seconds)


def _plan(f: Fields, program: Program) -> Plan:
    params = tree.count(program.parts.variables["params"])
    train = program.state["train"]
    return Plan(
        f.model.path, params, trainable(program.parts), program.flops, program.shape,
        nbytes(program.frozen) + nbytes(train), nbytes(program.state["opt"]), nbytes(train), program.steps,
    )  # fmt: skip


def least_seconds(
    f: Fields, program: Program, mesh: dict[str, int], machine: Machine, compiled: Compiled
) -> dict[str, float]:
    """A roofline: what no step is faster than, by arithmetic, by each device's memory, and by its links.

    Of memory: every parameter is read forward and backward (once more with remat) in each micro-batch, gathered where
    it is spread over `fsdp`; arguments are read and outputs written; temporaries are written and read once.
    """
    chip = machine.chip
    peak = chip.flops * (chip.fp32 if f.model.dtype == "float32" else 1)
    passes = f.micro_batches * (3 if f.model.remat else 2)
    weights = (nbytes(program.frozen) + nbytes(program.state["train"])) / mesh["tensor"]
    moved = passes * weights + compiled.arguments + compiled.outputs + 2 * compiled.temporaries
    return {
        "arithmetic": program.flops / len(machine.devices) / peak,
        "memory": moved / chip.bandwidth,
        "links": sum(x.sent for x in compiled.collectives.values()) / chip.link,
    }


def nbytes(values: Any) -> int:
    """Bytes of all leaves (arrays or shapes)."""
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(values))


def describe(plan: Plan) -> str:
    """One plan, as lines."""
    rows, length, scored, source = (*plan.shape, 0, 0)[:4]
    batch = f"{rows} rows of {length} tokens" if length else f"{rows} rows of a frozen body's features"
    batch += f" with {scored} slots for labels" if scored else ""
    batch += f", {source} tokens for the encoder" if source else ""
    lines = [
        f"model    {plan.path}: {plan.parameters:,} parameters",
        f"trains   {plan.trains:,} ({100 * plan.trains / max(plan.parameters, 1):.3g}%)",
        f"batch    {batch}: batch_size at the full task.max_length, for a plan reads no data",
        f"work     {plan.flops / 1e9:,.4g} GFLOP a step",
        f"bytes    parameters {_size(plan.parameter_bytes)}, moments {_size(plan.moments)}, gradients"
        f" {_size(plan.gradients)}",
    ]
    if plan.machine is None or plan.compiled is None:
        return "\n".join(lines)
    m, c = plan.machine, plan.compiled
    shape = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    lines.append(f"machine  {m.name}: {len(m.devices)} x {m.devices[0].device_kind}, mesh {shape}")
    told = "remembered" if c.cached else f"compiled in {c.seconds:.0f} s"
    if not c.arguments:
        return "\n".join([*lines, f"HBM      {_verdict(plan)}; {told}"])
    lines += [
        f"HBM      a device: arguments {_size(c.arguments)}, outputs {_size(c.outputs)}, aliased {_size(c.aliased)},"
        f" temporaries {_size(c.temporaries)}, code {_size(c.code)}",
        f"         {_verdict(plan)}; {told}",
        *(
            f"sends    {x.count} x {kind}: {_size(x.bytes)} a device, {_size(x.sent)} over its links"
            for kind, x in sorted(c.collectives.items())
        ),
        f"step     at least {1e3 * plan.step_seconds:.3g} ms, whichever is most: "
        + ", ".join(f"{name} {1e3 * x:.3g} ms" for name, x in plan.seconds.items()),
    ]
    hours = plan.device_hours
    unknown = "device-hours are not known: --config.steps is not set, and epochs depend on the data"
    known = f"{plan.steps or 0:,} steps, at least {hours or 0:.3g} device-hours"
    lines.append(f"run      {unknown if hours is None else known}")
    return "\n".join(lines)


def _verdict(plan: Plan) -> str:
    assert plan.machine is not None and plan.compiled is not None
    share = f"{_size(plan.compiled.peak)} of {_size(plan.machine.chip.memory)}"
    return f"{share}: {'fits' if plan.fits else 'does NOT fit'}"


def table(plans: Sequence[tuple[str, Plan]]) -> str:
    """Several plans, a line each, by label."""
    compiled = any(plan.compiled for _, plan in plans)
    rows = [["trial", "parameters", "trains", "share", "GFLOP/step", "params", "moments", "gradients", "batch"]]
    rows[0] += ["HBM", "of", "fits", "step ms", "device-h"] if compiled else []
    for label, plan in plans:
        row = [
            label, f"{plan.parameters:,}", f"{plan.trains:,}", f"{100 * plan.trains / max(plan.parameters, 1):.3g}%",
            f"{plan.flops / 1e9:,.4g}", _size(plan.parameter_bytes), _size(plan.moments), _size(plan.gradients),
            "x".join(map(str, plan.shape[:2])),
        ]  # fmt: skip
        if plan.machine is not None and plan.compiled is not None:
            hours = plan.device_hours
            row += [
                _size(plan.compiled.peak), _size(plan.machine.chip.memory), "yes" if plan.fits else "NO",
                f"{1e3 * plan.step_seconds:.3g}" if plan.seconds else "-", "-" if hours is None else f"{hours:.3g}",
            ]  # fmt: skip
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    first, *rest = widths
    return "\n".join(
        "  ".join([row[0].ljust(first), *(x.rjust(w) for x, w in zip(row[1:], rest))]).rstrip() for row in rows
    )


def _size(n: float) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if n >= size:
            return f"{n / size:.4g} {unit}"
    return f"{n:.0f} B"
