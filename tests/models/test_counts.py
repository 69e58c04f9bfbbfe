"""Parameters of published models, from their shapes alone."""

import jax
import pytest

from configs import method as configs
from ftjax import methods, tree
from ftjax.models.transformer import Transformer, abstract, sites
from ftjax.nn.config import Config


def gpt2(layers, width, heads):
    return Config(50257, width, layers, heads, heads, width // heads, 4 * width, 1024)


def bert(layers, width, heads, **options):
    encoder = dict(causal=False, norm_order="post", embed_norm=True, token_types=2, activation="gelu", pooling="first")
    return Config(30522, width, layers, heads, heads, 64, 4 * width, 512, **encoder | options)


def llama(layers, width, heads, kv_heads, ffn, vocab, **options):
    rest = dict(norm="rmsnorm", positions="rotary", activation="silu", gated=True, tied_head=False)
    rest |= dict(qkv_bias=False, out_bias=False, ffn_bias=False)
    return Config(vocab, width, layers, heads, kv_heads, width // heads, ffn, 2048, **rest | options)


GPT2_M, GPT2_L = gpt2(24, 1024, 16), gpt2(36, 1280, 20)
ROBERTA, ROBERTA_L = bert(12, 768, 12, head="none"), bert(24, 1024, 16, head="none")
GPT3 = gpt2(96, 12288, 96)
LLAMA_8B = llama(32, 4096, 32, 8, 14336, 128256)
Q_V = dict(targets=("q", "v"))
PUBLISHED = {  # the exact rows of the papers' tables, or, where a table rounds or errs, of its own arithmetic
    "FT GPT-2 M": (GPT2_M, "full", {}, 354_823_168),
    "FT GPT-2 L": (GPT2_L, "full", {}, 774_030_080),
    "FT-Top2 GPT-2 M": (GPT2_M, "top_layers", dict(count=2), 25_192_448),
    "LoRA GPT-2 M": (GPT2_M, "lora", dict(rank=4, **Q_V), 393_216),
    "LoRA GPT-2 L": (GPT2_L, "lora", dict(rank=4, **Q_V), 737_280),
    "LoRA RoBERTa base": (ROBERTA, "lora", dict(rank=8, **Q_V), 294_912),
    "LoRA RoBERTa large": (ROBERTA_L, "lora", dict(rank=8, **Q_V), 786_432),
    "LoRA GPT-3 18M, one matrix": (GPT3, "lora", dict(rank=8, targets=("q",)), 18_874_368),
    "LoRA GPT-3 18M, two": (GPT3, "lora", dict(rank=4, **Q_V), 18_874_368),
    "LoRA GPT-3 18M, four": (GPT3, "lora", dict(rank=2, targets=("attention",)), 18_874_368),
    "LoRA GPT-3 4.7M": (GPT3, "lora", dict(rank=1, **Q_V), 4_718_592),
    "LoRA GPT-3 37.7M": (GPT3, "lora", dict(rank=8, **Q_V), 37_748_736),
    "LoRA Llama-3.1-8B mlp 256": (LLAMA_8B, "lora", dict(rank=256, targets=("mlp", "head")), 486_866_944),
    "LoRA Llama-3.1-8B attention 256": (LLAMA_8B, "lora", dict(rank=256, targets=("attention", "head")), 251_985_920),
    "LoRA Llama-3.1-8B all 256": (LLAMA_8B, "lora", dict(rank=256, targets=("all_linear", "head")), 704_970_752),
    "LoRA Llama-3.1-8B mlp 128": (LLAMA_8B, "lora", dict(rank=128, targets=("mlp", "head")), 243_433_472),
    "Adapter^L GPT-2 M, 6": (GPT2_M, "adapter", dict(kind="lin", size=6), 368_784),
    "Adapter^L GPT-2 M, 224": (GPT2_M, "adapter", dict(kind="lin", size=224), 11_089_152),
    "Adapter^L GPT-2 L, 8": (GPT2_L, "adapter", dict(kind="lin", size=8), 875_808),
    "Adapter^L GPT-2 L, 248": (GPT2_L, "adapter", dict(kind="lin", size=248), 23_002_848),
    "Adapter^H GPT-2 M, 112": (GPT2_M, "adapter", dict(kind="houlsby", size=112), 11_064_576 + 98_304),
    "Houlsby BERT large, 8": (ROBERTA_L, "adapter", dict(size=8), 835_968 + 98_304),
    "Houlsby BERT large, 64": (ROBERTA_L, "adapter", dict(size=64), 6_343_680 + 98_304),
    "Houlsby BERT large, 256": (ROBERTA_L, "adapter", dict(size=256), 25_227_264 + 98_304),
    "LLaMA-Adapter 7B": (llama(32, 4096, 32, 32, 11008, 32000), "llama_adapter", dict(count=30), 1_229_760),
    "PreLayer GPT-2 M, 5": (GPT2_M, "prefix", dict(definition="peft", length=5), 245_760),
    "PreLayer GPT-2 M, 10": (GPT2_M, "prefix", dict(definition="peft", length=10), 491_520),
    "Prefix MLP GPT-2 M": (GPT2_M, "prefix", dict(length=5, hidden=512), 25_744_896),
    "P-tuning BERT base": (ROBERTA, "p_tuning", dict(template="{3}{text}{6}"), 8_278_272),
    **{
        f"Prompt tuning, width {width}": (gpt2(1, width, width // 64), "prompt", dict(length=100), 100 * width)
        for width in (512, 768, 1024, 2048, 4096)
    },
}


def of(cfg):
    """(shapes of the model's parameters, its sites)."""
    model = Transformer(cfg)
    return abstract(model), sites(model)


@pytest.mark.parametrize("row", PUBLISHED)
def test_trainable_parameters_as_published(row):
    cfg, method, fields, count = PUBLISHED[row]
    config = configs.get(method)
    config.update(fields)
    context = methods.Context(cfg, *of(cfg))
    train, _ = methods.trainable_leaves(methods.get(method), config, context)
    assert tree.count(train) == count


def test_folded_for_inference():
    """What remains of the encoders: P D rows, and 2 L P D of keys and values."""
    for cfg, method, fields, count in (
        (ROBERTA, "p_tuning", dict(template="{3}{text}{6}"), 6_912),
        (GPT2_M, "prefix", dict(length=5), 245_760),
    ):
        config = configs.get(method)
        config.update(fields)
        context, one = methods.Context(cfg, *of(cfg)), methods.get(method)
        made = lambda key, c=context, f=config, m=one: m.expand(m.init(c, f, key), c.params)  # noqa: E731
        assert tree.count(jax.eval_shape(made, jax.random.key(0))) == count


def test_gpt2_small_bert_and_smollm():
    assert tree.count(abstract(Transformer(gpt2(12, 768, 12)))) == 124_439_808
    for cfg, count in ((bert(12, 768, 12), 109_482_240), (bert(24, 1024, 16), 335_141_888)):
        cfg = cfg.replace(head="classification", num_classes=2, pooler="dense")
        params = abstract(Transformer(cfg))
        assert tree.count(params) - tree.count(params["classifier"]) == count
    smol = llama(30, 576, 9, 3, 1536, 49154, tied_head=True)
    assert tree.count(abstract(Transformer(smol))) == 134_516_160
    assert tree.count(abstract(Transformer(smol.replace(head="classification", num_classes=11)))) == 134_522_507
