"""Every table's trials at scale paper: the model, the method and the step of each, as shapes. Each model with each
method, and each task as each kind, is in some trial that is built, not each model with each task; of each table at
least one."""

from pathlib import Path
from typing import Any

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


def encoder(kind, d, layers, heads, **more):
    sizes = dict(hidden_size=d, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * d)
    return lambda: kind(**sizes, **more), "nano-bert"


def roberta(*sizes):
    more = dict(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    return encoder(hf.RobertaConfig, *sizes, **more, architectures=["RobertaForMaskedLM"])


def bert(*sizes, **more):
    return encoder(hf.BertConfig, *sizes, **more, architectures=["BertForMaskedLM"])


def electra(*sizes, embedding):
    arch = dict(architectures=["ElectraForPreTraining"])
    return encoder(hf.ElectraConfig, *sizes, embedding_size=embedding, **arch)


def gpt2(d, layers, heads):
    return lambda: hf.GPT2Config(n_embd=d, n_layer=layers, n_head=heads, architectures=["GPT2LMHeadModel"]), "nano-gpt"


def t5(d, ffn, layers, heads):  # v1.1; its tokenizer has no bos, and any with an eos will do
    sizes: dict[str, Any] = dict(
        d_model=d, d_ff=ffn, num_layers=layers, num_heads=heads, vocab_size=32128, feed_forward_proj="gated-gelu"
    )
    more: dict[str, Any] = dict(
        tie_word_embeddings=False, decoder_start_token_id=0, architectures=["T5ForConditionalGeneration"]
    )
    return lambda: hf.T5Config(**sizes, **more), "nano-gpt"


def llama(d, ffn, layers, heads, groups, **more):
    sizes: dict[str, Any] = dict(
        hidden_size=d, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads
    )
    more |= dict(num_key_value_heads=groups, architectures=["LlamaForCausalLM"])
    return lambda: hf.LlamaConfig(**sizes, **more), "nano-gpt"


MODELS = {  # hub id -> its published shapes, and the shipped model whose tokenizer stands in for its own
    "FacebookAI/roberta-base": roberta(768, 12, 12),
    "FacebookAI/roberta-large": roberta(1024, 24, 16),
    "google-bert/bert-base-uncased": bert(768, 12, 12),
    "google-bert/bert-base-cased": bert(768, 12, 12, vocab_size=28996),
    "google-bert/bert-large-uncased": bert(1024, 24, 16),
    "google-bert/bert-large-cased": bert(1024, 24, 16, vocab_size=28996),
    "google/electra-small-discriminator": electra(256, 12, 4, embedding=128),
    "google/electra-base-discriminator": electra(768, 12, 12, embedding=768),
    "google/electra-large-discriminator": electra(1024, 24, 16, embedding=1024),
    "openai-community/gpt2-medium": gpt2(1024, 24, 16),
    "openai-community/gpt2-large": gpt2(1280, 36, 20),
    "google/t5-small-lm-adapt": t5(512, 1024, 8, 6),
    "google/t5-base-lm-adapt": t5(768, 2048, 12, 12),
    "google/t5-large-lm-adapt": t5(1024, 2816, 24, 16),
    "google/t5-xl-lm-adapt": t5(2048, 5120, 24, 32),
    "google/t5-xxl-lm-adapt": t5(4096, 10240, 24, 64),
    "HuggingFaceTB/SmolLM2-135M": llama(576, 1536, 30, 9, 3, vocab_size=49152, max_position_embeddings=8192),
    "meta-llama/Llama-3.1-8B": llama(
        4096, 14336, 32, 32, 8, vocab_size=128256, max_position_embeddings=131072, tie_word_embeddings=False
    ),
}


@pytest.fixture(scope="module")
def seen():
    """What tables before have built: a model with a method, a task as a kind."""
    return set()


@pytest.mark.parametrize("table", TABLES)
def test_every_trial_is_a_program(table, folder, tmp_path, seen):
    experiment = load_experiment(table, "paper")
    try:
        runs = make_runs(experiment, "paper", "configs/default.py", [], tmp_path)
    except UserError as error:
        if "has no trials at scale paper" not in str(error):
            raise
        pytest.skip(f"{table} has no trials at scale paper")
    folders, cells = {}, {}
    for run in runs:
        known, method = run.config, run.trial.axes.partition("method=")[2]
        kinds = {(known["model.path"], method), (known["task.name"], known["task.objective"])}
        if kinds - seen or not cells:
            cells[run.trial[:2]] = run
            seen |= kinds
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
        rows, tokens = program.shape[:2]  # an example may be a group of sequences, and soft tokens are beside its own
        assert rows % config.batch_size == 0 and tokens >= (
            0 if program.parts.model.cfg.encoder else config.task.max_length
        ), cell
