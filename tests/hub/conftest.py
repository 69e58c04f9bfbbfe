"""Small random models of transformers, saved where `ftjax.load` finds them."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf

SHARED = Path(__file__).parents[2].parent / "shared" / "models"
GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 16, "pad_token_id": 0} | {
    "vocab_size": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2} | {
    "head_dim": 8,
    "vocab_size": 40,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
}
BERT = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32} | {
    "vocab_size": 40,
    "max_position_embeddings": 16,
}
MODELS = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "gpt2-inner": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2, n_inner=20, tie_word_embeddings=False)),
    "gpt2-class": lambda: hf.GPT2ForSequenceClassification(hf.GPT2Config(**GPT2, num_labels=3)),
    "gpt2-bare": lambda: hf.GPT2Model(hf.GPT2Config(**GPT2)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)),
    "llama-tied": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, tie_word_embeddings=True, mlp_bias=True)),
    "llama-bias": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, attention_bias=True)),
    "llama-class": lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**LLAMA, num_labels=3)),
    "bert-mlm": lambda: hf.BertForMaskedLM(hf.BertConfig(**BERT)),
    "bert-class": lambda: hf.BertForSequenceClassification(hf.BertConfig(**BERT, num_labels=3)),
    "bert-bare": lambda: hf.BertModel(hf.BertConfig(**BERT)),
}


@pytest.fixture(scope="session")
def saver(tmp_path_factory):
    """saver({name: maker of a torch model}) -> a function from a name to (the model redrawn, its folder), made once."""

    def of(makers):
        @functools.cache
        def get(name):
            torch.manual_seed(0)
            torch.set_num_threads(1)
            model = makers[name]().eval()
            for p in model.parameters():
                torch.nn.init.normal_(p, std=0.3)
            if hasattr(model, "final_logits_bias"):  # BART's: a buffer
                model.final_logits_bias.normal_()
            folder = tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            return model, folder

        return get

    return of


@pytest.fixture(scope="session")
def saved(saver):
    """saved(name) -> (torch model, its folder) of MODELS."""
    return saver(MODELS)


@pytest.fixture(scope="session")
def batch():
    """batch(side) -> ids, mask `[3, 7]` padded on that side, without id 0 but on padding."""

    def get(side):
        ids = np.random.default_rng(0).integers(3, 40, (3, 7))
        lengths = np.array([7, 4, 2])[:, None]
        column = np.arange(7)
        mask = column < lengths if side == "right" else column >= 7 - lengths
        return np.where(mask, ids, 0), mask.astype(np.int64)

    return get


@pytest.fixture(scope="session")
def shared():
    """shared(name) -> the folder of a trained model, or a skip."""

    def get(name):
        if not (SHARED / name).is_dir():
            pytest.skip(f"{name} is not in shared/models beside the repository")
        return SHARED / name

    return get
