"""The analytic count against XLA's of an unrolled lowering, on sizes at which matrix products are most of the work."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from configs import method as configs
from ftjax import methods, tree
from ftjax.models.transformer import abstract, sites
from ftjax.objectives.classification import classification
from ftjax.objectives.lm import causal_lm
from ftjax.train.flops import PEAK, peak_flops, peak_of, step_flops
from tests.conftest import T5

BATCH, LENGTH, SCORED, SOURCE = 4, 64, 48, 40
SIZES = dict(vocab_size=512, hidden_size=256, num_heads=4, num_kv_heads=4, head_dim=64, ffn_size=1024, max_positions=64)
TOLERANCE = 0.05
CASES = {  # shape, head, method, its fields
    "decoder full": ("gpt2", "lm", "full", {}),
    "decoder lora": ("gpt2", "lm", "lora", dict(targets=("q", "v"))),
    "decoder lora everywhere": ("gpt2", "lm", "lora", dict(targets=("all_linear",))),
    "decoder lora on the head": ("llama", "lm", "lora", dict(targets=("head",))),
    "decoder head": ("gpt2", "classification", "head", {}),
    "gated, grouped, untied full": ("llama", "lm", "full", {}),
    "gated, grouped, untied lora": ("llama", "lm", "lora", dict(targets=("attention",))),
    "encoder full": ("bert", "classification", "full", {}),
    "encoder lora": ("bert", "classification", "lora", {}),
    "encoder head": ("bert", "classification", "head", {}),
    "encoder-decoder full": ("t5", "lm", "full", {}),
    "encoder-decoder lora": ("t5", "lm", "lora", dict(targets=("(attn|cross)/[qv]",))),
}


def counts(make, name, head, method, fields):
    """(ours, XLA's)."""
    sizes = {"num_layers": 3, **SIZES, **(dict(num_kv_heads=2) if name == "llama" else {})}
    both = {"encoder": T5.encoder.replace(**sizes)} if name == "t5" else {}
    model = make(name, head=head, **sizes, **both).model
    params, cfg = abstract(model), configs.get(method)
    cfg.update(fields)
    context = methods.Context(model.cfg, params, sites(model))
    adapters = jax.eval_shape(lambda key: methods.get(method).init(context, cfg, key), jax.random.key(0))
    variables = {"params": params, "adapters": adapters}
    labels = methods.labels(methods.get(method), variables, cfg, model.cfg)
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
    batch = {name: ints(BATCH, LENGTH) for name in ("input_ids", "segment_ids", "position_ids")}
    if head == "lm":
        batch |= {name: ints(BATCH, SCORED) for name in ("label_positions", "labels")}
        objective, shape = causal_lm(model, chunk=BATCH * SCORED), (BATCH, LENGTH, SCORED)
        if name == "t5":
            names = ("input_ids", "segment_ids", "position_ids")
            batch |= {f"encoder_{name}": ints(BATCH, SOURCE) for name in names}
            shape = (*shape, SOURCE)
    else:
        objective, shape = classification(model), (BATCH, LENGTH)
        batch["labels"] = ints(BATCH)

    def step(train, frozen, batch):
        loss = lambda train: objective.loss(tree.join(train, frozen), batch, jax.random.key(0)).loss  # noqa: E731
        return jax.value_and_grad(loss)(train)

    lowered = jax.jit(step).lower(*tree.split(variables, labels), batch)
    if fields.get("targets") == ("head",):  # XLA leaves out the gradient in hidden states, which is traced
        lowered = lowered.compile()
    return step_flops(model.cfg, labels, variables, adapters, *shape), lowered.cost_analysis()["flops"]


@pytest.mark.parametrize("case", CASES)
def test_the_count_is_xlas(make, case):
    ours, theirs = counts(make, *CASES[case])
    assert abs(ours / theirs - 1) < TOLERANCE, ours / theirs


def test_a_lowest_site_high_in_its_layer_is_counted_as_a_scan_runs_it(make):
    """XLA leaves out what lies below it in the first layer, where layers are unrolled: at most that layer's share."""
    ours, theirs = counts(make, "gpt2", "lm", "lora", dict(targets=("down",)))
    assert -TOLERANCE < ours / theirs - 1 < 0.5 / 3 + TOLERANCE


def test_a_table_that_is_no_head_is_not_counted(make):
    def work(words):
        model = make("bert", head="tagging", **{**SIZES, "vocab_size": words}).model
        variables = {"params": abstract(model), "adapters": {}}
        labels = jax.tree.map(lambda _: "backbone", variables)
        return step_flops(model.cfg, labels, variables, {}, BATCH, LENGTH, SCORED)

    assert work(512) == work(1024) > 0


def test_peak_of_this_machine_is_measured():
    assert 1e8 < peak_flops(1) < 1e16


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("NVIDIA A100-SXM4-40GB", 312e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA L4", 121e12), ("NVIDIA L40S", 362e12), ("NVIDIA L40", None), ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("TPU v6 lite", 918e12), ("TPU7x", 1153.5e12), ("TPU v3", None),
    ],
)  # fmt: skip
def test_peak_of_a_device_by_the_name_that_jax_gives_it(kind, peak):
    assert peak_of(kind) == peak and all(peak_of(name) == rate for name, rate in PEAK.items())


def test_peak_of_devices_without_a_data_sheet_is_not_known(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind="NVIDIA RTX")])
    assert peak_flops.__wrapped__(2) is None
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind="TPU v5")] * 2)
    assert peak_flops.__wrapped__(2) == 918e12
