"""Small tokenizers, configs and the shared data sets."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SHARED = Path(__file__).parents[2].parent / "shared" / "data"

CORPUS = ["Reverse the name: emma. Answer: amme", "name : Blue Spice | area : riverside", "a bad film ."]


def byte_level(bos=None, eos: str | None = "<eos>", pad=None, template=None, **special):
    """A byte-level BPE trained on a few lines; `template` is a post-processor's pattern."""
    tokens = list(dict.fromkeys(t for t in (bos, eos, pad, *special.values()) if t))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if template:
        single, pair = template
        ids = [(t, tokenizer.token_to_id(t)) for t in tokens]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad, **special)


@pytest.fixture(scope="session")
def decoder():
    """Adds no bos; eos serves as pad."""
    return byte_level(pad="<eos>")


@pytest.fixture(scope="session")
def decoder_bos():
    """Adds a bos; has no pad."""
    return byte_level(bos="<s>", template=("<s> $A", "<s> $A <s> $B"))


@pytest.fixture(scope="session")
def encoder():
    """cls and sep, as BERT."""
    template = ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    return byte_level(eos=None, pad="[PAD]", template=template, cls_token="[CLS]", sep_token="[SEP]")


def task_config(**changes):
    cfg = ConfigDict(
        {
            "name": "",
            "data": "",
            "files": {"train": "", "validation": "", "test": ""},
            "columns": {"name": "", "context": "", "completion": "", "text": "", "label": ""},
            "max_length": 512,
            "train_size": 50,
            "validation_size": 10,
            "test_size": 10,
            "max_train_rows": 0,
            "max_eval_rows": 0,
            "seed": 0,
            "validation_files": "",
        }
    )
    cfg.update_from_flattened_dict(changes)
    return cfg


@pytest.fixture
def config():
    return task_config


@pytest.fixture
def shared():
    """path -> a folder of the shared data sets, or a skip that says which is absent."""

    def folder(name):
        if not (SHARED / name).is_dir():
            pytest.skip(f"the data set {name} is not at {SHARED}")
        return SHARED / name

    return folder
