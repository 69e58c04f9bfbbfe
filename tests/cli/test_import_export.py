"""`ftjax import` makes a run of a PEFT adapter, `ftjax export` writes one, or a merged model."""

import json
import shutil
import warnings
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import ftjax
from ftjax import tree
from ftjax.cli.main import main
from ftjax.train.restore import load_run

IDS = np.random.default_rng(0).integers(0, 256, (2, 6))
TASK = {"lm": "reverse", "classification": "vowels"}
SMALL = ["--config.task.max_length=64", "--config.task.validation_size=4", "--config.eval_batch_size=4"]


@pytest.fixture(scope="module")
def base(tmp_path_factory, make):
    """base("gpt2" | "bert") -> a tiny model's directory with a character tokenizer, the BERT's with a pooler."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = {}

    def get(shape):
        if shape not in made:
            folder = made[shape] = tmp_path_factory.mktemp(shape)
            head = {"head": "classification", "num_classes": 3} if shape == "bert" else {}
            model = make(shape, max_positions=128, vocab_size=257, **head)
            ftjax.save(folder, model.model, model.params)
            tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate([*alphabet, "<|endoftext|>"])}, []))
            tokenizer.add_special_tokens(["<|endoftext|>"])
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            tokenizer.save(str(folder / "tokenizer.json"))
            config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return made[shape]

    return get


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """adapter(shape, PEFT's config) -> the folder of a random adapter made by PEFT."""

    def get(shape, config):
        kind = "SequenceClassification" if config.task_type == "SEQ_CLS" else "CausalLM"
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("adapter")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's and transformers' own
            load = getattr(transformers, f"AutoModelFor{kind}").from_pretrained
            options = {"num_labels": 11, "ignore_mismatched_sizes": True} if kind.startswith("Seq") else {}
            made = peft.get_peft_model(load(base(shape), **options), config)
            for p in made.parameters():
                if p.requires_grad:
                    p.data = 0.3 * torch.randn_like(p)
            made.save_pretrained(folder)
        return folder

    return get


def import_(folder, model, workdir, task="reverse", *more):
    config = f"--config=configs/default.py:task={task}"
    return main(["import", f"--adapter={folder}", f"--model={model}", f"--workdir={workdir}", config, *SMALL, *more])


def export(workdir, output, form="peft"):
    return main(["export", f"--workdir={workdir}", f"--format={form}", f"--output={output}"])


def same_tensors(one, other):
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert set(before) == set(after)
    return all(np.array_equal(before[key], after[key]) for key in before)


def test_a_run_of_a_lora(base, adapter, tmp_path, capsys):
    model, run = base("gpt2"), tmp_path / "run"
    config = peft.LoraConfig(
        r=2, lora_alpha=5, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, lora_dropout=0.1
    )
    folder = adapter("gpt2", config)
    assert import_(folder, model, run, "reverse", "--config.seed=3") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    said = json.loads(capsys.readouterr().out)
    assert said["method"]["rank"] == 2 and said["method"]["dropout"] == 0.1 and said["metrics"] == {}
    f, parts = load_run(run)
    assert (f.seed, f.method.name, f.task.max_length, f.model.path) == (3, "lora", 64, str(model))
    params = parts.variables["params"]
    wanted = tree.flatten(ftjax.load_adapter(folder, parts.model, params))
    found = tree.flatten(parts.method.expand(parts.variables["adapters"], params))
    assert all(np.array_equal(found[path], x) for path, x in wanted.items()) and set(found) == set(wanted)

    assert export(run, tmp_path / "out") == 0
    assert same_tensors(folder, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(model)

    assert export(run, tmp_path / "hf", "hf") == 0
    logits = jax.jit(parts.model.apply)(
        {"params": params, "adapters": ftjax.load_adapter(folder, parts.model, params)}, IDS
    ).logits
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        theirs = merged(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(theirs, logits, rtol=0, atol=1e-5 * np.abs(logits).max())
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")) == 257

    halves = ["--weights=0.5,0.5", f"--output={tmp_path / 'sum'}"]
    assert main(["merge", f"--workdir={run}", f"--workdir={run}", *halves]) == 0
    whole, both = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "sum"))
    assert all(np.allclose(both[name], x, rtol=0, atol=1e-6) for name, x in whole.items()) and set(both) == set(whole)
    other = shutil.copytree(run, tmp_path / "other")
    written = json.loads((other / "config.json").read_text())
    for changed, told in ({"init": "random"}, "random by seed=3"), ({"layers": [1, 0]}, "layers 1, 0"):
        (other / "config.json").write_text(json.dumps({**written, "model": {**written["model"], **changed}}))
        assert main(["merge", f"--workdir={run}", f"--workdir={other}", *halves]) == 2
        assert f"({model}; {model}, {told})" in capsys.readouterr().err


def test_a_run_of_a_classifier(base, adapter, tmp_path, capsys):
    folder = adapter("bert", peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    run, out = tmp_path / "run", tmp_path / "out"
    assert import_(folder, base("bert"), run, "vowels") == 0, capsys.readouterr().err
    _, parts = load_run(run)
    classifier = load_file(folder / "adapter_model.safetensors")["base_model.model.classifier.weight"]
    np.testing.assert_array_equal(parts.variables["params"]["classifier"]["kernel"], classifier.T)
    assert export(run, out) == 0
    assert same_tensors(folder, out)  # without the pooler, which is the base's own
    assert main(["eval", f"--workdir={run}", "--split=validation"]) == 0
    assert export(run, tmp_path / "hf", "hf") == 0
    merged = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        theirs = merged(torch.tensor(IDS)).logits.numpy()
    mine = jax.jit(parts.model.apply)(parts.variables, IDS).logits
    np.testing.assert_allclose(theirs, mine, rtol=0, atol=1e-5 * np.abs(mine).max())
    assert merged.config.id2label[0] == parts.task.classes(load_run(run)[0].task)[0]


def test_a_run_of_a_prompt(base, adapter, tmp_path, capsys):
    folder = adapter("gpt2", peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    run, out = tmp_path / "run", tmp_path / "out"
    assert import_(folder, base("gpt2"), run) == 0
    out.mkdir()
    (out / "notes.txt").write_text("kept")
    assert export(run, out) == 0
    assert same_tensors(folder, out) and (out / "notes.txt").exists()
    assert main(["generate", f"--workdir={run}", "--prompt=abc", "--max_new_tokens=3"]) == 0
    capsys.readouterr()
    assert export(run, tmp_path / "hf", "hf") == 2
    assert "cannot merge" in capsys.readouterr().err and not (tmp_path / "hf").exists()


def test_bad_input(base, adapter, tmp_path, capsys):
    model, run = base("gpt2"), tmp_path / "run"
    folder = adapter("gpt2", peft.LoraConfig(r=2, target_modules=["c_attn"], rank_pattern={"h.1.attn.c_attn": 3}))

    def refused(code, *words):
        said = capsys.readouterr().err.splitlines()
        lines = [line for line in said if line.startswith("ftjax: ")]
        assert code == 2 and len(lines) == 1 and all(word in lines[0] for word in words), said
        assert not run.exists()

    refused(import_(folder, model, run), "fields of method=lora", "load_adapter")
    refused(import_(tmp_path / "nowhere", model, run), "nowhere", "adapter_config.json")
    refused(import_(folder, model, run, "reverse", "--config.method.rank=4"), "config.method.rank")
    refused(import_(folder, model, run, "reverse", "--config.model.path=x"), "config.model.path")
    refused(import_(folder, model, run, "reverse,method=ia3"), "method=ia3")
    refused(main(["import", f"--adapter={folder}"]), "--model", "--workdir")
    refused(import_(folder, model, Path(folder)), "there already")
    refused(main(["export", f"--workdir={run}"]), "--output")
    refused(export(run, tmp_path / "out"), "no run")
    refused(export(run, tmp_path / "out", "onnx"), "peft or hf")
