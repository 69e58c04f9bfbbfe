"""Encoder-decoders on prompts and completions: as transformers' loss has them, packed or not, trained and evaluated."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import ftjax
from configs import task as configs
from configs.default import get_config
from ftjax.cli.generate import load
from ftjax.data.encode import encode_seq2seq
from ftjax.data.encoded import IGNORED, Collector
from ftjax.data.loader import Loader
from ftjax.data.tasks import TASKS
from ftjax.data.tasks.task import Text
from ftjax.errors import UserError
from ftjax.kinds.lm import encode_texts
from ftjax.methods.prefix import Shift
from ftjax.objectives.lm import causal_lm
from ftjax.train.build import build, room_of_text
from ftjax.train.evaluate import evaluate_split
from ftjax.train.fields import Fields
from ftjax.train.loop import train
from ftjax.train.restore import load_run
from ftjax.train.save import save_model

LETTERS = "abcdefgh "
ROWS = [("ab cd", "dc ba"), ("a", "a"), ("hgfe dcba", "ab"), ("b b", "h g f e d"), ("ee", "ff gg"), ("ab cd", "x y")]
FAMILIES = {
    "t5": lambda size: hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=size, d_model=16, d_kv=6, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=2,
            relative_attention_num_buckets=8, relative_attention_max_distance=10, pad_token_id=0, eos_token_id=1,
            decoder_start_token_id=0, dropout_rate=0.0,
        )
    ),
    "bart": lambda size: hf.BartForConditionalGeneration(
        hf.BartConfig(
            vocab_size=size, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=80,
            pad_token_id=0, bos_token_id=1, eos_token_id=1, decoder_start_token_id=1, forced_eos_token_id=None,
            dropout=0.0,
        )
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    """A random model with a tokenizer of letters that ends every text by </s>."""
    path = tmp_path_factory.mktemp(request.param)
    vocab = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *LETTERS])}
    letters = Tokenizer(models.WordLevel(vocab, "<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.decoder = decoders.Fuse()
    letters.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    hf.PreTrainedTokenizerFast(
        tokenizer_object=letters, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(path)
    torch.manual_seed(0)
    model = FAMILIES[request.param](len(vocab))
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, mean=float("norm" in name and p.ndim == 1 and "bias" not in name), std=0.2)
    model.eval().save_pretrained(path)
    lines = [json.dumps({"prompt": a, "completion": b}) for a, b in ROWS]
    (path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return path


def encoded_rows(folder, max_length=30, **how):
    tokenizer = ftjax.hub.tokenizer(folder)
    start = ftjax.hub.decoder_start(folder, tokenizer)
    texts = [Text(a, f"{b}</s>") for a, b in ROWS]
    return encode_seq2seq(texts, tokenizer, start, Collector(max_length, **how)), tokenizer, start


@pytest.mark.parametrize(("layout", "side"), [("packed", "right"), ("buckets", "left")])
def test_the_loss_is_that_of_transformers(folder, layout, side):
    encoded, tokenizer, _ = encoded_rows(folder)
    model, params = ftjax.load(folder, head="lm")
    theirs = hf.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    total = tokens = 0.0
    with torch.no_grad():
        for prompt, completion in ROWS:
            labels = tokenizer(text_target=completion, return_tensors="pt").input_ids
            out = theirs(**tokenizer(prompt, return_tensors="pt", return_token_type_ids=False), labels=labels)
            total, tokens = total + out.loss.item() * labels.numel(), tokens + labels.numel()
    # BART's learned positions are counted from each text's start: padding on the left moves nothing
    loader = Loader(encoded, layout, 3, shuffle=False, pad_side=side, prefetch=0)
    variables = {"params": params, "adapters": {}}
    objective = causal_lm(model, chunk=16)
    loss = jax.jit(lambda v, b: objective.loss(v, b, None))
    sums = [loss(variables, batch) for batch in loader]
    assert sum(float(s.weight) for s in sums) == tokens
    np.testing.assert_allclose(sum(float(s.loss) for s in sums), total, rtol=2e-5)
    outputs = jax.jit(objective.outputs)
    nll = sum(float(outputs(variables, batch)["nll"].sum()) for batch in loader)
    np.testing.assert_allclose(nll, total, rtol=2e-5)


def test_what_each_side_reads(folder):
    encoded, tokenizer, start = encoded_rows(folder)
    assert tokenizer.decode(encoded.source[0].tokens) == "ab cd</s>"
    tokens, labels = encoded[0]
    assert tokens[0] == start and labels[0] == IGNORED and (tokens[1:] == labels[1:]).all()
    assert tokenizer.decode(labels[1:]) == "dc ba</s>"
    cut, *_ = encoded_rows(folder, 4, overlong="truncate")
    assert tokenizer.decode(cut.source[0].tokens) == "ab </s>" and tokenizer.decode(cut[0].labels[1:]) == "dc </s>"
    cut, *_ = encoded_rows(folder, 4, overlong="truncate_left")
    assert tokenizer.decode(cut.source[0].tokens) == " cd</s>" and tokenizer.decode(cut[0].labels[1:]) == "dc </s>"
    dropped, *_ = encoded_rows(folder, 4, overlong="drop")
    assert dropped.rows.tolist() == [1] and dropped.source.rows.tolist() == [0] and dropped.dropped == 5
    for most, read in ((9, "abcd</s>"), (3, "ab</s>")):
        encoded = encode_seq2seq([Text("abcd</s>", "a</s>")], tokenizer, start, Collector(most, "truncate"))
        assert tokenizer.decode(encoded.source[0].tokens) == read  # one eos, though the text has one, as E2E's
    with pytest.raises(UserError, match="row 0: 6 tokens, more than max_length 4"):
        encoded_rows(folder, 4)
    with pytest.raises(UserError, match="row 1: the completion has no token to learn"):
        encode_seq2seq([Text("a", "b</s>"), Text("a", " </s>")], tokenizer, start, Collector(9))


def test_positions_of_either_side(folder):
    model, _ = ftjax.load(folder, head="lm")
    for decoder, encoder, left in ((3, 5, 71), (13, 5, 67)):  # the prompt's tokens are put around what is read
        found = room_of_text(model, {"prefix": Shift(decoder), "encoder": {"prefix": Shift(encoder)}}, 4)
        assert found == left if model.cfg.positions == "learned" else found > 10**9


@pytest.mark.parametrize(
    ("made", "source", "target", "labels"),
    [
        (hf.MBartTokenizer, "▁a </s> de_DE", "cs_CZ ▁b </s>", "▁b </s> cs_CZ"),
        (hf.MBart50Tokenizer, "de_DE ▁a </s>", "</s> cs_CZ ▁b", "cs_CZ ▁b </s>"),
    ],
)
def test_languages(tmp_path, made, source, target, labels):
    """As transformers' shift_tokens_right has them."""
    vocab = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>", "▁a", "▁b")]
    made(vocab=vocab).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"decoder_start_token_id": 2}')
    fields, task = SimpleNamespace(model=SimpleNamespace(path="DIR")), TASKS["multi30k"]

    def encoded(tokenizer):
        model, start = SimpleNamespace(cfg=SimpleNamespace(encoder=1)), ftjax.hub.decoder_start(tmp_path, tokenizer)
        setting = SimpleNamespace(f=fields, task=task, tokenizer=tokenizer, model=model, decoder_start=start)
        return encode_texts(setting, [Text("a", "b</s>")], Collector(9), True)

    with pytest.raises(UserError, match="DIR: its tokenizer marks languages and is told none; set src_lang and"):
        encoded(ftjax.hub.tokenizer(tmp_path))
    cfg = configs.get("multi30k")
    cfg.source, cfg.target = "de", "cs"
    tokenizer = ftjax.hub.tokenizer(tmp_path, languages=task.languages(cfg))
    got = encoded(tokenizer)
    words = lambda ids: " ".join(tokenizer.convert_ids_to_tokens(ids))  # noqa: E731
    assert words(got.source[0].tokens) == source
    assert words(got[0].tokens[:-1]) == target and words(got[0].labels[1:]) == labels
    with pytest.raises(UserError, match=r"the tokenizer has no language 'xx', but a"):
        ftjax.hub.tokenizer(tmp_path, languages=("xx", "de"))


@pytest.mark.parametrize(("made", "first"), [(hf.MBartTokenizer, False), (hf.MBart50Tokenizer, True)])
def test_the_language_that_is_learned(tmp_path, made, first):
    """Of a base that writes Romanian, answers are in the task's, here and by transformers from an export's files."""
    base, out = tmp_path / "base", tmp_path / "out"
    tokenizer = made(src_lang="en_XX", tgt_lang="ro_RO")
    tokenizer.save_pretrained(base)
    romanian, german = (tokenizer.lang_code_to_id[code] for code in ("ro_RO", "de_DE"))
    sizes = dict.fromkeys(("d_model", "encoder_ffn_dim", "decoder_ffn_dim"), 8)
    sizes |= dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads"), 1)
    model = hf.MBartForConditionalGeneration(
        hf.MBartConfig(vocab_size=len(tokenizer), decoder_attention_heads=1, max_position_embeddings=80, **sizes)
    )
    model.generation_config.decoder_start_token_id = model.config.decoder_start_token_id = 2 if first else romanian
    model.generation_config.forced_bos_token_id = romanian if first else None
    model.save_pretrained(base)
    config = get_config(f"model={base},task=multi30k,method=full")
    config.task.source, config.task.target, config.task.max_length = "en", "de", 24
    f = Fields(config)
    parts = build(f)
    start, forced = (2, german) if first else (german, None)
    for found in (parts.setting, load(str(base), False, ("en", "de"))):
        assert (found.decoder_start, found.forced["forced_bos_token_id"]) == (start, forced)
    named = parts.setting._replace(task=parts.task._replace(classes=lambda cfg: ("a", "b")))
    save_model(f, parts._replace(setting=named), parts.variables["params"], out, [])
    learned = ftjax.hub.tokenizer(out)
    assert (learned.src_lang, learned.tgt_lang) == ("en_XX", "de_DE") and type(learned) is made
    assert ftjax.hub.decoder_start(out, learned) == start
    assert ftjax.hub.forced(out, learned) == parts.setting.forced
    theirs, config = hf.GenerationConfig.from_pretrained(out), hf.AutoConfig.from_pretrained(out)
    assert (theirs.decoder_start_token_id, theirs.forced_bos_token_id) == (start, forced)
    assert config.decoder_start_token_id == start and config.id2label == {0: "a", 1: "b"} and config.pad_token_id == 1
    ftjax.save(tmp_path / "same", parts.model, parts.variables["params"], like=base)
    for name in ("tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "same" / name).read_bytes() == (base / name).read_bytes()


@pytest.mark.parametrize(
    ("folder", "method"), [("t5", "full"), ("t5", "prompt"), ("bart", "lora")], indirect=["folder"]
)
def test_a_run(folder, tmp_path, method):
    def config():
        return get_config(f"model={folder},task=lm,method={method}")

    changed = config()
    changed.update_from_flattened_dict(
        {
            "task.files.train": str(folder / "rows.jsonl"), "task.files.validation": str(folder / "rows.jsonl"),
            "steps": 3, "batch_size": 4, "eval_batch_size": 4, "task.max_length": 24, "data.row_length": 32,
            "log_every": 1, "generate.max_new_tokens": 6,
        }
    )  # fmt: skip
    if method == "prompt":
        changed.method.length = 4
    result = train(changed, config(), tmp_path / "run")
    assert np.isfinite(result["metrics"]["loss"]) and result["compiles"] == 1
    f, parts = load_run(tmp_path / "run")
    metrics, rows = evaluate_split(f, parts, "validation")
    np.testing.assert_allclose(metrics["loss"], result["metrics"]["loss"], rtol=1e-5)
    assert [row["prompt"] for row in rows] == ["ab cd", "a", "hgfe dcba", "b b", "ee"]  # one of two references
    assert rows[0]["references"] == ["dc ba", "x y"] and 0 <= metrics["exact_match"] <= 1
    low, high = metrics["perplexity_interval"]
    assert low <= metrics["perplexity"] <= high
    if method == "lora":  # a BART without a word of it would force an end
        save_model(f, parts, parts.method.merge(**parts.variables, model=parts.model.cfg), tmp_path / "out", [])
        assert ftjax.hub.forced(tmp_path / "out", None) == ftjax.hub.forced(folder, None)
