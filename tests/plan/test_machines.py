"""Machines that are not here: the real compilers, where they are installed."""

import re
from types import SimpleNamespace

import pytest

from ftjax.errors import UserError
from ftjax.parallel.mesh import make_mesh
from ftjax.plan import describe, get_machine, machines, plan_of
from ftjax.plan.machines import installed

SHAPE = {"task.max_length": 128, "batch_size": 8, "steps": 100, "model.dtype": "bfloat16"}
COMPILERS = {  # package, devices, GiB of each, attention
    "v5e:2x2": ("libtpu", 4, 15.75, "auto"),
    "h200:4": ("jax-cuda13-pjrt", 4, 0.9 * 139.8, "xla"),  # cuDNN is a package of its own
}


@pytest.mark.parametrize("name", COMPILERS)
def test_a_step_is_compiled_for_it(name, llama, fields, monkeypatch, tmp_path):
    compiler, devices, memory, attention = COMPILERS[name]
    if not installed(compiler):
        pytest.skip(f"{compiler} is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    machine = get_machine(name)
    assert len(machine.devices) == devices and machine.memory == pytest.approx(memory * 2**30)
    plan = plan_of(
        fields(f"model={llama()},task=lm,method=full,mesh=fsdp{devices}", **SHAPE, **{"model.attention": attention}),
        machine,
    )
    whole = plan.parameter_bytes + plan.moments
    assert plan.fits and whole / devices < plan.compiled.arguments < whole / 2
    assert plan.compiled.collectives and all(x > 0 for x in plan.seconds.values())
    assert plan.device_hours == pytest.approx(100 * plan.step_seconds * devices / 3600)
    assert re.search(rf"{memory:.4g} GiB( \(.*0.9 of 139.8 GiB.*\))?: fits", describe(plan))


@pytest.mark.parametrize(
    "given, share",
    [({}, 0.75), ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"}, 0.9), ({"XLA_CLIENT_MEM_FRACTION": ".95"}, 0.95)],
)
def test_of_a_gpu_jax_takes_a_share(given, share, monkeypatch):
    for name in machines.FRACTION:
        monkeypatch.delenv(name, raising=False)
    for name, text in given.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(machines, "installed", lambda _: "1")
    monkeypatch.setattr(machines, "_topology", lambda *_, **__: [None] * 8)
    monkeypatch.setenv("XLA_FLAGS", "")
    assert get_machine("h200:8").memory == share * 139.8 * 2**30
    monkeypatch.setenv(machines.FRACTION[0], "90%")
    with pytest.raises(UserError, match="XLA_CLIENT_MEM_FRACTION=90%"):
        get_machine("h200:8")


def test_a_mesh_that_no_axes_of_the_torus_make_splits_one():
    if not installed("libtpu"):
        pytest.skip("libtpu is not installed")
    mesh = make_mesh(SimpleNamespace(data=8, fsdp=8, tensor=1), get_machine("v4:4x4x4").devices)
    assert mesh.devices.shape == (8, 8, 1) and len({device.id for device in mesh.devices.flat}) == 64
