"""PEFT's adapters and ours on every family: the same logits in either direction, the same bits there and back."""

import copy
import functools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import peft as theirs
import pytest
import torch
import transformers as hf
from safetensors.numpy import load_file, save_file

import ftjax
from ftjax import methods, tree
from ftjax.errors import UserError
from ftjax.hub import peft
from ftjax.models.transformer import sites
from tests.hub.test_peft import (
    ADAPTION,
    CLS,
    IA3,
    LM,
    LORA,
    P_TUNING,
    PREFIX,
    PROMPT,
    P,
    assert_close,
    config_of,
    ids,
    soft_tokens,
    with_head,
)

SEQ2SEQ = "SEQ_2_SEQ_LM"
SIZES = dict(vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
SPECIAL = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
BERT = SIZES | dict(max_position_embeddings=18)
DECODER = SIZES | SPECIAL | dict(num_key_value_heads=2, head_dim=6, max_position_embeddings=16)
DEBERTA = BERT | dict(
    relative_attention=True, position_biased_input=False, share_att_key=True, norm_rel_ebd="layer_norm",
    pos_att_type="p2c|c2p", position_buckets=6, max_relative_positions=13, conv_kernel_size=3, conv_act="gelu",
)  # fmt: skip
MODERN = SIZES | SPECIAL | dict(max_position_embeddings=16, local_attention=6, cls_token_id=1, sep_token_id=2)
T5 = dict(vocab_size=40, d_model=24, d_kv=6, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=4)
BART = dict(vocab_size=40, d_model=24, encoder_layers=2, decoder_layers=2, max_position_embeddings=16) | {
    f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("attention_heads", 4), ("ffn_dim", 32))
}
CONFIGS = {  # name -> (beginning of its classes, config)
    "roberta": ("Roberta", hf.RobertaConfig(**BERT)),
    "xlm-roberta": ("XLMRoberta", hf.XLMRobertaConfig(**BERT)),
    "electra": ("Electra", hf.ElectraConfig(**BERT, embedding_size=10)),
    "albert": ("Albert", hf.AlbertConfig(**BERT, embedding_size=10)),
    "deberta": ("DebertaV2", hf.DebertaV2Config(**DEBERTA)),
    "modernbert": ("ModernBert", hf.ModernBertConfig(**MODERN)),
    "gpt": ("OpenAIGPT", hf.OpenAIGPTConfig(vocab_size=40, n_embd=24, n_layer=2, n_head=4, n_positions=16, **SPECIAL)),
    "mistral": ("Mistral", hf.MistralConfig(**DECODER)),
    "qwen2": ("Qwen2", hf.Qwen2Config(**DECODER)),
    "qwen3": ("Qwen3", hf.Qwen3Config(**DECODER)),
    "gemma2": ("Gemma2", hf.Gemma2Config(**DECODER, sliding_window=12)),
    "gemma3": ("Gemma3Text", hf.Gemma3TextConfig(**DECODER, sliding_window=12)),
    "olmo2": ("Olmo2", hf.Olmo2Config(**DECODER)),
    "t5": ("T5", hf.T5Config(**T5)),
    "t5-v1.1": ("T5", hf.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "bart": ("Bart", hf.BartConfig(**BART)),
    "mbart": ("MBart", hf.MBartConfig(**BART, scale_embedding=True)),
}  # fmt: skip
CLASSES = {
    "class": "ForSequenceClassification",
    "mlm": "ForMaskedLM",
    "tag": "ForTokenClassification",
    "span": "ForQuestionAnswering",
    "rtd": "ForPreTraining",
    "bare": "Model",
}
ENCODERS = ("roberta", "xlm-roberta", "electra", "albert", "deberta", "modernbert")
DECODERS = ("gpt", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2")
PAIRS = ("t5", "t5-v1.1", "bart", "mbart")
SMALL = dict(r=2, lora_alpha=6)
ROWS = dict(num_virtual_tokens=P)


def of_encoder(name):
    """(what, head, PEFT's config): its defaults where it has some."""
    fused, narrow = name == "modernbert", name in ("electra", "albert")
    named = {"modernbert": dict(target_modules=["Wqkv"]), "albert": dict(target_modules=["query", "value"])}
    yield "lora", "class", LORA, dict(task_type=CLS, **SMALL, **named.get(name, {}))
    head, task = ("class", dict(task_type=CLS)) if name in ("roberta", "deberta") else ("mlm", {})
    yield "dora", head, LORA, dict(target_modules="all-linear", use_dora=True, **task, **SMALL)
    yield "prompt", "class", PROMPT, dict(task_type=CLS, **ROWS, **(dict(token_dim=10) if narrow else {}))
    if name in ("roberta", "deberta"):
        yield "ia3", "class", IA3, dict(task_type=CLS)
    if fused:
        rescaled = dict(target_modules=["Wqkv", "Wi", "Wo"], feedforward_modules=["Wo"])
        yield "ia3", "class", IA3, dict(task_type=CLS, **rescaled)
    if name in ("roberta", "electra"):
        yield "prefix", "class", PREFIX, dict(task_type=CLS, **ROWS)


def of_decoder(name):
    named = {"gpt": dict(target_modules=["c_attn"]), "olmo2": dict(target_modules=["q_proj", "v_proj"])}
    yield "lora", "", LORA, dict(task_type=LM, **SMALL, **named.get(name, {}))
    yield "dora", "", LORA, dict(target_modules="all-linear", use_dora=True, **SMALL)
    if name not in ("mistral", "qwen2", "olmo2"):  # which are llama to a prompt
        yield "prompt", "", PROMPT, dict(task_type=LM, **ROWS)
    if name == "gpt":
        rescaled = dict(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"])
        yield "ia3", "", IA3, dict(task_type=LM, **rescaled)
        return
    if name not in ("qwen2", "olmo2"):
        yield "prefix", "", PREFIX, dict(task_type=LM, **ROWS)
    if name != "olmo2":
        yield "ia3", "", IA3, dict(task_type=LM)


def of_pair(name):
    yield "dora", "", LORA, dict(target_modules="all-linear", use_dora=True, **SMALL)
    if name in ("t5", "bart"):
        yield "lora", "", LORA, dict(task_type=SEQ2SEQ, **SMALL)
        yield "ia3", "", IA3, dict(task_type=SEQ2SEQ)


OF = {
    **dict.fromkeys((name for name in ENCODERS if name != "xlm-roberta"), of_encoder),  # which is roberta to us
    **dict.fromkeys(DECODERS, of_decoder),
    **dict.fromkeys(PAIRS, of_pair),
}
THEIRS = {  # name -> (model, PEFT's config)
    f"{what} {name}": (f"{name} {head}".strip(), kind, options)
    for name, of in OF.items()
    for what, head, kind, options in of(name)
}
NO_FIELDS = {"ia3 modernbert", "bare gemma3"}
HEAD = dict(target_modules=["query"], **SMALL)
THEIRS |= {
    "lora xlm-roberta": ("xlm-roberta class", LORA, dict(task_type=CLS, **SMALL)),
    "adaption mistral": ("mistral", ADAPTION, dict(adapter_len=P, adapter_layers=1, task_type=LM)),
    "p_tuning electra": ("electra class", P_TUNING, dict(task_type=CLS, token_dim=10, encoder_hidden_size=5, **ROWS)),
    "p_tuning gemma3": ("gemma3", P_TUNING, dict(task_type=LM, encoder_hidden_size=5, **ROWS)),
    "pooler albert": ("albert class", LORA, dict(task_type=CLS, modules_to_save=["pooler"], **HEAD)),
    "pooler deberta": (
        "deberta class", LORA, dict(task_type=CLS, modules_to_save=["pooler"], target_modules=["value_proj"], **SMALL)
    ),
    "head modernbert": (
        "modernbert class", LORA, dict(task_type=CLS, modules_to_save=["head"], target_modules=["mlp.Wo"], **SMALL)
    ),
    "classes qwen3": ("qwen3 class", LORA, dict(task_type=CLS, **SMALL)),
    "tags roberta": ("roberta tag", LORA, dict(task_type="TOKEN_CLS", **HEAD)),
    "tags modernbert": (
        "modernbert tag", LORA, dict(task_type="TOKEN_CLS", modules_to_save=["head"], target_modules=["Wi"], **SMALL)
    ),
    "span electra": ("electra span", LORA, dict(task_type="QUESTION_ANS", **HEAD)),
    "replaced electra": ("electra rtd", LORA, dict(modules_to_save=["discriminator_predictions"], **HEAD)),
    "bare xlm-roberta": ("xlm-roberta bare", LORA, dict(**HEAD)),
    "bare gpt": ("gpt bare", LORA, dict(target_modules=["c_fc"], **SMALL)),
    "bare gemma3": ("gemma3 bare", IA3, dict(target_modules=["o_proj"], feedforward_modules=[])),
    "bare bart": (
        "bart bare", LORA,
        dict(target_modules=r".*\.fc1|decoder\..*fc2", rank_pattern={r"decoder\..*fc1": 3}, **SMALL),
    ),
    "embedding electra": ("electra class", LORA, dict(task_type=CLS, target_modules=["word_embeddings"], **SMALL)),
    "embedding gemma3": ("gemma3", LORA, dict(task_type=LM, target_modules=["embed_tokens"], **SMALL)),
    "scores albert": ("albert mlm", LORA, dict(target_modules=["predictions.decoder"], **SMALL)),
}  # fmt: skip


def make(name):
    start, config = CONFIGS[name.split()[0]]
    head = name.split()[1:]
    config = copy.deepcopy(config)
    config.num_labels = 2 if head == ["span"] else 3
    if head:
        return getattr(hf, start + CLASSES[head[0]])(config)
    return (hf.AutoModelForSeq2SeqLM if name in PAIRS else hf.AutoModelForCausalLM).from_config(config)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """models(name) -> (torch model, its folder), made once."""

    @functools.cache
    def get(name):
        torch.manual_seed(0)
        torch.set_num_threads(1)
        model = make(name).eval()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
        folder = tmp_path_factory.mktemp("model")
        model.save_pretrained(folder)
        return model, folder

    return get


@pytest.fixture(scope="module")
def base(models):
    """base(name) -> (our model, parameters, its sites), made once."""

    @functools.cache
    def get(name):
        model, params = ftjax.load(models(name)[1], scan_unroll=-1)
        return model, params, sites(model)

    return get


def logits_of(model, params, adapters, virtual=0):
    """Ours, `virtual` soft tokens before the others; an encoder-decoder reads them and writes them backwards."""
    rows = np.broadcast_to(np.arange(virtual) + model.cfg.vocab_size, (2, virtual))
    tokens = jnp.asarray(np.concatenate([rows, ids(virtual)], 1))
    source = {"encoder_input_ids": tokens[:, ::-1]} if model.cfg.encoder else {}
    out = model.apply({"params": params, "adapters": adapters}, tokens, **source)
    return np.asarray(out.last_hidden if model.cfg.head == "none" else out.logits)


def logits_in_torch(model, virtual):
    tokens = torch.tensor(ids(virtual))
    inputs = dict(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    if model.config.is_encoder_decoder:
        inputs = dict(input_ids=tokens.flip(1), attention_mask=torch.ones_like(tokens), decoder_input_ids=tokens)
    with torch.no_grad():
        out = model.eval()(**inputs)
    if "start_logits" in out:
        return torch.stack([out.start_logits, out.end_logits], -1).numpy()
    return (out.logits if hasattr(out, "logits") else out[0]).numpy()


@pytest.mark.parametrize("name", THEIRS)
def test_in_and_out(base, models, tmp_path, name):
    source, kind, options = THEIRS[name]
    torch.manual_seed(1)
    folder, out = tmp_path / "theirs", tmp_path / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of tied weights
        made = theirs.get_peft_model(copy.deepcopy(models(source)[0]), kind(**options))
        for p in made.parameters():
            if p.requires_grad:
                p.data = 0.3 * torch.randn_like(p) + 0.1
        made.save_pretrained(folder)
        wanted = logits_in_torch(made, P if kind in (PROMPT, P_TUNING) else 0)
    model, params, known = base(source)
    found = peft.read(folder, model, params)
    method, virtual = methods.get(found.method), soft_tokens(found.method)
    adapters = method.expand(found.adapters, params) if found.head else ftjax.load_adapter(folder, model, params)
    params = with_head(params, found.head)
    assert_close(logits_of(model, params, adapters, virtual), wanted)
    cfg = config_of(found.method, found.fields)
    init = functools.partial(method.init, methods.Context(model.cfg, params, known), cfg)
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(init, jax.random.key(0)))
    assert (shapes == jax.tree.map(jnp.shape, found.adapters)) == (name not in NO_FIELDS)
    head = tuple({path.split("/")[1] for path in found.head})
    assert bool(head) == (source.split()[-1] in ("class", "tag", "span", "rtd"))
    peft.write(out, model, params, found.method, cfg, found.adapters, head=head)
    before, after = load_file(folder / peft.files.WEIGHTS), load_file(out / peft.files.WEIGHTS)
    assert set(after) == {key for key in before if "base_layer" not in key}  # which repeats the base's own weight
    for key, value in after.items():
        scaled = key == "prompt_embeddings" and model.cfg.embed_scale != 1  # by a number that is no power of two
        np.testing.assert_allclose(value, before[key], rtol=1e-6 if scaled else 0, err_msg=key, strict=True)
    told, tells = (json.loads((one / peft.files.CONFIG).read_text()) for one in (folder, out))
    assert set(tells.get("modules_to_save") or ()) == set(told.get("modules_to_save") or ())
    if "task_type" in options:
        assert tells["task_type"] == told["task_type"]
    elif tells["task_type"] is None:
        assert tells["auto_mapping"] == told["auto_mapping"]


ALL = dict(rank=2, targets=("all_linear",))
OURS = {  # name -> (model, method, fields)
    **{f"lora {name}": (name, "lora", ALL) for name in ("gpt", "gemma2", "qwen3", "t5", "bart")},
    **{f"lora {name}": (f"{name} class", "lora", ALL) for name in ENCODERS[2:]},
    **{f"ia3 {name}": (name, "ia3", {}) for name in ("gpt", "gemma2", "t5", "mbart")},
    **{f"ia3 {name}": (f"{name} mlm", "ia3", dict(definition="peft")) for name in ("albert", "modernbert")},
    "up modernbert": ("modernbert mlm", "lora", dict(rank=2, targets=("ffn/up", "attn/[qv]"), dora=True)),
    "bare bart": ("bart bare", "lora", dict(rank=2, targets=("encoder/layers/attn/k",))),
    "layer t5": ("t5", "lora", dict(rank=2, targets=("cross/q", "layers/ffn/down"), layers=(1,), dora=True)),
    "decoder bart": ("bart", "lora", dict(rank=2, targets=("^layers/attn/q", "cross/[kv]"), rank_pattern="cross/v:3")),
    "transform electra": ("electra mlm", "lora", dict(rank=2, targets=("attn/k", "transform/dense"))),
    "project albert": ("albert mlm", "lora", dict(rank=2, targets=("embed/project", "head", "up"), rslora=True)),
    "llama_adapter mistral": ("mistral", "llama_adapter", dict(definition="peft", length=P, count=1)),
    "prompt modernbert": ("modernbert class", "prompt", dict(length=P, inside=False)),
    "prompt albert": ("albert class", "prompt", dict(length=P, inside=False)),
    "prompt electra": ("electra class", "prompt", dict(length=P, inside=False)),
    "p_tuning gemma2": ("gemma2", "p_tuning", dict(definition="peft", template="{3}{text}", hidden=4)),
    "prefix electra": ("electra class", "prefix", dict(length=P, hidden=4)),
    "prefix gemma3": ("gemma3", "prefix", dict(length=P, definition="peft")),
    "span modernbert": ("modernbert span", "lora", dict(rank=2)),
}  # fmt: skip


@pytest.mark.parametrize("name", OURS)
def test_out(base, models, randomised, tmp_path, name):
    source, method_name, fields = OURS[name]
    (model, params, known), method, cfg = base(source), methods.get(method_name), config_of(method_name, fields)
    init = functools.partial(method.init, methods.Context(model.cfg, params, known), cfg)
    adapters = init(jax.random.key(0)) if method_name == "lora" else jax.eval_shape(init, jax.random.key(0))
    variables = {"params": params, "adapters": adapters}
    labels = methods.labels(method, variables, cfg, model.cfg)
    random = randomised(variables, scale=0.3)
    variables = jax.tree.map(lambda x, new, label: x if label == tree.FREEZE else new, variables, random, labels)
    params, adapters = variables["params"], variables["adapters"]
    peft.write(tmp_path, model, params, method_name, cfg, adapters, base=source, opens=not model.cfg.causal)
    virtual = soft_tokens(method_name)
    mine = logits_of(model, params, method.expand(adapters, params), virtual)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for harmless in ("`is_gradient_checkpointing` is", ".*tie_word_embeddings.*", "fan_in_fan_out is set to True"):
            warnings.filterwarnings("ignore", message=harmless)
        made = theirs.PeftModel.from_pretrained(copy.deepcopy(models(source)[0]), tmp_path)
    assert_close(mine, logits_in_torch(made, virtual))


@pytest.mark.parametrize("source, name, fields, options, words", [
    ("t5", "prompt", dict(length=P), {}, "'PROMPT_TUNING' of a t5 model"),
    ("bart", "p_tuning", {}, {}, "'P_TUNING' of a bart model"),
    ("mbart", "prefix", dict(length=P), {}, "'PREFIX_TUNING' of a mbart model"),
    ("albert class", "prefix", dict(length=P), {}, "'PREFIX_TUNING' of a albert model"),
    ("deberta class", "prefix", dict(length=P), {}, "'PREFIX_TUNING' of a deberta-v2 model"),
    ("gpt", "prefix", dict(length=P), {}, "'PREFIX_TUNING' of a openai-gpt model"),
    ("electra rtd", "prompt", dict(length=P), {}, "head='rtd'"),
    ("qwen2", "llama_adapter", dict(length=P), {}, "not on qwen2"),
    ("t5", "lora", dict(targets=("embed",)), {}, "no place for an adapter at embed"),
    ("roberta class", "lora", dict(targets=("pooler",), rank=2), {}, "at pooler, which is itself trained whole"),
    ("albert mlm", "lora", dict(rank=2), dict(head=("transform",)), "the trained transform of this model"),
])  # fmt: skip
def test_what_peft_cannot_say(base, tmp_path, source, name, fields, options, words):
    (model, params, known), cfg = base(source), config_of(name, fields)
    init = functools.partial(methods.get(name).init, methods.Context(model.cfg, params, known), cfg)
    adapters = jax.tree.map(lambda x: np.zeros(x.shape), jax.eval_shape(init, jax.random.key(0)))
    with pytest.raises(UserError, match=words) as caught:
        peft.write(tmp_path / "out", model, params, name, cfg, adapters, **options)
    assert "\n" not in str(caught.value) and not any(tmp_path.iterdir())


TUNED = dict(peft_type="LORA", r=2)
SCALED = dict(peft_type="IA3", target_modules=["Wqkv", "Wi"])


@pytest.mark.parametrize("source, config, words", [
    ("t5", dict(peft_type="PROMPT_TUNING", num_virtual_tokens=P), "'PROMPT_TUNING' of a t5 model"),
    ("albert class", dict(peft_type="PREFIX_TUNING", num_virtual_tokens=P), "'PREFIX_TUNING' of a albert model"),
    ("qwen3", dict(peft_type="ADAPTION_PROMPT", adapter_len=P, adapter_layers=1), "'ADAPTION_PROMPT' of a qwen3 model"),
    ("t5", dict(target_modules=["shared"], **TUNED), "no adapter can act on shared"),
    ("deberta class", dict(target_modules=["conv"], **TUNED), "'conv' names no module of this deberta-v2 model"),
    ("modernbert mlm", SCALED | dict(feedforward_modules=["Wi"]), "mlp.Wi .its parts share an input"),
    ("modernbert mlm", dict(target_modules=["Wo"], modules_to_save=["head"], **TUNED), "not head.dense"),
])  # fmt: skip
def test_what_we_cannot_follow(base, tmp_path, source, config, words):
    model, params, _ = base(source)
    (tmp_path / peft.files.CONFIG).write_text(json.dumps(config))
    save_file({}, tmp_path / peft.files.WEIGHTS)
    with pytest.raises(UserError, match=words) as caught:
        peft.read(tmp_path, model, params)
    assert "\n" not in str(caught.value)


def test_a_prefix_behind_a_window(base, tmp_path, caplog):
    """Theirs leaves it as the text grows, ours never."""
    model, params, known = base("gemma2")
    cfg = config_of("prefix", dict(definition="peft", length=P))
    adapters = methods.get("prefix").init(methods.Context(model.cfg, params, known), cfg, jax.random.key(0))
    peft.write(tmp_path, model, params, "prefix", cfg, adapters)
    peft.read(tmp_path, model, params)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all("window of 12, ours none: texts of more than 9 tokens differ" in one for one in said)
