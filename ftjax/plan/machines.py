"""Machines that programs are compiled for without having them: TPU slices by libtpu, H200s by JAX's CUDA plugin."""

import importlib.metadata
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ftjax.errors import UserError
from ftjax.train.flops import PEAK

GIB = 2**30
CUDA = ("jax-cuda13-pjrt", "jax-cuda13-plugin", "nvidia-cudnn-cu13")
FRACTION = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # its name, and its older one


class Chip(NamedTuple):
    """What one device (as JAX counts them) has, by the vendors' data sheets.

    memory: bytes that JAX may use: of TPUs what their compiler says, of an H200 what its driver leaves.
    flops: dense bf16 FLOP/s. bandwidth: bytes/s of the memory. link: bytes/s out of the device over all its links.
    fp32: the share of `flops` that products of fp32 reach by default (TPUs round to bf16, GPUs to TF32).
    """

    memory: float
    flops: float
    bandwidth: float
    link: float
    fp32: float = 1.0


CHIPS = {
    "v4": Chip(30.75 * GIB, PEAK["TPU v4"], 1228e9, 300e9),
    "v5e": Chip(15.75 * GIB, PEAK["TPU v5e"], 819e9, 200e9),
    "v5p": Chip(95.74 * GIB, PEAK["TPU v5p"], 2765e9, 600e9),
    "v6e": Chip(31.25 * GIB, PEAK["TPU v6e"], 1640e9, 400e9),
    "tpu7x": Chip(94.75 * GIB, PEAK["TPU7x"], 7380e9 / 2, 300e9),  # a chip is two devices
    "h200": Chip(139.8 * GIB, PEAK["H200"], 4800e9, 450e9, fp32=0.5),
}
H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128 threads_per_warp: 32
  threads_per_block_limit: 1024 threads_per_core_limit: 2048 clock_rate_ghz: 1.98
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 device_memory_size: 150754820096
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H200"
"""


class Machine(NamedTuple):
    """Devices of one kind.

    backend: as `jax.default_backend()` gives it there. compilers: the packages whose versions matter.
    share: of the chip's memory, what JAX takes.
    """

    name: str
    chip: Chip
    devices: Sequence[Any]
    backend: str
    compilers: tuple[str, ...]
    share: float = 1.0

    @property
    def memory(self) -> float:
        """Bytes that a program may use of a device."""
        return self.chip.memory * self.share


def get_machine(name: str) -> Machine:
    """The machine of `v5e:4x4`, `v5p:2x2x4`, `v6e:1`, `tpu7x:2x2x2` (chips), `h200:8` (GPUs of one host).

    Raises:
      UserError: another name, a slice that does not exist, or a compiler that is not installed.
    """
    found = re.fullmatch(rf"({'|'.join(CHIPS)}):(\d+(?:x\d+)*)", name)
    if not found:
        raise UserError(f"--topology={name}: write KIND:SIZE, as v5e:4x4 or h200:8, with a kind of {', '.join(CHIPS)}")
    kind, size = found.groups()
    return _gpus(name, kind, size) if kind == "h200" else _tpus(name, kind, size)


def installed(package: str) -> str:
    """A package's version; '' where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _tpus(name: str, kind: str, size: str) -> Machine:
    if not installed("libtpu"):
        raise UserError(f"--topology={name}: libtpu compiles for TPUs and is not installed: pip install 'ftjax[tpu]'")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to ask about
    alone = math.prod(map(int, size.split("x"))) == 1
    layout = f"{kind}:{'x'.join('1' * (2 if kind in ('v5e', 'v6e') else 3))}" if alone else name
    options: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if alone else {}
    options |= {"chip_config_name": "megacore"} if kind == "v4" else {}  # its two cores are one device
    return Machine(name, CHIPS[kind], _topology(name, "tpu", layout, **options), "tpu", ("libtpu",))


def _gpus(name: str, kind: str, size: str) -> Machine:
    if not size.isdigit():
        raise UserError(f"--topology={name}: write the number of GPUs of a host, as {kind}:8")
    if not installed("jax-cuda13-pjrt"):
        raise UserError(f"--topology={name}: JAX's CUDA plugin compiles for it: pip install 'ftjax[cuda]'")
    flag = "--xla_gpu_autotune_level=0"  # there is no GPU to time kernels on
    if flag not in (flags := os.environ.get("XLA_FLAGS", "")):
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()
    devices = _topology(name, "cuda", "", topology=f"1x1x{int(size)}", target_config=H200)
    return Machine(name, CHIPS[kind], devices, "gpu", CUDA, _gpu_share())


def _gpu_share() -> float:
    """Of a GPU's memory, what JAX takes: as in a run, by the environment."""
    told = {name: text for name in FRACTION if (text := os.environ.get(name))}
    for name, text in told.items():
        if not re.fullmatch(r"0*1(\.0*)?|0*\.\d*[1-9]\d*", text):
            raise UserError(f"{name}={text}: give a share of the GPU's memory, above 0 and at most 1, as 0.9")
    return float(next(iter(told.values()), 0.75))


def _topology(name: str, platform: str, layout: str, **options: Any) -> Sequence[Any]:
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform=platform, topology_name=layout, **options).devices
    except Exception as error:  # whatever a compiler raises
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"--topology={name}: the compiler knows no such machine ({told[0][:200]})") from None
