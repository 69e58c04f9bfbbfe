import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import method as configs
from ftjax import methods, tree
from ftjax.errors import UserError
from ftjax.models.transformer import abstract, sites
from ftjax.parallel.mesh import BATCH, RULES, make_mesh, rows_multiple, spec

ABSTRACT = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
HEADS = {"gpt2": ("lm", "classification", "none"), "llama": ("lm", "classification"), "bert": ("mlm", "classification")}

COLUMNS, ROWS = (1, "fsdp", "tensor"), (1, "tensor", "fsdp")
CUTS = {  # the axes that cut a leaf; what is not named is whole on every device
    **{f"{name}/kernel": COLUMNS for name in ("attn/q", "attn/k", "attn/v", "ffn/up", "ffn/gate")},
    **{f"{name}/bias": (1, "tensor") for name in ("attn/q", "attn/k", "attn/v", "ffn/up", "ffn/gate")},
    **{f"{name}/kernel": ROWS for name in ("attn/o", "ffn/down")},
    "tokens/embedding": ("tensor", "fsdp"),
    "params/head/kernel": ("fsdp", "tensor"),
    "params/classifier/kernel": ("fsdp", 1),
}


@pytest.fixture(scope="module")
def eight():
    """What eight.py found on eight devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command, root = [sys.executable, "-m", "tests.parallel.eight"], Path(__file__).parents[2]
    done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_method_was_on_meshes_and_full_on_every_one(eight):
    assert eight["devices"] == 8
    assert {name for run in eight["runs"] for name in run.partition(" ")[0].split("+")} == set(methods.METHODS)
    meshes = {name: {tuple(run["sizes"]) for run in found} for name, found in eight["runs"].items()}
    assert (len(meshes["full"]), len(meshes["lora"])) == (1 + 10, 1 + 3)
    assert all((2, 2, 2) in found or {(2, 4, 1), (2, 1, 4)} <= found for found in meshes.values())


def test_a_mesh_of_eight_gives_the_steps_of_one_device(eight):
    """Losses and norms, and after two steps every trained leaf and moment."""
    for name, (one, *others) in eight["runs"].items():
        (first, _), (second, _) = one["rows"]
        assert first > second
        assert [path for path, (_, went, _) in one["leaves"].items() if "train/" in path and went < 1e-4] == []
        for other in others:
            np.testing.assert_allclose(other["rows"], one["rows"], rtol=1e-5, err_msg=f"{name} {other['sizes']}")
            for path, (off, went, _) in other["leaves"].items():
                assert off <= 2e-5 * went, (name, other["sizes"], path)


def test_what_trains_is_cut_as_the_rules_say_and_adapters_are_whole(eight):
    for name, found in eight["runs"].items():
        for run in found:
            count = dict(zip(("data", "fsdp", "tensor"), run["sizes"])) | {1: 1}
            for path, (_, _, pieces) in run["leaves"].items():
                cut = next((axes for end, axes in CUTS.items() if path.endswith(f"/{end}")), ())
                wanted = [count[axis] for axis in cut] if "/adapters/" not in path else []
                assert pieces == wanted or (not wanted and set(pieces) <= {1}), (name, run["sizes"], path)


def test_two_steps_are_one_compile(eight):
    assert {run["compiles"] for found in eight["runs"].values() for run in found} == {1}


def test_a_state_is_restored_onto_other_meshes(eight):
    assert eight["restored"] == [True] * 3


def test_trials_spread_over_devices_are_the_runs_alone(eight):
    assert [trials["devices"] for trials in eight["trials"]] == [4, 2]
    for trials in eight["trials"]:
        assert trials["off"] <= 1e-5 < 1e-3 < trials["went"]


@pytest.mark.parametrize(("name", "head"), [(name, head) for name, heads in HEADS.items() for head in heads])
def test_rules_cover_every_parameter_of_every_family_and_head(make, name, head):
    for options in ({}, {"tied_head": not make(name).cfg.tied_head}):
        for path, x in tree.flatten({"params": abstract(make(name, head=head, **options).model)}).items():
            wanted = tree.first_match(RULES, path)
            assert len(wanted) <= len(x.shape), path
            if path.endswith(("kernel", "embedding")) and 3 not in x.shape:  # three classes divide nothing
                assert any(spec(path, x.shape, ABSTRACT)), path


def test_rules_cover_adapters_moments_and_counters(make):
    made = make("gpt2")
    context = methods.Context(made.cfg, made.params, sites(made.model))
    cfg = configs.get("lora")
    cfg.update(rank=2, targets=("all_linear",))
    adapters = methods.get("lora").init(context, cfg, jax.random.key(0))
    for path, x in tree.flatten({"train": {"adapters": adapters}}).items():
        assert spec(path, x.shape, ABSTRACT) == P()
    assert spec("step", (), ABSTRACT) == P()
    assert spec("opt/0/mu/params/layers/attn/q/kernel", (2, 16, 16), ABSTRACT) == P(None, "fsdp", "tensor")
    with pytest.raises(ValueError, match="no sharding rule covers params/layers/new/kernel"):
        spec("params/layers/new/kernel", (2, 4, 4), ABSTRACT)


def test_rules_see_through_a_cut_stack_and_leave_out_what_does_not_divide():
    for path in ("params/layers/attn/o/kernel", "params/layers/0:1/attn/o/kernel"):
        assert spec(path, (2, 16, 16), ABSTRACT) == P(None, "tensor", "fsdp")
        assert spec(path, (2, 15, 16), ABSTRACT) == P(None, None, "fsdp")
    assert spec("params/head/kernel", (16, 51), ABSTRACT) == P("fsdp", None)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((0, 0, 1), "at most one may be 0"), ((-1, 1, 1), "none below"), ((64, 1, 1), "needs 64 devices"),
     ((0, 64, 1), "needs 0 devices|mesh 0x64x1")],
)  # fmt: skip
def test_sizes_that_the_devices_do_not_give(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(SimpleNamespace(**dict(zip(("data", "fsdp", "tensor"), sizes))))


def test_zero_takes_the_devices_that_are_left():
    mesh = make_mesh(SimpleNamespace(data=0, fsdp=1, tensor=1))
    assert mesh.size == len(jax.devices()) and rows_multiple(mesh) == mesh.size
    assert P(("data", "fsdp")) == BATCH
