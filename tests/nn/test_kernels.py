"""splash is interpreted here and lowered for TPUs; cuDNN is lowered for GPUs, and its arguments read as documented."""

import functools
import re
from types import SimpleNamespace

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as private

from ftjax.errors import UserError
from ftjax.nn import kernels
from ftjax.nn.attention import attend, visible
from ftjax.nn.kernels import Request, choose, cudnn, splash

B, T, HD = 5, 149, 6
SEGMENTS = np.zeros((B, T), np.int32)  # packed, padded on the left, whole, padded on the right, nothing but padding
SEGMENTS[0, :40], SEGMENTS[0, 40:41], SEGMENTS[0, 41:140] = 3, 1, 2
SEGMENTS[1, 9:], SEGMENTS[2], SEGMENTS[3, :131] = 1, 1, 1
ALONE = SEGMENTS[2:]


def plain(q, k, v, segments, key_segments, causal, window=0, **options):
    """What `attend` makes of positions that begin anew with each segment; zero on padding."""
    positions, key_positions = (
        jnp.arange(x.shape[1]) - (x[:, :, None] == x[:, None]).argmax(-1) for x in (segments, key_segments)
    )
    seen = visible(positions, segments, key_positions, key_segments, causal, window)
    return jnp.where((segments != 0)[..., None, None], attend(q, k, v, seen, **options)[0], 0)


def arrays(heads, kv_heads, keys=T, b=B, hd=HD, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = ((b, T, heads, hd), (b, keys, kv_heads, hd), (b, keys, kv_heads, hd))
    return [jnp.asarray(rng.standard_normal(shape).astype(dtype)) for shape in shapes]


def assert_same(ours, theirs, qkv, rtol=1e-5, grad_rtol=1e-4):
    """Equal values, and equal gradients of a random projection."""
    weights = np.random.default_rng(1).standard_normal(qkv[0].shape).astype(np.float32)

    def both(f):
        def value(*qkv):
            out = f(*qkv).astype(jnp.float32)
            return (out * weights).sum(), out

        (_, out), grads = jax.jit(jax.value_and_grad(value, (0, 1, 2), has_aux=True))(*qkv)
        return [np.asarray(x, np.float32) for x in (out, *grads)]

    for name, tolerance, a, b in zip("oqkv", (rtol, *[grad_rtol] * 3), both(ours), both(theirs)):
        np.testing.assert_allclose(a, b, tolerance, tolerance, err_msg=name)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", 128)


CASES = [
    # causal, window, softcap, kv heads
    (True, 0, 1.5, 2),
    (True, 12, 0.0, 4),
    (False, 100, 0.0, 1),
]


@pytest.mark.parametrize(("causal", "window", "softcap", "kv_heads"), CASES)
def test_splash_is_attention(small_tiles, causal, window, softcap, kv_heads):
    options = dict(causal=causal, window=window, softcap=softcap, scale=0.7)
    ours = functools.partial(splash, segments=SEGMENTS, interpret=True, **options)
    assert_same(ours, lambda *qkv: plain(*qkv, SEGMENTS, SEGMENTS, **options), arrays(4, kv_heads))


def test_splash_over_another_sequence(small_tiles):
    options = dict(segments=ALONE, key_segments=np.arange(70) < np.array([[70], [33], [5]]), causal=False)
    assert_same(
        functools.partial(splash, interpret=True, **options), functools.partial(plain, **options), arrays(2, 2, 70, 3)
    )


@pytest.mark.parametrize(
    ("length", "window", "tile", "padded"),
    [(1, 0, 128, 128), (512, 0, 512, 512), (640, 0, 384, 768), (2000, 300, 512, 2048), (1024, 256, 256, 1024)],
)
def test_tiles(length, window, tile, padded):
    assert kernels._block(length, window) == tile
    assert -(-length // tile) * tile == padded


def shapes_in(jaxpr):
    for var in (*jaxpr.constvars, *jaxpr.invars):
        yield var.aval.shape if hasattr(var.aval, "shape") else ()
    for eqn in jaxpr.eqns:
        yield from (var.aval.shape for var in eqn.outvars if hasattr(var.aval, "shape"))
        for sub in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from shapes_in(sub)


def square(shapes, length):
    """The shapes with two axes of at least so much."""
    return {shape for shape in shapes if sum(isinstance(n, int) and n >= length for n in shape) >= 2}


def gradient(f, b=2, t=1030, h=4, kv=2, hd=64, dtype=jnp.bfloat16):
    """The traced gradient of f(q, k, v, segments)."""
    x = [jax.ShapeDtypeStruct((b, t, n, hd), dtype) for n in (h, kv, kv)]
    loss = lambda q, k, v, s: f(q, k, v, s).astype(jnp.float32).sum()  # noqa: E731
    return jax.jit(jax.grad(loss, (0, 1, 2))).trace(*x, jax.ShapeDtypeStruct((b, t), jnp.int32))


def lowered(traced, platform):
    """(names of its custom calls, shapes of its tensors, the whole text)."""
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    shapes = {tuple(map(int, re.findall(r"\d+(?=x)", s))) for s in re.findall(r"tensor<((?:\d+x)+)", text)}
    return re.findall(r"custom_call @([\w$]+)", text), shapes, text


@pytest.mark.parametrize(("causal", "window"), [(True, 0), (True, 100), (False, 300), (False, 0)])
def test_splash_has_no_array_of_queries_by_keys(causal, window):
    traced = gradient(lambda q, k, v, s: splash(q, k, v, segments=s, causal=causal, window=window, softcap=20.0))
    assert not square(shapes_in(traced.jaxpr.jaxpr), 1030)
    calls, shapes, _ = lowered(traced, "tpu")
    assert calls.count("tpu_custom_call") == 3 and not square(shapes, 1030)
    traced = gradient(lambda q, k, v, s: plain(q, k, v, s, s, causal, window))
    assert square(shapes_in(traced.jaxpr.jaxpr), 1030) and square(lowered(traced, "tpu")[1], 1030)


@pytest.mark.parametrize("hd", [6, 80, 256])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_splash_lowers_for_tpus(hd, dtype):
    traced = gradient(lambda q, k, v, s: splash(q, k, v, segments=s, causal=True), t=300, hd=hd, dtype=dtype)
    assert lowered(traced, "tpu")[0].count("tpu_custom_call") == 3


@pytest.fixture
def hopper(monkeypatch):
    """As on a GPU of compute capability 9.0, for tracing."""
    monkeypatch.setattr(private, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(private, "check_compute_capability", lambda capability: True)


@pytest.mark.parametrize(("window", "max_segments"), [(0, 0), (100, 0), (0, 1), (100, 5)])
@pytest.mark.parametrize("causal", [True, False])
def test_cudnn_lowers_for_gpus_without_an_array_of_queries_by_keys(hopper, causal, window, max_segments):
    options = dict(causal=causal, window=window if causal else 0, max_segments=max_segments)
    traced = gradient(lambda q, k, v, s: cudnn(q, k, v, segments=s, **options), hd=60)
    calls, shapes, text = lowered(traced, "cuda")
    assert {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"} <= set(calls)
    assert not square(shapes_in(traced.jaxpr.jaxpr), 1030) and not square(shapes, 1030)
    names = ("mask_type", "sliding_window_length", "max_seg_per_batch", "fmha_scale")
    found = {name: set(re.findall(rf"\\22{name}\\22: (?:\\22)?([\w.]+)", text)) for name in names}
    segments = {0: 1, 1: 2}.get(max_segments, max_segments)
    expected = ("PADDING_CAUSAL" if causal else "PADDING", options["window"], segments, 60**-0.5)
    assert found == {name: {str(value)} for name, value in zip(names, expected)}


CALLS = {"tpu": "tpu_custom_call", "cuda": "__cudnn$fmhaSoftmaxBackward"}
LOCAL = [(4, 2, (2, 128, 2, 64)), (3, 2, (3, 128, 2, 64)), (4, 1, (2, 128, 4, 64))]


@pytest.mark.parametrize(("platform", "kernel"), [("tpu", splash), ("cuda", functools.partial(cudnn, max_segments=3))])
@pytest.mark.parametrize(("b", "kv", "local"), LOCAL)
def test_rows_and_heads_are_spread_over_a_mesh(hopper, platform, kernel, b, kv, local):
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2, 1, 2), ("data", "fsdp", "tensor"))):
        traced = gradient(lambda q, k, v, s: kernel(q, k, v, segments=s, causal=True), b=b, t=128, kv=kv)
        assert CALLS[platform] in lowered(traced, platform)[0]
        assert local in set(shapes_in(traced.jaxpr.jaxpr))


@pytest.fixture
def documented(monkeypatch):
    """In place of cuDNN what it is documented to do, in fp32; what it leaves undefined is NaN, forward and backward."""

    def undefined_outside(f, real, real_keys):
        real, *keys = (x[..., None, None] for x in (real, real_keys, real_keys))

        def backward(qkv, dout):
            grads = jax.vjp(f, *qkv)[1](jnp.where(real, dout, 0))
            return tuple(jnp.where(x, dx, jnp.nan) for x, dx in zip((real, *keys), grads))

        g = jax.custom_vjp(lambda *qkv: jnp.where(real, f(*qkv), jnp.nan))
        g.defvjp(lambda *qkv: (g(*qkv), qkv), backward)
        return g

    def packed(q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type, sliding_window_length):
        assert k.shape == q.shape and q_seqlen is kv_seqlen and q_offsets is kv_offsets
        assert q_seqlen.dtype == q_offsets.dtype == jnp.int32 and q_offsets.shape[1] == q_seqlen.shape[1] + 1 >= 3
        told_well = ((q_seqlen > 0) == (q_offsets[:, :-1] >= 0)).all() & (q_offsets[:, -1] == -1).all()
        starts = q_offsets[:, :-1, None]
        inside = (starts >= 0) & (jnp.arange(T) >= starts) & (jnp.arange(T) < starts + q_seqlen[..., None])
        segments = (inside * jnp.arange(1, 1 + starts.shape[1])[:, None]).sum(1)
        options = dict(causal=mask_type == private.MaskType.PADDING_CAUSAL, window=sliding_window_length or 0)
        f = functools.partial(plain, segments=segments, key_segments=segments, scale=scale, **options)
        return undefined_outside(f, told_well & (segments != 0), segments != 0)(q, k, v)

    def padded(q, k, v, *, implementation, **options):
        lengths, key_lengths = options["query_seq_lengths"], options["key_value_seq_lengths"]
        assert implementation == "cudnn"
        told_well = (lengths > 0).all() & (key_lengths > 0).all()
        f = functools.partial(xla, implementation="xla", **options)
        real, real_keys = (jnp.arange(x.shape[1]) < n[:, None] for x, n in ((q, lengths), (k, key_lengths)))
        return undefined_outside(f, told_well & real, real_keys)(q, k, v)

    xla = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", padded)
    monkeypatch.setattr(private, "dot_product_attention", packed)
    monkeypatch.setattr(kernels, "_lack", lambda name, request: None)  # fp32


@pytest.mark.parametrize(
    ("max_segments", "causal", "window", "kv_heads"),
    [(0, True, 0, 2), (0, True, 30, 4), (0, False, 0, 1), (1, True, 30, 2), (5, True, 0, 1), (5, False, 0, 2)],
)
def test_cudnn_is_told_to_be_attention(documented, max_segments, causal, window, kv_heads):
    rows = {0: slice(2, 5), 1: slice(1, 5), 5: slice(None)}[max_segments]
    segments = SEGMENTS[rows]
    options = dict(causal=causal, window=window, scale=0.7)
    ours = functools.partial(cudnn, segments=segments, max_segments=max_segments, **options)
    theirs = functools.partial(plain, segments=segments, key_segments=segments, **options)
    assert_same(ours, theirs, arrays(4, kv_heads, b=len(segments)))


def test_cudnn_over_another_sequence(documented):
    options = dict(segments=ALONE, key_segments=np.arange(70) < np.array([[70], [33], [5]]), causal=False)
    ours, theirs = functools.partial(cudnn, **options), functools.partial(plain, **options)
    assert_same(ours, theirs, arrays(2, 2, 70, 3))


def test_cudnn_over_another_sequence_wants_both_padded_on_the_right_and_of_one_segment(documented):
    right, left = np.eye(2, T, dtype=np.int32)
    segments, keys = np.stack([right, left, right, right]), np.stack([right, right, left, 2 * right])
    run = jax.jit(functools.partial(cudnn, segments=segments, key_segments=keys, causal=False))
    assert np.isnan(run(*arrays(2, 2, b=4))).any((1, 2, 3)).tolist() == [False, True, True, True]


@pytest.mark.parametrize("max_segments", [0, 1, 2, 3])
def test_rows_that_are_not_as_cudnn_was_told_are_nan(documented, max_segments):
    pieces = np.where(np.arange(T) % 100 < 50, 1, 2)[None]  # 1 2 1
    segments = np.concatenate([SEGMENTS, pieces, np.where(pieces == 2, 0, 1)])
    fits = {0: [2, 3, 4], 1: [1, 2, 3, 4], 2: [1, 2, 3, 4], 3: [0, 1, 2, 3, 4]}[max_segments]
    qkv = arrays(2, 2, b=len(segments))
    out = jax.jit(functools.partial(cudnn, segments=segments, causal=True, max_segments=max_segments))(*qkv)
    expected = np.where((segments == 0)[..., None, None], 0, np.full(out.shape, np.nan))
    attention = jax.jit(functools.partial(plain, segments=segments, key_segments=segments, causal=True))
    expected[fits] = np.asarray(attention(*qkv))[fits]
    np.testing.assert_allclose(out, expected, 1e-5, 1e-5)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU")
@pytest.mark.parametrize(("max_segments", "rows"), [(0, slice(2, 5)), (5, slice(None))])
@pytest.mark.parametrize(("causal", "window", "kv_heads"), [(True, 0, 2), (True, 30, 4), (False, 0, 1)])
def test_cudnn_on_a_gpu(causal, window, kv_heads, max_segments, rows):
    segments, options = SEGMENTS[rows], dict(causal=causal, window=window)
    ours = functools.partial(cudnn, segments=segments, max_segments=max_segments, **options)
    theirs = functools.partial(plain, segments=segments, key_segments=segments, **options)
    assert_same(ours, theirs, arrays(4, kv_heads, b=len(segments), hd=60, dtype=jnp.bfloat16), 3e-2, 6e-2)


@pytest.mark.skipif(jax.default_backend() != "tpu", reason="no TPU")
@pytest.mark.parametrize(("causal", "window", "softcap", "kv_heads"), CASES)
def test_splash_on_a_tpu(causal, window, softcap, kv_heads):
    options = dict(causal=causal, window=window, softcap=softcap)
    ours = functools.partial(splash, segments=SEGMENTS, **options)
    theirs = functools.partial(plain, segments=SEGMENTS, key_segments=SEGMENTS, **options)
    assert_same(ours, theirs, arrays(4, kv_heads, dtype=jnp.bfloat16), 3e-2, 6e-2)


FACTS = dict(dtype=jnp.bfloat16, head_dim=64, length=1024, causal=True, max_segments=0)
TABLE = [
    # facts, splash on a TPU, cudnn on Hopper, cudnn on Ampere, cudnn on Volta
    ({}, "", "", "", "8.0 or later, here is 7.0"),
    (dict(dtype=jnp.float32), "", "not float32", "not float32", "not float32"),
    (dict(dtype=jnp.float16), "not float16", "", "", "7.0"),
    (dict(head_dim=256), "", "", "at most 128 here, not 256", "7.0"),
    (dict(head_dim=264), "", "at most 256", "at most 128", "7.0"),
    (dict(softcap=50.0), "", "caps no", "caps no", "7.0"),
    (dict(window=128), "", "", "", "7.0"),
    (dict(window=128, causal=False), "", "back only", "back only", "7.0"),
    (dict(causal=False, cross=True), "", "", "", "7.0"),
    (dict(cross=True), *["own keys"] * 4),
    (dict(max_segments=9), "", "", "9.0 or later, here is 8.0", "7.0"),
    (dict(max_segments=9, causal=False, cross=True), "", "own keys", "own keys", "7.0"),
    (dict(max_segments=None), "", "max_segments", "max_segments", "7.0"),
    (dict(bias=True), *["biases"] * 4),
    (dict(prefix=True), *["prefix"] * 4),
    (dict(dropout=True), *["attention_dropout"] * 4),
    (dict(probabilities=True), *["probabilities"] * 4),
    (dict(prompts=True), *["shared_prompts"] * 4),
]
HERE = [("splash", "tpu", (0, 0)), ("cudnn", "gpu", (9, 0)), ("cudnn", "gpu", (8, 0)), ("cudnn", "gpu", (7, 0))]


@pytest.mark.parametrize(("facts", "whys"), [(facts, whys) for facts, *whys in TABLE])
def test_choice(facts, whys):
    request = Request(**{**FACTS, **facts})
    for (kernel, backend, capability), why in zip(HERE, whys, strict=True):
        here = (backend, request, capability)
        assert choose("auto", *here) == ("xla" if why else kernel)
        assert choose("xla", *here) == "xla"
        if why:
            with pytest.raises(UserError, match=rf"^attention={kernel}: .*{re.escape(why)}.*; attention=xla can$"):
                choose(kernel, *here)
        else:
            assert choose(kernel, *here) == kernel
        assert {choose(name, backend, request._replace(cache=True), capability) for name in ("auto", kernel)} == {"xla"}


def test_choice_of_what_is_not_here():
    request = Request(**FACTS)
    assert choose("auto", "cpu", request, (0, 0)) == choose("auto", "metal", request, (0, 0)) == "xla"
    assert choose("auto", "gpu", request, (0, 0)) == "xla"  # of another maker
    assert choose("auto", "tpu", request._replace(length=100), (0, 0)) == "xla"
    assert choose("splash", "tpu", request._replace(length=100), (0, 0)) == "splash"
    for name, backend in (("splash", "cpu"), ("splash", "gpu"), ("cudnn", "tpu")):
        with pytest.raises(UserError, match=f"attention={name}: it runs on a .*, here is a {backend}"):
            choose(name, backend, request, (9, 0))
    with pytest.raises(UserError, match="attention=flash: there are auto, xla, cudnn and splash"):
        choose("flash", "tpu", request, (0, 0))


@pytest.mark.parametrize(("said", "read"), [("9.0", (9, 0)), ("12.1", (12, 1)), ("gfx90a", (0, 0)), (None, (0, 0))])
def test_capability(monkeypatch, said, read):
    device = SimpleNamespace(compute_capability=said) if said else SimpleNamespace()
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert kernels.capability() == read


def test_a_kernel_refuses_what_it_cannot():
    q, k, v = arrays(2, 2, b=1)
    with pytest.raises(UserError, match="cudnn attention: it computes in bfloat16 or float16, not float32"):
        cudnn(q, k, v, segments=SEGMENTS[:1], causal=True)
    with pytest.raises(UserError, match="splash attention: causal and windowed attention is to a sequence's own keys"):
        splash(q, k, v, segments=SEGMENTS[:1], key_segments=SEGMENTS[:1], causal=True)
