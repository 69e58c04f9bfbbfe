"""Machines that are not here: the real compilers, where they are installed."""

import pytest

from ftjax.plan import describe, get_machine, plan_of
from ftjax.plan.machines import installed

SHAPE = {"task.max_length": 128, "batch_size": 8, "steps": 100, "model.dtype": "bfloat16"}
COMPILERS = {  # package, devices, GiB of each, attention
    "v5e:2x2": ("libtpu", 4, 15.75, "auto"),
    "h200:4": ("jax-cuda13-pjrt", 4, 139.8, "xla"),  # cuDNN is a package of its own
}


@pytest.mark.parametrize("name", COMPILERS)
def test_a_step_is_compiled_for_it(name, llama, fields, monkeypatch, tmp_path):
    compiler, devices, memory, attention = COMPILERS[name]
    if not installed(compiler):
        pytest.skip(f"{compiler} is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = get_machine(name)
    assert len(machine.devices) == devices and machine.chip.memory == memory * 2**30
    plan = plan_of(
        fields(f"model={llama()},task=lm,method=full,mesh=fsdp{devices}", **SHAPE, **{"model.attention": attention}),
        machine,
    )
    whole = plan.parameter_bytes + plan.moments
    assert plan.fits and whole / devices < plan.compiled.arguments < whole / 2
    assert plan.compiled.collectives and all(x > 0 for x in plan.seconds.values())
    assert plan.device_hours == pytest.approx(100 * plan.step_seconds * devices / 3600)
    assert f"{memory:.4g} GiB: fits" in describe(plan)
