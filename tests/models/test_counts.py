"""Parameters of published models, from their shapes alone."""

import jax
import pytest

from configs import method as method_configs
from ftjax import methods, tree
from ftjax.models.transformer import Transformer, abstract, sites
from ftjax.nn.config import Config


def gpt2(layers, width, heads):
    return Config(50257, width, layers, heads, heads, 64, 4 * width, 1024)


def bert(layers, width, heads, **options):
    encoder = dict(causal=False, norm_first=False, embed_norm=True, token_types=2, activation="gelu", pooling="first")
    return Config(30522, width, layers, heads, heads, 64, 4 * width, 512, **encoder | options)


ROBERTA = dict(head="none")
LORA = [
    (gpt2(24, 1024, 16), 4, 393_216),
    (gpt2(36, 1280, 20), 4, 737_280),
    (bert(12, 768, 12, **ROBERTA), 8, 294_912),
    (bert(24, 1024, 16, **ROBERTA), 8, 786_432),
]


@pytest.mark.parametrize(("cfg", "rank", "count"), LORA, ids=["GPT-2 medium", "GPT-2 large", "base", "large"])
def test_lora_on_q_and_v_as_published(cfg, rank, count):
    model, config = Transformer(cfg), method_configs.get("lora")
    config.update(rank=rank, targets=("q", "v"))
    context = methods.Context(cfg, abstract(model), sites(model))
    adapters = jax.eval_shape(lambda key: methods.get("lora").init(context, config, key), jax.random.key(0))
    variables = {"params": context.params, "adapters": adapters}
    labels = methods.labels(methods.get("lora"), variables, config)
    assert tree.count(tree.split(variables, labels)[0]) == count


def test_gpt2_small_and_bert_base():
    assert tree.count(abstract(Transformer(gpt2(12, 768, 12)))) == 124_439_808
    params = abstract(Transformer(bert(12, 768, 12, head="classification", num_classes=2, pooler=True)))
    assert tree.count(params) - tree.count(params["classifier"]) == 109_482_240
