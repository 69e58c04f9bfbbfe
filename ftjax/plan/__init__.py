"""What a run costs before it is run, and whether a machine that is not here can hold it."""

from ftjax.plan.aot import Compiled, compile_step
from ftjax.plan.machines import Machine, get_machine
from ftjax.plan.program import Program, make_program
from ftjax.plan.report import Plan, describe, plan_of, table

__all__ = [
    "Compiled", "Machine", "Plan", "Program", "compile_step", "describe", "get_machine", "make_program", "plan_of",
    "table",
]  # fmt: skip
