"""A plan in figures and in words."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from ftjax import tree
from ftjax.errors import UserError
from ftjax.nn import kernels
from ftjax.parallel.mesh import make_mesh
from ftjax.plan.aot import Compiled, compile_step
from ftjax.plan.machines import FRACTION, GIB, Machine
from ftjax.plan.program import Program, make_program, nbytes
from ftjax.train.fields import Fields
from ftjax.train.report import trainable

CAPABILITY = {"gpu": (9, 0)}
FEATURES = "a frozen body's features; the pass that makes them is not counted"


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
        if self.compiled is None or self.machine is None:
            return True
        return not self.compiled.refused and self.compiled.peak <= self.machine.memory

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
      RunError: as `compile_step`.
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
    seconds = {} if compiled.refused else least_seconds(f, program, mesh, machine, compiled)
    return plan._replace(machine=machine, mesh=dict(mesh.shape), compiled=compiled, seconds=seconds)


def _plan(f: Fields, program: Program) -> Plan:
    params = tree.count(program.parts.variables["params"])
    train = program.state["train"]
    return Plan(
        f.model.path, params, trainable(program.parts), program.flops, program.shape,
        nbytes(program.frozen) + nbytes(train), nbytes(program.state["opt"]), nbytes(train), program.steps,
    )  # fmt: skip


def least_seconds(f: Fields, program: Program, mesh: Mesh, machine: Machine, compiled: Compiled) -> dict[str, float]:
    """A roofline: what no step is faster than, by arithmetic, by each device's memory, and by its links.

    Of memory: what the step reads of its arguments, once, and its outputs. Of a frozen table of embeddings a step may
    look up a few rows, so that it does not count, unless it is the head too. Left out, for it depends on the compiler
    and on caches: weights that are read again (backward, in other micro-batches) or gathered, and temporaries. By
    arithmetic attention counts in full: a kernel that skips what a causal mask hides may do with less.
    """
    chip = machine.chip
    peak = chip.flops * (chip.fp32 if f.model.dtype == "float32" else 1)
    _, length, scored = (*program.shape, 0)[:3]
    cfg, frozen = program.parts.model.cfg, tree.flatten(program.frozen)
    is_head = cfg.head_is_embedding and scored
    tables = rf"params/embed/{'(?!tokens/)' if is_head else ''}.*embedding$"
    looked_up = tree.unflatten({path: x for path, x in frozen.items() if re.match(tables, path)})
    read = compiled.read - (nbytes(looked_up, mesh) if length else 0)  # a step over features has none of them
    return {
        "arithmetic": program.flops / len(machine.devices) / peak,
        "memory": (max(read, 0) + compiled.outputs) / chip.bandwidth,
        "links": sum(x.sent for x in compiled.collectives.values()) / chip.link,
    }


def describe(plan: Plan) -> str:
    """One plan, as lines."""
    rows, length, scored, source = (*plan.shape, 0, 0)[:4]
    batch = f"{rows} rows of {length} tokens" if length else f"{rows} rows of {FEATURES}"
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
    if c.refused:
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
    m = plan.machine
    share = f"{_size(plan.compiled.peak)} of {_size(m.memory)}"
    pool = f" (JAX's {m.share:g} of {_size(m.chip.memory)}; {FRACTION[0]})" if m.backend == "gpu" else ""
    return f"{share}{pool}: {'fits' if plan.fits else 'does NOT fit'}"


def table(plans: Sequence[tuple[str, Plan | str]]) -> str:
    """Several plans, a line each, by label; a text, of what cannot be planned, as it is."""
    made = [plan for _, plan in plans if isinstance(plan, Plan)]
    compiled = any(plan.compiled for plan in made)
    rows = [["trial", "parameters", "trains", "share", "GFLOP/step", "params", "moments", "gradients", "batch"]]
    rows[0] += ["HBM", "of", "fits", "step ms", "device-h"] if compiled else []
    for label, plan in plans:
        if isinstance(plan, str):
            rows.append([label, plan])
            continue
        row = [
            label, f"{plan.parameters:,}", f"{plan.trains:,}", f"{100 * plan.trains / max(plan.parameters, 1):.3g}%",
            f"{plan.flops / 1e9:,.4g}", _size(plan.parameter_bytes), _size(plan.moments), _size(plan.gradients),
            "x".join(map(str, plan.shape[:2])),
        ]  # fmt: skip
        if plan.machine is not None and plan.compiled is not None:
            hours = plan.device_hours
            row += [
                _size(plan.compiled.peak), _size(plan.machine.memory), "yes" if plan.fits else "NO",
                f"{1e3 * plan.step_seconds:.3g}" if plan.seconds else "-", "-" if hours is None else f"{hours:.3g}",
            ]  # fmt: skip
        rows.append(row)
    first = max(len(row[0]) for row in rows)
    _, *rest = (max(map(len, column)) for column in zip(*(row for row in rows if len(row) > 2)))
    lines = ["  ".join([row[0].ljust(first), *(x.rjust(w) for x, w in zip(row[1:], rest))]).rstrip() for row in rows]
    if any(not plan.shape[1] for plan in made):
        lines.append(f"batch nx0: {FEATURES}")
    return "\n".join(lines)


def _size(n: float) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if n >= size:
            return f"{n / size:.4g} {unit}"
    return f"{n:.0f} B"
