"""Small random models of transformers, in torch and loaded."""

import functools

import numpy as np
import pytest
import torch
import transformers as hf

import ftjax

SIZES = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=50)


@pytest.fixture(scope="session")
def theirs(tmp_path_factory):
    """theirs("BertForMaskedLM", num_labels=...) -> (torch model redrawn, our model, its variables), made once."""

    @functools.cache
    def get(name, **options):
        torch.manual_seed(0)
        torch.set_num_threads(1)
        config = getattr(hf, name.split("For")[0] + "Config")(**SIZES, max_position_embeddings=32, **options)
        model = getattr(hf, name)(config).eval()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        mine, params = ftjax.load(folder, scan_unroll=-1)
        return model, mine, {"params": params, "adapters": {}}

    return get


@pytest.fixture(scope="session")
def full():
    """full(batch, length) -> (rows of that many random tokens, as torch has them, as ours)."""

    def get(batch, length, seed=0):
        ids = np.random.default_rng(seed).integers(5, 50, (batch, length)).astype(np.int32)
        steps = np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape)
        mine = {"input_ids": ids, "segment_ids": np.ones_like(ids), "position_ids": steps}
        return torch.from_numpy(ids.astype(np.int64)), mine

    return get
