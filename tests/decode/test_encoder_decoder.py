"""Encoder-decoders continue as transformers' do: the encoder reads the prompt, the decoder begins anew."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
import transformers as hf

import ftjax
from ftjax.decode.generate import continuations, most_new_tokens, room
from ftjax.errors import UserError
from ftjax.methods.prefix import Shift

NEW, VOCAB, PAD = 8, 40, 0
FAMILIES = {
    "t5": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=VOCAB, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3,
            relative_attention_num_buckets=4, relative_attention_max_distance=6, pad_token_id=PAD, eos_token_id=2,
            decoder_start_token_id=0, feed_forward_proj="gated-gelu", tie_word_embeddings=False, n_positions=4,
        )
    ),
    "bart": lambda: hf.BartForConditionalGeneration(
        hf.BartConfig(
            vocab_size=VOCAB, d_model=24, encoder_layers=2, decoder_layers=2, encoder_attention_heads=3,
            decoder_attention_heads=3, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32,
            pad_token_id=PAD, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2,
        )
    ),
}  # fmt: skip
CASES = {
    "greedy": dict(repetition_penalty=1.6, no_repeat_ngram_size=2),
    "beams": dict(num_beams=3, num_return_sequences=3, length_penalty=0.8, no_repeat_ngram_size=2),
}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """(transformers' model, ours, its parameters, the decoder's first token, and what answers are forced to have)."""
    torch.manual_seed(0)
    theirs = FAMILIES[request.param]()
    for name, p in theirs.named_parameters():
        torch.nn.init.normal_(p, mean=float("norm" in name and p.ndim == 1 and "bias" not in name), std=0.3)
    if request.param == "bart":
        theirs.generation_config.forced_bos_token_id = 7
    folder = tmp_path_factory.mktemp(request.param)
    theirs.eval().save_pretrained(folder)
    return theirs, *ftjax.load(folder, head="lm"), theirs.config.decoder_start_token_id, ftjax.hub.forced(folder, None)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_as_transformers(options, pair):
    theirs, model, params, first, forced = pair
    mask = (np.arange(6) < np.array([[6], [3], [1]])).astype(np.int32)  # BART counts positions from the left
    ids = np.where(mask, np.random.default_rng(1).integers(4, VOCAB, (3, 6)), PAD).astype(np.int32)
    ends = [5, 9, 17, 30]
    out = theirs.generate(
        torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), max_new_tokens=NEW, do_sample=False,
        pad_token_id=PAD, eos_token_id=ends, decoder_start_token_id=first, **options,
    ).numpy()  # fmt: skip
    asked = dict(max_new_tokens=NEW, eos_token_id=ends, decoder_start_token_id=first, **forced, **options)
    wide, seen = (np.pad(x, ((0, 0), (0, 30))) for x in (ids, mask))  # to more columns than BART has positions
    found = continuations(model, params, wide, seen, **asked)
    for theirs_row, tokens, length in zip(out, found.tokens.reshape(-1, NEW), found.lengths.reshape(-1)):
        assert (theirs_row[1 : length + 1] == tokens[:length]).all()
    assert (found.tokens[0] != found.tokens[1]).any()  # what the encoder read matters
    flat = ftjax.generate(model, params, wide, seen, **asked)
    assert (flat[:, 0] == first).all() and (flat[:, 1:] == found.tokens.reshape(-1, NEW)).all()


def test_one_token_of_beams(pair):
    _, model, params, first, _ = pair
    options = dict(max_new_tokens=1, num_beams=3, num_return_sequences=3, decoder_start_token_id=first)
    found = continuations(model, params, [[4, 5, 6]], **options)
    out = jax.jit(model.apply)({"params": params}, np.array([[first]]), encoder_input_ids=np.array([[4, 5, 6]]))
    assert (found.tokens[0, :, 0] == np.argsort(-out.logits[0, 0])[:3]).all()


def test_a_prefix_takes_positions_of_its_own_stack(pair):
    model, shifts = pair[1], {"prefix": Shift(3), "encoder": {"prefix": Shift(5)}}
    learned = model.cfg.positions == "learned"  # T5's go on
    assert room(model, shifts, 4) == 27 if learned else room(model, shifts, 4) > 10**9
    assert most_new_tokens(model, shifts, 27) == 28 if learned else most_new_tokens(model, shifts, 27) > 10**9


def test_the_start_is_needed(pair):
    with pytest.raises(UserError, match="decoder_start_token_id=None"):
        ftjax.generate(pair[1], pair[2], [[4, 5]], max_new_tokens=2)
    with pytest.raises(UserError, match=r"decoder_start_token_id=40: the model's tokens are 0 to 39"):
        ftjax.generate(pair[1], pair[2], [[4, 5]], max_new_tokens=2, decoder_start_token_id=40)


@pytest.mark.parametrize(("config", "generation", "ends", "forced"), [
    ({"model_type": "bart"}, None, (1,), (None, 2)),  # transformers' own where no file says it
    ({"model_type": "bart", "forced_bos_token_id": 0, "forced_eos_token_id": None}, None, (1,), (0, None)),
    ({"model_type": "bart"}, {"eos_token_id": [9, 1], "forced_eos_token_id": [3, 4]}, (1, 9), (None, (3, 4))),
    ({"model_type": "llama", "eos_token_id": 5}, None, (1,), (None, None)),  # not the tokenizer's
    ({"model_type": "llama", "eos_token_id": [1, 7]}, None, (1, 7), (None, None)),
])  # fmt: skip
def test_what_files_say_of_answers(tmp_path, config, generation, ends, forced):
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    tokenizer = SimpleNamespace(eos_token_id=1)
    assert ftjax.hub.ends(tmp_path, tokenizer) == ends
    assert tuple(ftjax.hub.forced(tmp_path, tokenizer).values()) == forced
    assert ftjax.hub.ends(tmp_path, SimpleNamespace(eos_token_id=None)) == ()
