"""Small random models that torch has too, and prompts for them."""

import numpy as np
import pytest
import torch
import transformers as hf

import ftjax

T, NEW, VOCAB, PAD = 6, 8, 40, 3


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def twins(request, tmp_path_factory):
    """(transformers' model, ours, its parameters), with weights so large that answers differ."""
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD, "vocab_size": VOCAB}
    torch.manual_seed(0)
    if request.param == "gpt2":
        theirs = hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=24, n_layer=2, n_head=3, n_positions=32, **special))
    else:
        shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        shape |= {"head_dim": 8, "intermediate_size": 32, "max_position_embeddings": 32}
        theirs = hf.LlamaForCausalLM(hf.LlamaConfig(**shape, **special))
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.eval().save_pretrained(folder)
    return theirs, *ftjax.load(folder)


@pytest.fixture(scope="session")
def prompts():
    """Ids and mask `[3, T]` of 6, 3 and 1 tokens, padded left."""
    ids = np.random.default_rng(1).integers(4, VOCAB, (3, T))
    mask = (np.arange(T) >= T - np.array([[6], [3], [1]])).astype(np.int32)
    return np.where(mask, ids, PAD).astype(np.int32), mask


@pytest.fixture(scope="session")
def their_answer(prompts):
    """their_answer(torch model, new=NEW, **options) -> (tokens `[rows, new]` padded with PAD, scores or None)."""

    def answer(model, new=NEW, **options):
        ids, mask = (torch.from_numpy(x) for x in prompts)
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=PAD,
            return_dict_in_generate=True, output_scores=True, **options,
        )  # fmt: skip
        tokens = np.full((len(out.sequences), new), PAD)
        tokens[:, : out.sequences.shape[1] - T] = out.sequences[:, T:].numpy()
        scores = getattr(out, "sequences_scores", None)
        return tokens, None if scores is None else scores.numpy()

    return answer
