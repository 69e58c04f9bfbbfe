"""Fused attention behind the option `attention`: splash (Pallas) on TPUs, cuDNN's on GPUs, and which of them to use.

Neither makes an array of queries by keys. Both read who sees whom off segments and the order of slots, for inside a
segment positions are in that order: packed rows and padding on either side are the same to them.
"""

import contextlib
import functools
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ftjax.errors import UserError

BLOCK, LANES = 512, 128  # splash's largest tile, and what its tiles are multiples of
ROWS, HEADS = ("data", "fsdp"), "tensor"  # mesh axes that rows and heads are spread over
_TARGET: ContextVar[tuple[str, tuple[int, int]] | None] = ContextVar("target", default=None)


class Request(NamedTuple):
    """What is asked of one attention, as far as it is known before tracing.

    `length` is of the queries. `window`: 0 none, else a query sees itself and `window - 1` keys before it, and as many
    after it if not causal. `max_segments`: 0 for rows of one segment, padded on the right; n for up to n segments
    anywhere in a row (packed; padded on the left: 1); None if not known. `cross`: the keys are another sequence's.
    `bias`: scores get a bias, as T5's. `prefix`: there are keys beside the tokens' own. `dropout` is of probabilities,
    and `probabilities` are to be returned. `prompts`: segments see another one, that of a prompt which they share.
    """

    dtype: Any
    head_dim: int
    length: int
    causal: bool
    window: int = 0
    softcap: float = 0.0
    max_segments: int | None = None
    cross: bool = False
    bias: bool = False
    prefix: bool = False
    dropout: bool = False
    probabilities: bool = False
    cache: bool = False
    prompts: bool = False


@contextlib.contextmanager
def compiled_for(backend: str, capability: tuple[int, int] = (0, 0)) -> Iterator[None]:
    """Within it, what is traced is for another machine: a backend as `jax.default_backend()` gives it there."""
    token = _TARGET.set((backend, capability))
    try:
        yield
    finally:
        _TARGET.reset(token)


def backend() -> str:
    """The backend that programs are traced for: this machine's, but for `compiled_for`."""
    target = _TARGET.get()
    return target[0] if target else jax.default_backend()


def capability() -> tuple[int, int]:
    """The CUDA compute capability of the first device here, or of `compiled_for`; (0, 0) if it has none."""
    if target := _TARGET.get():
        return target[1]
    major, _, minor = str(getattr(jax.local_devices()[0], "compute_capability", "")).partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def choose(name: str, backend: str, request: Request, capability: tuple[int, int]) -> Literal["xla", "cudnn", "splash"]:
    """What `attention=name` means here. With a cache it is always 'xla'.

    'auto' takes the backend's kernel if it can express the request, else 'xla' (on TPUs also below a tile of queries).
    `backend` is as `jax.default_backend()` gives it, `capability` as `capability()` does.

    Raises:
      UserError: an unknown name; a kernel that this backend has not, or that cannot express the request.
    """
    if name not in ("auto", "xla", "cudnn", "splash"):
        raise UserError(f"attention={name}: there are auto, xla, cudnn and splash")
    if request.cache or name == "xla":
        return "xla"
    if name == "auto":
        if backend == "tpu" and request.length >= LANES and not _lack("splash", request):
            return "splash"
        return "cudnn" if backend == "gpu" and not _lack("cudnn", request, capability) else "xla"
    kernel, platform = ("cudnn", "gpu") if name == "cudnn" else ("splash", "tpu")
    lack = f"it runs on a {platform}, here is a {backend}" if backend != platform else None
    if lack := lack or _lack(kernel, request, capability):
        raise UserError(f"attention={name}: {lack}; attention=xla can")
    return kernel


def _lack(name: str, r: Request, capability: tuple[int, int] = (9, 0)) -> str | None:
    """What keeps a kernel from a request; None if nothing does."""
    dtypes = ("bfloat16", "float16") if name == "cudnn" else ("bfloat16", "float32")
    dtype, widest = jnp.dtype(r.dtype).name, 256 if capability >= (9, 0) else 128
    gpu = "a GPU of compute capability {} or later, here is " + ".".join(map(str, capability))
    lacks = [
        (dtype not in dtypes, f"it computes in {' or '.join(dtypes)}, not {dtype}"),
        (r.cross and (r.causal or r.window), "causal and windowed attention is to a sequence's own keys"),
        (r.bias, "it takes no biases on scores"),
        (r.prefix, "it takes no keys beside the tokens' own, as a prefix has"),
        (r.dropout, "it drops no probabilities (attention_dropout)"),
        (r.probabilities, "it returns no probabilities"),
        (r.prompts, "its segments see no other, as those that share a prompt do (data.shared_prompts)"),
    ]
    if name == "cudnn":
        lacks += [
            (capability < (8, 0), f"it needs {gpu.format('8.0')}"),
            (r.head_dim > widest, f"it takes heads of at most {widest} here, not {r.head_dim}"),
            (r.softcap, "it caps no scores"),
            (r.window and not r.causal, "its windows look back only, and this attention is not causal"),
            (r.max_segments is None, "it must know how many segments a row holds at most (max_segments)"),
            (r.max_segments and r.cross, "packed or left-padded rows attend to their own keys only"),
            (r.max_segments and capability < (9, 0), f"packed or left-padded rows need {gpu.format('9.0')}"),
        ]
    return next((why for lack, why in lacks if lack), None)


def splash(
    q: jax.Array, k: jax.Array, v: jax.Array, *, segments: jax.Array, key_segments: jax.Array | None = None,
    causal: bool, window: int = 0, softcap: float = 0.0, scale: float = 0.0, interpret: bool = False,
) -> jax.Array:  # fmt: skip
    """Flash attention that skips the tiles which a causal or local mask empties. Differentiable.

    Lengths are padded to whole tiles, heads to multiples of 64; scaled queries are rounded to q's dtype. On a mesh of
    several TPUs it needs `jax.set_mesh`: rows and heads then stay where they are, if the axes divide them.

    Args:
      q: `[B, T, H, hd]`; k, v: `[B, S, K, hd]`, H a multiple of K; bfloat16 or float32.
      segments: `[B, T]`, 0 on padding; key_segments: `[B, S]`, of keys that are another sequence's.
      causal, window: as in `Request`; softcap: c tanh(score / c), 0 none; scale: 0 for hd ** -0.5.
      interpret: on any backend, slowly.
    Returns:
      `[B, T, H, hd]`, zero on padding.
    Raises:
      UserError: what the kernel cannot express.
    """
    t, s, d = q.shape[1], k.shape[1], q.shape[3]
    if why := _lack("splash", Request(q.dtype, d, t, causal, window, softcap, cross=key_segments is not None)):
        raise UserError(f"splash attention: {why}")
    blocks = _block(t, window), _block(s, window)
    padded = [-(-n // block) * block for n, block in zip((t, s), blocks)]

    def run(q: jax.Array, k: jax.Array, v: jax.Array, *ids: jax.Array) -> jax.Array:
        kernel, pair = _kernel(q.shape[2], *padded, *blocks, causal, window, softcap, interpret)
        q, k, v = (
            jnp.pad(x, ((0, 0), (0, n - x.shape[1]), (0, 0), (0, -d % 64))).swapaxes(1, 2)
            for x, n in zip((q, k, v), (padded[0], padded[1], padded[1]))
        )
        ids = tuple(jnp.pad(x, ((0, 0), (0, n - x.shape[1]))) for x, n in zip(ids, padded))
        return jax.vmap(lambda q, k, v, *ids: kernel(q, k, v, pair(*ids)))(q, k, v, *ids).swapaxes(1, 2)

    q = (q.astype(jnp.float32) * (scale or d**-0.5)).astype(q.dtype)
    out = _spread(run, q, k, v, segments, segments if key_segments is None else key_segments)[:, :t, :, :d]
    return jnp.where((segments != 0)[..., None, None], out, 0)


def spread_rows(batch: int) -> tuple[tuple[str, ...], int]:
    """(axes of the context's mesh that a batch's rows are spread over, devices along them): ((), 1) where none is."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in ROWS if axis in mesh.shape)
    devices = math.prod(mesh.shape[axis] for axis in axes)
    return (axes, devices) if batch % devices == 0 else ((), 1)


def _spread(run: Any, q: jax.Array, k: jax.Array, v: jax.Array, *ids: jax.Array) -> jax.Array:
    """run(q, k, v, *ids), by each device of the context's mesh for its rows and heads: no compiler cuts a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:
        return run(q, k, v, *ids)
    rows, _ = spread_rows(q.shape[0])
    x, i = P(rows, None, HEADS if HEADS in mesh.shape and k.shape[2] % mesh.shape[HEADS] == 0 else None), P(rows)
    specs = (x, x, x, *(i for _ in ids))
    return jax.shard_map(run, in_specs=specs, out_specs=x, check_vma=False)(q, k, v, *ids)


def _block(length: int, window: int) -> int:
    """A tile of at most BLOCK (half of it for short windows) that cuts a length into equal ones with little padding."""
    count = -(-length // (BLOCK // 2 if 0 < window <= BLOCK // 2 else BLOCK))
    return -(-length // (count * LANES)) * LANES


@functools.cache
def _kernel(
    heads: int, t: int, s: int, bq: int, bk: int, causal: bool, window: int, softcap: float, interpret: bool
) -> tuple[Any, Any]:
    """The kernel for q `[H, t, hd]`, k and v `[K, s, hd]`, and its type of segments."""
    from jax.experimental.pallas.ops.tpu import splash_attention as lib  # slow to import

    behind = window - 1 if window else None
    mask = lib.LocalMask((t, s), (behind, 0 if causal else behind), 0) if causal or window else lib.FullMask((t, s))
    blocks = lib.BlockSizes(block_q=bq, block_q_dkv=bq, block_q_dq=bq, block_kv=bk, block_kv_dkv=bk, block_kv_dq=bk)
    with jax.ensure_compile_time_eval():
        kernel = lib.make_splash_mha(
            lib.MultiHeadMask([mask] * heads), block_sizes=blocks, head_shards=1, q_seq_shards=1,
            attn_logits_soft_cap=softcap or None, interpret=interpret,
        )  # fmt: skip
    return jax.tree.map(np.asarray, kernel), lib.SegmentIds


def cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, *, segments: jax.Array, key_segments: jax.Array | None = None,
    causal: bool, window: int = 0, scale: float = 0.0, max_segments: int = 0,
) -> jax.Array:  # fmt: skip
    """cuDNN's flash attention. Differentiable.

    It has no soft caps, biases, fp32 or two-sided windows, and heads of at most 128 (from compute capability 9.0 on
    256), padded to multiples of 8. Rows with `max_segments` need 9.0, and `[B * max_segments, H, T]` of fp32 is kept of
    them for the backward pass: let it be tight.

    Args:
      q: `[B, T, H, hd]`; k, v: `[B, S, K, hd]`, H a multiple of K; bfloat16 or float16.
      segments: `[B, T]`, 0 on padding; key_segments: `[B, S]`, of keys that are another sequence's.
      causal, window, max_segments: as in `Request`; scale: 0 for hd ** -0.5.
    Returns:
      `[B, T, H, hd]`, zero on padding; NaN in a row that is not as `max_segments` says, or has a segment in pieces,
      for that cannot be known while tracing.
    Raises:
      UserError: what cuDNN cannot express.
    """
    d, cross = q.shape[3], key_segments is not None
    if why := _lack("cudnn", Request(q.dtype, d, q.shape[1], causal, window, max_segments=max_segments, cross=cross)):
        raise UserError(f"cudnn attention: {why}")
    keys = segments if key_segments is None else key_segments
    # What cuDNN leaves in padding, forward and backward, is undefined: XLA clears it since openxla/xla#44867 only.
    q, k, v = (jnp.where((i != 0)[..., None, None], x, 0) for i, x in ((segments, q), (keys, k), (keys, v)))
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -d % 8))) for x in (q, k, v))
    run = functools.partial(_packed if max_segments else _padded, causal, window, scale or d**-0.5, max_segments)
    return jnp.where((segments != 0)[..., None, None], _spread(run, q, k, v, segments, keys)[..., :d], 0)


def _padded(causal: bool, window: int, scale: float, _most: int, *arrays: jax.Array) -> jax.Array:
    q, k, v, segments, keys = arrays
    (_, lengths, fits), (key_starts, key_lengths, keys_fit) = (_runs(x, 1) for x in (segments, keys))
    fits &= keys_fit & (key_starts[:, 0] <= 0)
    fits &= (segments[:, 0] == keys[:, 0]) | (keys[:, 0] == 0)
    lengths, key_lengths = (jnp.maximum(x[:, 0], 1) for x in (lengths, key_lengths))  # none is no length to cuDNN
    out = jax.nn.dot_product_attention(
        q, k, v, is_causal=causal, local_window_size=(window - 1, 0) if window else None, scale=scale,
        query_seq_lengths=lengths, key_value_seq_lengths=key_lengths, implementation="cudnn",
    )  # fmt: skip
    return jnp.where(fits[:, None, None, None], out, jnp.nan)


def _packed(causal: bool, window: int, scale: float, max_segments: int, *arrays: jax.Array) -> jax.Array:
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention  # not public so far

    q, k, v, segments, _ = arrays
    offsets, lengths, fits = _runs(segments, max_segments)
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], 2) for x in (k, v))  # jax-ml/jax#39521: else offsets are wrong
    out: Any = dot_product_attention(
        q, k, v, q_seqlen=lengths, kv_seqlen=lengths, q_offsets=offsets, kv_offsets=offsets, scale=scale,
        mask_type=MaskType.PADDING_CAUSAL if causal else MaskType.PADDING, sliding_window_length=window or None,
    )  # fmt: skip
    return jnp.where(fits[:, None, None, None], out, jnp.nan)


def _runs(segments: jax.Array, most: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Starts `[B, M + 1]` and lengths `[B, M]` of a row's segments, -1 after them, and whether they are at most `most`,
    each in one piece. M is `most`, but at least 2: JAX takes the offsets of 1 for none."""
    t, edge = segments.shape[1], jnp.pad(segments, ((0, 0), (1, 1)))

    def slots(where: jax.Array) -> jax.Array:
        found = jnp.sort(jnp.where(where & (segments != 0), jnp.arange(t, dtype=jnp.int32), t))
        return jnp.pad(found, ((0, 0), (0, most + 3)), constant_values=t)[:, : max(most, 2) + 1]

    starts, ends = slots(segments != edge[:, :-2]), slots(segments != edge[:, 2:])
    ids = jnp.take_along_axis(segments, starts, 1, mode="clip")
    ids = jnp.sort(jnp.where(starts < t, ids, -1 - jnp.arange(ids.shape[1])))
    fits = (starts[:, most] == t) & (ids[:, 1:] != ids[:, :-1]).all(1)
    there = (starts < t).at[:, -1].set(False)
    return jnp.where(there, starts, -1), jnp.where(there, ends - starts + 1, -1)[:, :-1], fits
