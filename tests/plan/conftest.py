"""Folders of models without weights, and the plan of a config."""

import json
import shutil

import pytest
import transformers as hf

from configs.default import get_config
from ftjax.hub.files import ASSETS
from ftjax.train.fields import Fields

LLAMA = dict(
    vocab_size=2048, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=256,
)  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """folder(name, config of transformers, the shipped model whose tokenizer it has) -> its path, without weights."""

    def make(name, config, tokenizer="nano-gpt"):
        path = tmp_path_factory.mktemp(name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(ASSETS / tokenizer / file, path)
        (path / "config.json").write_text(json.dumps(config.to_dict(), default=str))
        return path

    return make


@pytest.fixture(scope="session")
def llama(folder):
    """llama(field=value, ...) -> a folder of a small Llama's config."""
    arch = dict(architectures=["LlamaForCausalLM"])
    return lambda **fields: folder("llama", hf.LlamaConfig(**{**LLAMA, **fields}, **arch))


@pytest.fixture(scope="session")
def fields():
    """fields(axes, field=value, ...) -> what `plan_of` takes."""

    def get(axes, **values):
        config = get_config(axes)
        config.update_from_flattened_dict(values)
        return Fields(config)

    return get
