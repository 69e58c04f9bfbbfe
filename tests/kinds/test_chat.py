"""Conversations: what of them is learned, by templates of several kinds, and a run of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import ftjax
from configs import task as configs
from ftjax.cli.main import main
from ftjax.data.bad import BadRows
from ftjax.data.chat import TEMPLATES, chat_format, encode_chats
from ftjax.data.encode import prompt_ids
from ftjax.data.encoded import IGNORED, Collector
from ftjax.data.tasks import TASKS
from ftjax.data.tasks.task import Chat
from ftjax.errors import UserError

TOKENS = ("<s>", "<eos>", "<|im_start|>", "<|im_end|>")
HELLO = Chat((("user", "Hello"), ("assistant", " Hi!"), ("user", "Go."), ("assistant", "Bye\n")))
ONCE = Chat((("system", "Be kind."), ("user", "Hello"), ("assistant", "Hi!")))
# as Mistral's: bos by the template, the question in brackets, eos
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant') }}{% endif %}{% endfor %}"
)
# as Qwen3's: thoughts of the last turn alone
THOUGHTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GENERATION = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] | trim + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer(template=None, bos=False):
    """A token a byte, and TOKENS; the pad token is eos."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*alphabet, *TOKENS])}, []))
    tokenizer.add_special_tokens(list(TOKENS))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", len(alphabet))])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<eos>", pad_token="<eos>")
    made.chat_template = template
    return made


def encode(form, *chats, whole=True, length=200, **how):
    return encode_chats(chats, form, Collector(length, **how), whole)


def learned(form, chat, whole=True):
    """The text of each example, and what of it is learned, its spans apart by '|'."""
    encoded, out = encode(form, chat, whole=whole), []
    for i in range(len(encoded)):
        tokens, labels = encoded[i]
        on = labels != IGNORED
        np.testing.assert_array_equal(labels[on], tokens[on])
        edges = np.flatnonzero(np.diff(on.astype(int), prepend=0, append=0)).reshape(-1, 2)
        out.append((form.tokenizer.decode(tokens), "|".join(form.tokenizer.decode(tokens[a:b]) for a, b in edges)))
    return out


def test_plain():
    form = chat_format(byte_tokenizer(), "plain")
    first = "<|user|>\nHello\n<|assistant|>\nHi!<eos>"
    text = f"{first}\n<|user|>\nGo.\n<|assistant|>\nBye<eos>"
    assert learned(form, HELLO) == [(f"{text}\n", "Hi!<eos>|Bye<eos>")]
    assert learned(form, HELLO, whole=False) == [(first, "Hi!<eos>"), (text, "Bye<eos>")]
    assert learned(form._replace(learn="last"), HELLO) == [(f"{text}\n", "Bye<eos>")]
    assert form.stop() == "<eos>" and form.question(Chat((("user", "a"),))) == "<|user|>\na\n<|assistant|>\n"


def test_what_is_asked_and_answered_is_the_same_either_way():
    form = chat_format(byte_tokenizer(), "chatml")
    whole, turns = encode(form, HELLO, ONCE), encode(form, HELLO, ONCE, whole=False)
    assert turns.rows.tolist() == [0, 0, 1] and whole.rows.tolist() == [0, 1]
    np.testing.assert_array_equal(whole.labels[whole.labels != IGNORED], turns.labels[turns.labels != IGNORED])


def test_masks_are_those_of_transformers():
    tokenizer = byte_tokenizer(GENERATION)
    encoded = encode(chat_format(tokenizer), HELLO, ONCE)
    for i, chat in enumerate((HELLO, ONCE)):
        messages = [{"role": role, "content": content} for role, content in chat.messages]
        theirs = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
        assert encoded[i].tokens.tolist() == theirs["input_ids"]
        assert (encoded[i].labels != IGNORED).tolist() == [bool(x) for x in theirs["assistant_masks"]]


@pytest.mark.parametrize("bos", [False, True])
def test_no_second_bos(bos):
    form = chat_format(byte_tokenizer(BRACKETS, bos=bos))
    [(text, said)] = learned(form, Chat(HELLO.messages[:2]))
    assert text == "<s>[INST] Hello [/INST] Hi!<eos>" and said == " Hi!<eos>"
    assert form.stop() == "<eos>"
    plain = chat_format(byte_tokenizer(bos=bos), "plain")
    assert learned(plain, HELLO)[0][0].startswith("<s><|user|>" if bos else "<|user|>")


def test_a_template_that_rewrites_the_past_teaches_the_last_turn_only():
    form = chat_format(byte_tokenizer(THOUGHTS), learn="last")
    thought = "<think>\n\n</think>\n\n"
    assert learned(form, HELLO)[0][1] == f"{thought}Bye<|im_end|>"
    assert [said for _, said in learned(form._replace(learn="all"), HELLO, whole=False)] == [
        f"{thought}Hi!<|im_end|>", f"{thought}Bye<|im_end|>",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"row 0: the tokenizer's chat template writes .* message 2 otherwise when"):
        encode(form._replace(learn="all"), HELLO)


def test_flags_choose():
    form = chat_format(byte_tokenizer(), "plain")
    flagged = HELLO._replace(learned=(1,))
    assert learned(form, flagged)[0][1] == "Hi!<eos>"
    assert learned(form._replace(learn="last"), flagged)[0][1] == "Bye<eos>"
    with pytest.raises(UserError, match="row 0: no message is to be learned"):
        encode(form, HELLO._replace(learned=()))


def test_flags_of_a_file(tmp_path):
    cfg = configs.get("chat")
    path = tmp_path / "x.jsonl"
    cfg.files.train = str(path)

    def load(*flags):
        names = ("learn", "train", "learn", "train")
        rows = [{"role": role, "content": text, **({} if flag is None else {name: flag})}
                for (role, text), name, flag in zip(HELLO.messages, names, flags)]  # fmt: skip
        path.write_text(json.dumps({"messages": rows}) + "\n")
        return [TASKS["chat"].example(row, "") for row in TASKS["chat"].load(cfg, "train", BadRows())]

    assert load(None, None, None, None) == [HELLO]
    assert load(False, True, None, None) == load(None, True, None, False) == [HELLO._replace(learned=(1,))]
    assert load(None, None, None, False) == [HELLO._replace(learned=())]
    for flags, says in (
        ((True, None, None, None), "message 1 has the flag True"),
        ((None, "yes", None, None), "'yes'"),
    ):
        with pytest.raises(UserError, match=says):
            load(*flags)


@pytest.mark.parametrize(("template", "bos"), [(BRACKETS, True), (BRACKETS, False), (TEMPLATES["plain"], True)])
def test_ids_of_a_question_are_those_that_are_learned_from(template, bos):
    form = chat_format(byte_tokenizer(template, bos=bos))
    question = prompt_ids(form.question(Chat(HELLO.messages[:1])), form.tokenizer)
    assert encode(form, Chat(HELLO.messages[:2]))[0].tokens[: len(question)].tolist() == question


def test_a_system_prompt_comes_where_there_is_none():
    form = chat_format(byte_tokenizer(), "plain", system="Be brief.")
    assert learned(form, HELLO)[0][0].startswith("<|system|>\nBe brief.\n<|user|>")
    assert learned(form, ONCE)[0][0].startswith("<|system|>\nBe kind.\n<|user|>")


def test_what_is_left_without_labels_is_dropped_and_counted():
    form = chat_format(byte_tokenizer(), "plain")
    start = len("<|user|>\nHello\n<|assistant|>\n")
    encoded = encode(form, HELLO, ONCE, length=start + 2, overlong="truncate")
    assert (len(encoded), encoded.dropped, encoded.truncated) == (1, 1, 1)
    assert encoded.rows.tolist() == [0] and encoded.label_counts.tolist() == [2]
    left = encode(form, HELLO, ONCE, length=start + 2, overlong="truncate_left")
    assert (len(left), left.dropped, left.truncated) == (2, 0, 2)
    assert (left.labels[left.offsets[1:] - 2] != IGNORED).all()  # the last turns and what ends them
    bad = BadRows("skip")
    rows = [HELLO._replace(learned=()), ONCE, Chat((("assistant", "Hi"),)), HELLO]
    assert encode(form, *rows, where=list("abcd"), bad=bad, whole=False).rows.tolist() == [1, 3, 3]
    assert [message[:2] for message in bad.messages] == ["a:", "c:"]
    with pytest.raises(UserError, match="b: 65 tokens, more than max_length 40"):
        encode(form, Chat(HELLO.messages[2:]), HELLO, where=["a", "b"], length=40, whole=False)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (BRACKETS, "refuses the messages .Only user and assistant"),
        ("{{ messages[0].content.x.y }}", "refuses the messages"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}{{ eos_token }}", "otherwise than the conversation"),
        (TEMPLATES["plain"].replace("{{ eos_token }}", "</>"), "ends what the assistant says by .*</>.* which is no"),
        (TEMPLATES["plain"].replace("add_gen", "no_gen"), "the header of message 3, '<.assistant.>.* would be learned"),
    ],
)  # fmt: skip
def test_templates_that_do_not_do(tmp_path, template, says):
    file = tmp_path / "t.jinja"
    file.write_text(template)
    form = chat_format(byte_tokenizer(), str(file))
    with pytest.raises(UserError, match=rf"row 0: task.chat_template={file} .*{says}"):
        encode(form, ONCE)


def test_settings_that_do_not_do(tmp_path):
    with pytest.raises(UserError, match=r"no chat template; set task.chat_template=plain"):
        chat_format(byte_tokenizer())
    with pytest.raises(UserError, match="no such file"):
        chat_format(byte_tokenizer(), str(tmp_path / "x"))
    with pytest.raises(UserError, match=r"task.learn='some': give all or last"):
        chat_format(byte_tokenizer(), "plain", learn="some")
    with pytest.raises(UserError, match="first message is the assistant's"):
        encode(chat_format(byte_tokenizer(), "plain"), Chat((("assistant", "Hi"),)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make):
    """A tiny GPT-2 with `byte_tokenizer`, ChatML its template, and conversations to train on."""
    folder = tmp_path_factory.mktemp("chat")
    made = make("gpt2", vocab_size=260, max_positions=128, num_layers=1)
    ftjax.save(folder, made.model, made.params)
    byte_tokenizer(TEMPLATES["chatml"]).save_pretrained(folder)
    roles = lambda chat: [{"role": role, "content": text} for role, text in chat.messages]  # noqa: E731
    for split in ("train", "validation"):
        rows = [json.dumps({"messages": roles(chat)}) + "\n" for chat in (HELLO, ONCE, HELLO)]
        (folder / f"{split}.jsonl").write_text("".join(rows))
    return folder


def test_a_run(folder, tmp_path, capsys):
    run = f"--workdir={tmp_path / 'run'}"
    config = f"--config=configs/default.py:model={folder},task=chat,method=lora"
    fields = (
        f"task.data={folder}",
        "steps=2",
        "eval_every=2",
        "task.max_length=100",
        "task.system=x",
        "batch_size=2",
        "eval_batch_size=2",
        "generate.max_new_tokens=4",
    )
    assert main(["train", config, run, *(f"--config.{field}" for field in fields)]) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["best"]["metric"] == "perplexity" and result["metrics"]["bits_per_byte"] > 0
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [sample["references"] for sample in samples] == [["Bye"], ["Hi!"]]
    asked = "<|im_start|>system\nx<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert samples[0]["prompt"] == asked + "Hi!<|im_end|>\n<|im_start|>user\nGo.<|im_end|>\n<|im_start|>assistant\n"
    capsys.readouterr()
    assert main(["eval", run]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["generate", run, "--prompt=Hello", "--prompt=Go.", "--chat", "--max_new_tokens=4"]) == 0
    assert "Hello" not in capsys.readouterr().out
    assert found["examples"] == 3 and found["perplexity"] == pytest.approx(result["best"]["value"], rel=1e-5)


def test_instructions_of_others_as_conversations(tmp_path, capsys):
    file = Path(__file__).parents[2].parent / "shared" / "data" / "instructions" / "raschka_instruction-data.json"
    if not file.is_file():
        pytest.skip(f"{file} is absent")
    rows = json.loads(file.read_text())[:40]
    chats = [
        {"messages": [{"role": "user", "content": f"{row['instruction']}\n{row['input']}"},
                      {"role": "assistant", "content": row["output"]}]}
        for row in rows
    ]  # fmt: skip
    (tmp_path / "chat.json").write_text(json.dumps(chats))
    for task, files, more in (
        ("chat", tmp_path / "chat.json", ("task.chat_template=plain", "task.system=Answer.")),
        ("instructions", file, ("task.max_train_rows=40", "task.max_eval_rows=8")),
    ):
        fields = (f"task.files.train={files}", f"task.files.validation={files}", "steps=3", "task.max_length=256",
                  "data.overlong=truncate", "batch_size=4", "eval_batch_size=4", "model.layers=(0,)",
                  "generate.examples=2", "generate.max_new_tokens=4", *more)  # fmt: skip
        config = f"--config=configs/default.py:model=nano-gpt,task={task},method=lora"
        flags = [config, f"--workdir={tmp_path / task}", *(f"--config.{field}" for field in fields)]
        assert main(["train", *flags]) == 0, capsys.readouterr().err
        assert json.loads((tmp_path / task / "result.json").read_text())["metrics"]["perplexity"] > 1
