"""What a user can get wrong in a method's fields: one line that names the field, before anything compiles."""

import re

import jax
import pytest

from configs import method as configs
from ftjax import methods
from ftjax.errors import UserError
from tests.methods.conftest import context_of

WRONG = {
    "no top layer": ("top_layers", dict(count=0), "method.count=0: give 1..2"),
    "more top layers than layers": ("top_layers", dict(count=3), "method.count=3: give 1..2"),
    "a layer that is not there": ("lora", dict(layers=(0, 2)), "method.layers: 2 of 2 layers; give 0..1"),
    "a rank pattern without a site": (
        "lora",
        dict(targets=("q",), rank_pattern="up:4"),
        "'up' matches none of the chosen sites",
    ),
    "a rank pattern without a number": ("lora", dict(rank_pattern="q"), "write target:number"),
    "a pattern's rank over the matrix": ("lora", dict(rank_pattern="q:17"), "method.rank=17: layers/attn/q is 16 x 16"),
    "fused and apart": ("lora", dict(targets=("qkv", "v")), "qkv beside one of q, k, v"),
    "no alpha": ("lora", dict(alpha=0.0), "method.alpha=0"),
    "half a rank": ("lora", dict(targets=("q",), rank_pattern="q:3.9"), "write target:number"),
    "houlsby in some layers": ("adapter", dict(layers=(1,)), "houlsby trains the norms of all layers"),
    "more classes than rows": ("prompt", dict(init="classes", length=1), "2 classes need a row each"),
    "two variants": ("lora", dict(dora=True, pissa=True), "exclude each other"),
    "pissa on the embedding": ("lora", dict(pissa=True, targets=("embed",)), "the embedding takes plain LoRA or dora"),
    "another definition": ("ia3", dict(definition="papers"), "method.definition='papers': give paper, peft"),
    "another adapter": ("adapter", dict(kind="parallel"), "give houlsby, lin, pfeiffer"),
    "no bottleneck": ("adapter", dict(size=0), "method.size=0"),
    "no prompt": ("prompt", dict(length=0), "method.length=0"),
    "more rows than tokens": ("prompt", dict(length=51), "only 50 tokens to sample"),
    "a class outside the vocabulary": ("prompt", dict(init="classes"), "no tokens for '?'"),
    "a text for another start": ("prompt", dict(text="ab"), "method.text is for method.init='text'"),
    "no text to start from": ("prompt", dict(init="text"), "method.text: the vocabulary has no tokens for ''"),
    "words without an init": ("prefix", dict(text="ab"), "go together"),
    "a template without the text": ("p_tuning", dict(template="{3}ab"), "needs one {text}"),
    "a template without slots": ("p_tuning", dict(template="{text} ab"), "has no slot for virtual tokens"),
    "a brace too many": ("p_tuning", dict(template="{3}{text}{word}"), "has a brace"),
    "peft only prepends": ("p_tuning", dict(definition="peft", template="{text}{3}"), "only prepends"),
    "another gate": ("llama_adapter", dict(gate="layer"), "give head, scalar"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_fields(tune, case):
    method, fields, message = WRONG[case]
    classes = ("no", "?") if "class outside" in case else ("no", "yes")
    with pytest.raises(UserError, match=re.escape(message)) as error:
        tune(method, "gpt2", classes=classes, **fields)
    assert "\n" not in str(error.value)


def test_biases_that_are_not_there(tune):
    with pytest.raises(UserError, match="this model's layers have no biases"):
        tune("bitfit ", "llama")


def test_compositions(tune):
    for name, message in (
        ("lora+lora", "names a method twice"),
        ("prompt+p_tuning", "both place virtual tokens"),
        ("prefix+lorra", "'lorra' is unknown"),
        ("full+top_layers", "full and top_layers both say which"),
    ):
        with pytest.raises(UserError, match=message):
            methods.get(name)
    with pytest.raises(UserError, match=re.escape("method.lora.rank=0")):
        tune("prefix+lora", "gpt2", **{"lora.rank": 0})


def test_llama_adapter_is_not_for_keys_that_are_normed(make):
    context = context_of(make("llama", qk_norm="head"), ())
    with pytest.raises(UserError, match="its keys are not normed"):
        methods.get("llama_adapter").init(context, configs.get("llama_adapter"), jax.random.key(0))
