"""Every table's trials at scale paper: the model, the method and the step of each, as shapes."""

from pathlib import Path

import jax
import pytest
import transformers as hf

from ftjax.errors import UserError
from ftjax.nn.kernels import compiled_for
from ftjax.plan import make_program
from ftjax.sweep.trial import load_experiment, make_runs, resolve
from ftjax.train.fields import Fields

FILES = sorted(Path("experiments").glob("*.py"))
TABLES = [str(path) for path in FILES if "def trials(scale: str)" in path.read_text()]
MODELS = {  # hub id -> its shapes, and the shipped model whose tokenizer stands in for its own
    "FacebookAI/roberta-base": (
        lambda: hf.RobertaConfig(
            vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, architectures=["RobertaForMaskedLM"]
        ),
        "nano-bert",
    ),
}


@pytest.mark.parametrize("table", TABLES)
def test_every_trial_is_a_program(table, folder, tmp_path):
    experiment = load_experiment(table, "paper")
    try:
        runs = make_runs(experiment, "paper", "configs/default.py", [], tmp_path)
    except UserError as error:
        if "has no trials at scale paper" not in str(error):
            raise
        pytest.skip(f"{table} has no trials at scale paper")
    folders, cells = {}, {run.trial[:2]: run for run in runs}  # seeds are of one program
    for cell, run in cells.items():
        config = resolve(run.flags[:-1])
        path = config.model.path
        assert path in MODELS, f"{table}: {path}: add its shapes above"
        make, tokenizer = MODELS[path]
        config.model.path = str(folders.setdefault(path, folder("model", make(), tokenizer)))
        with compiled_for("tpu"):
            program = make_program(Fields(config))
            key = jax.eval_shape(jax.random.key, 0)
            state, metrics = jax.eval_shape(program.step, program.state, program.frozen, program.batch, key)
        assert metrics["loss"].shape == (), cell
        assert jax.tree.map(lambda x: x.shape, state) == jax.tree.map(lambda x: x.shape, program.state), cell
        assert program.shape[:2] == (config.batch_size, config.task.max_length), cell
