"""Plans of small models: against XLA's count, against the program of a real run, and of a machine that is here."""

import json

import jax
import pytest
from absl import flags

from ftjax import tree
from ftjax.cli.main import main
from ftjax.cli.plan import define
from ftjax.errors import RunError, UserError
from ftjax.parallel.mesh import make_mesh, shardings
from ftjax.plan import Machine, aot, describe, get_machine, machines, make_program, plan_of, table
from ftjax.plan.machines import Chip
from ftjax.train import course, loop
from ftjax.train import program as training

BIG = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 3, "head_dim": 64, "vocab_size": 2048}
LM = {"task.max_length": 64, "batch_size": 4, "loss.chunk": 1 << 20, "model.scan_unroll": -1}
HERE = Chip(memory=1e9, flops=1e12, bandwidth=1e11, link=1e10)


def shapes(values):
    return {path: (x.shape, x.dtype) for path, x in tree.flatten(values).items()}


@pytest.fixture
def here(monkeypatch, tmp_path):
    """here(memory=1e9) -> this machine's first device, as if it were another's; what is remembered is in tmp_path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda memory=1e9: Machine("here", HERE._replace(memory=memory), jax.devices()[:1], "cpu", ("jaxlib",))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_flops_are_those_of_an_unrolled_lowering(llama, fields, method):
    program = make_program(fields(f"model={llama(**BIG)},task=lm,method={method}", **LM))
    args = program.state, program.frozen, program.batch, jax.eval_shape(jax.random.key, 0)
    theirs = jax.jit(program.step).lower(*args).cost_analysis()["flops"]  # type: ignore[index]
    assert abs(program.flops / theirs - 1) < 0.05, program.flops / theirs


def test_counts_and_bytes_by_hand(llama, fields):
    """Of a folder without weights: a Llama of 2 layers of 64, rank 8 on all of q (64x64), k, v (64x32), o."""
    axes = f"model={llama()},task=lm,method=lora"
    plan = plan_of(fields(axes, **{"task.max_length": 64, "batch_size": 4, "model.param_dtype": "bfloat16"}))
    layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 96 + 2 * 64
    assert plan.parameters == 2 * 2048 * 64 + 2 * layer + 64
    assert plan.trains == 2 * 8 * ((64 + 64) * 2 + (64 + 32) * 2)
    assert plan.shape[:2] == (4, 64) and plan.gradients == 4 * plan.trains
    assert 2 * plan.gradients < plan.moments < 2 * plan.gradients + 64  # and counters
    scales = 4 * 2 * 8 * 4  # fp32, of each site, layer and rank
    assert plan.parameter_bytes == 2 * plan.parameters + 4 * plan.trains + scales
    assert plan.fits and plan.device_hours is None and "epochs" not in describe(plan)


def test_the_step_is_the_one_that_a_run_compiles(fields, here, monkeypatch, tmp_path):
    seen, logs = [], []

    class Stop(Exception):
        pass

    class Seen(training.Compiled):
        def __call__(self, *args):
            seen.append((self._jit.lower(*args).as_text(), args))
            raise Stop

    class Kept(course.Log):
        def __init__(self, *args):
            super().__init__(*args)
            logs.append(self)

    monkeypatch.setattr(training, "Compiled", Seen)
    monkeypatch.setattr(course, "Log", Kept)
    sizes = {"task.train_size": 64, "task.validation_size": 8, "batch_size": 8, "steps": 2, "data.buckets": 1}
    f = fields("model=nano-gpt,task=vowels,method=lora", **sizes, **{"method.targets": ("attn/q",)})
    with pytest.raises(Stop):
        loop.train(f._config, f._config, tmp_path / "run")
    logs[0].close()
    [(text, (state, frozen, batch, _))] = seen
    mesh = make_mesh(f.mesh, here().devices)
    program = make_program(f, mesh)
    for mine, theirs in ((program.state, state), (program.frozen, frozen)):
        assert shapes(mine) == shapes(theirs)
    assert {name: x.dtype for name, x in program.batch.items()} == {name: x.dtype for name, x in batch.items()}
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        args = program._replace(batch={name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()})
        out = (shardings(program.state, mesh), None)
        mine = jax.jit(program.step, donate_argnums=0, out_shardings=out).lower(*args.placed(mesh)).as_text()
    assert mine == text


def test_a_compiled_plan_is_remembered_and_says_whether_it_fits(llama, fields, here, tmp_path):
    f = fields(f"model={llama()},task=lm,method=lora", **{"task.max_length": 32, "batch_size": 2, "steps": 3600})
    first, again, small = plan_of(f, here()), plan_of(f, here()), plan_of(f, here(memory=1e5))
    assert first.compiled.temporaries > 0 and not first.compiled.cached and again.compiled.cached
    assert first.compiled._replace(seconds=0, cached=True) == again.compiled._replace(seconds=0)
    assert first.compiled.peak >= first.parameter_bytes + first.moments
    assert first.fits and not small.fits and "does NOT fit" in describe(small)
    assert first.seconds["links"] == 0 and first.seconds["arithmetic"] == pytest.approx(first.flops / 1e12)
    assert first.device_hours == pytest.approx(first.step_seconds)
    [kept] = (tmp_path / "cache" / "ftjax" / "plan").iterdir()
    kept.write_text(json.dumps({"other": 1}))
    assert not plan_of(f, here()).compiled.cached


def test_what_the_compiler_refuses_does_not_fit_and_what_it_fails_at_is_one_line(llama, fields, here, monkeypatch):
    f = fields(f"model={llama()},task=lm,method=lora", **{"task.max_length": 32, "batch_size": 2})
    told = ["INTERNAL: no\nsuch layout", "RESOURCE_EXHAUSTED: (0.93M) exceeds available HBM (0.93M)"]

    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError(told.pop(0))

    monkeypatch.setattr(jax.stages.Lowered, "compile", fail)
    with pytest.raises(RunError, match=r"--topology=here: the compiler failed \(INTERNAL: no such layout\)"):
        plan_of(f, here())
    plan = plan_of(f, here(memory=1e6))
    assert plan.compiled.peak < 1e6 and not plan.fits and "does NOT fit" in describe(plan)


@pytest.mark.parametrize("name", ["XLA_FLAGS", "LIBTPU_INIT_ARGS"])
def test_what_is_remembered_depends_on_the_compilers_options(name, here, monkeypatch):
    before = aot._key("program", 0, here())
    assert before == aot._key("program", 0, here()) != aot._key("program", 1, here())
    monkeypatch.setenv(name, "--xla_of_another_kind")
    assert before != aot._key("program", 0, here())


def test_the_model_is_held_though_a_step_reads_features_only(fields, here):
    """A head on nano-bert's frozen body: the step reads the features, a device holds the model."""
    f = fields("model=nano-bert,task=sst2,method=head", **{"task.max_length": 32, "batch_size": 4})
    plan = plan_of(f, here())
    c = plan.compiled
    assert plan.shape == (4, 0) and c.read < 0.1 * plan.parameter_bytes
    assert c.peak >= c.arguments >= plan.parameter_bytes + plan.moments
    assert plan.seconds["memory"] == (c.read + c.outputs) / HERE.bandwidth
    assert "the pass that makes them is not counted" in describe(plan) and "batch nx0" in table([("a", plan)])


@pytest.mark.parametrize("tied", [True, False])
def test_the_least_time_of_memory_counts_each_argument_once(llama, fields, here, tied):
    """A frozen table of embeddings is read whole where it is the head."""
    f = fields(
        f"model={llama(tie_word_embeddings=tied)},task=lm,method=lora", **{"task.max_length": 32, "batch_size": 2}
    )
    plan = plan_of(f, here())
    looked_up = 0 if tied else 4 * 2048 * 64
    assert plan.compiled.read == plan.compiled.arguments
    assert plan.seconds["memory"] == (plan.compiled.read - looked_up + plan.compiled.outputs) / HERE.bandwidth


@pytest.mark.parametrize("length, rows", [(0, 10), (128, 10), (256, 5), (300, 5), (400, 4)])
def test_packed_rows_hold_several_examples(llama, fields, length, rows):
    """Ten examples of 128."""
    program = make_program(
        fields(f"model={llama()},task=lm", **{"task.max_length": 128, "batch_size": 10, "data.row_length": length})
    )
    assert program.shape[:2] == (rows, length or 128)


def test_a_mesh_uses_every_device(llama, fields, here):
    machine = here()._replace(devices=jax.devices()[:1] * 2)
    with pytest.raises(UserError, match="1 of the 2 devices of here"):
        plan_of(fields(f"model={llama()},task=lm,method=lora"), machine)


@pytest.mark.parametrize(
    "axes, changed, told",
    [
        ("task=classification", {}, "task.classes"),
        ("task=lm,distill=token", {}, "a student alone"),
        ("task=lm", {"batch_size": 0}, "batch_size=0"),
        ("task=lm", {"task.max_length": 300}, "300"),
        ("task=lm", {"task.max_length": 128, "data.row_length": 64}, "data.row_length=64"),
        (
            "task=lm,method=gradual",
            {"optimizer.unfreeze_every": 2.5, "task.max_length": 32},
            "at epoch 7.5 of 1; give",
        ),
    ],
)
def test_what_cannot_be_planned_is_said(llama, fields, axes, changed, told):
    with pytest.raises(UserError, match=told):
        plan_of(fields(f"model={llama()},{axes}", **changed))


@pytest.mark.parametrize("name", ["v5e", "v9:2x2", "v5e:4x", "h200:2x2", ""])
def test_names_of_machines(name, monkeypatch):
    monkeypatch.setattr(machines, "installed", lambda _: True)
    with pytest.raises(UserError, match="--topology="):
        get_machine(name)


def test_the_command(llama, capsys, monkeypatch):
    told = f"--config=configs/default.py:model={llama()},task=lm,method=lora"
    assert main(["plan", told, "--config.task.max_length=32"]) == 0
    out = capsys.readouterr().out
    assert "rows of 32 tokens" in out and "GFLOP a step" in out
    monkeypatch.setattr(machines, "installed", lambda _: False)
    for name, package in (("v5e:4x4", "tpu"), ("h200:8", "cuda")):
        assert main(["plan", told, f"--topology={name}"]) == 2
        err = capsys.readouterr().err
        assert f"pip install 'ftjax[{package}]'" in err and err.count("\n") == 1


@pytest.mark.parametrize("argv, of_a_table", [
    (["--config", "configs/default.py", "--topology", "h200:8"], False),
    (["--config", "configs/default.py", "experiments/kim_rush.py"], True),
    (["--config.steps=3", "--topology=h200:8", "a.py"], True), (["--config.steps", "3"], False),
])  # fmt: skip
def test_a_flags_value_is_no_experiment(argv, of_a_table):
    values = flags.FlagValues()
    define(values, argv)
    assert ("scale" in values) == of_a_table


def test_a_trial_that_cannot_be_planned_leaves_the_others(capsys):
    assert main(["plan", "experiments/kim_rush.py", "--config.task.max_length=32"]) == 2
    out, err = capsys.readouterr()
    lines = out.splitlines()
    planned = {line.split(" x 3")[0]: "not planned: distill=token" not in line for line in lines[1:6]}
    assert planned == {"Baseline": True, "Word-KD": False, "Seq-KD": True, "Seq-Inter": True, "all three": False}
    assert err == "ftjax: 2 of 5 cannot be planned: Word-KD; all three\n"


def test_a_table_has_a_line_for_each_cell(capsys):
    argv = ["plan", "experiments/lora_targets.py", "--scale=nano", "--config.task.max_length=32"]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("equal budget, W")]) == 6
    assert "equal budget, Wq r=8 x 2" in lines[1] and "14 runs" in lines[-1]
