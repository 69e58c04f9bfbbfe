"""What a compiled program sends between devices, read off its HLO text: a loop's body as often as it runs."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
BITS = {"pred": 8, "token": 0}  # of other types the digits of their name say
_NAME = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_OPERATION = re.compile(r"^(?:ROOT )?%?[\w.\-]+ = (.+?) ([a-z][a-z\-]*)\(")
_CALLED = re.compile(r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_LIMIT = re.compile(r"= [su](?:32|64)\[\]\S* constant\(([1-9]\d*)\)")
_CHANNEL = re.compile(r"channel_id=\d+")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Moved(NamedTuple):
    """Collectives of one kind in a run of the program: how many, the bytes that they give each device, and the bytes
    that each device must send for them (a ring's, which no algorithm is below)."""

    count: int = 0
    bytes: float = 0
    sent: float = 0


def collectives(text: str, devices: int) -> dict[str, Moved]:
    """{kind: what a device moves} of a compiled module for so many devices.

    A loop runs as often as XLA notes, or else up to the constant that its condition compares with (as a scan counts);
    where neither is there, once. Of a conditional's branches the dearest counts. What TPUs spread over several fusions
    (start, steps, end) has one channel and counts where it starts: its steps may be in a loop beside it.
    """
    computations, entry = _computations(text)
    return _total(entry, _without_steps(computations), devices)


def _without_steps(computations: dict[str, list[str]]) -> dict[str, list[str]]:
    """The computations without the lines of channels that start in another one."""
    starts = {
        channel[0]: name
        for name, lines in computations.items()
        if any("AsyncCollectiveStart" in line for line in lines)
        for line in lines
        if (channel := _CHANNEL.search(line))
    }

    def stays(name: str, line: str) -> bool:
        channel = _CHANNEL.search(line)
        return channel is None or starts.get(channel[0], name) == name

    return {name: [line for line in lines if stays(name, line)] for name, lines in computations.items()}


def _total(name: str, computations: dict[str, list[str]], devices: int) -> dict[str, Moved]:
    """What a run of a computation moves with those that it calls, fusions as parts of it."""
    once = {}
    for line in _with_fusions(name, computations):
        if moved := _moved(line, devices):
            channel = _CHANNEL.search(line)
            once[channel[0] if channel else line] = moved
    found: dict[str, Moved] = {}
    for kind, size, sent in once.values():
        _add(found, {kind: Moved(1, size, sent)}, 1)
    for line in computations[name]:
        if " fusion(" in line:
            continue
        called = [_total(one, computations, devices) for one in _called(line, computations)]
        if " conditional(" in line:
            called = [max(called, key=lambda one: sum(x.sent for x in one.values()))] if called else []
        for one in called:
            _add(found, one, _trips(line, computations))
    return found


def _add(found: dict[str, Moved], more: dict[str, Moved], times: int) -> None:
    for kind, x in more.items():
        old = found.get(kind, Moved())
        found[kind] = Moved(old.count + times * x.count, old.bytes + times * x.bytes, old.sent + times * x.sent)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """({name: lines}, the entry's name)."""
    computations: dict[str, list[str]] = {}
    name, entry = "", ""
    for line in text.splitlines():
        if header := _NAME.match(line):
            name = header[1]
            computations[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name and line.startswith("  "):
            computations[name].append(line.strip())
    return computations, entry


def _called(line: str, computations: dict[str, list[str]]) -> list[str]:
    names = list(_CALLED.findall(line))
    for group in _BRANCHES.findall(line):
        names += [one.strip().lstrip("%") for one in group.split(",")]
    return [name for name in names if name in computations]


def _with_fusions(name: str, computations: dict[str, list[str]]) -> Iterator[str]:
    for line in computations[name]:
        yield line
        if " fusion(" in line:
            for one in _called(line, computations):
                yield from _with_fusions(one, computations)


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """How often a line runs what it calls."""
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = re.search(r" while\(.*condition=%?([\w.\-]+)", line)
    if condition is None:
        return 1
    limits = {int(n) for one in _with_fusions(condition[1], computations) for n in _LIMIT.findall(one)}
    return limits.pop() if len(limits) == 1 else 1


def _moved(line: str, devices: int) -> tuple[str, float, float] | None:
    """(kind, bytes given, bytes sent) of a line that is a collective (of one in two halves, its start)."""
    operation = _OPERATION.match(line)
    kind = operation[2].removesuffix("-start") if operation else ""
    if operation is None or kind not in KINDS:
        return None
    shape = operation[1]
    if operation[2].endswith("-start") and kind != "all-reduce":  # it gives operands, results and contexts
        shape = _elements(shape)[1]
    size = sum(_bytes(*one) for one in _SHAPE.findall(shape))
    n = _group(line, devices)
    share = (n - 1) / n
    sent = {"all-reduce": 2 * share, "reduce-scatter": n - 1.0, "collective-permute": 1.0}.get(kind, share)
    return kind, size, size * sent


def _elements(shape: str) -> list[str]:
    """The elements of a tuple's shape, tuples among them whole."""
    found, depth = [""], 0
    for letter in shape[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return found


def _bytes(dtype: str, dims: str) -> float:
    bits = BITS.get(dtype) if dtype in BITS else int((re.search(r"\d+", dtype) or ["0"])[0])
    return math.prod(int(d) for d in dims.split(",") if d) * (bits or 0) / 8


def _group(line: str, devices: int) -> int:
    """How many devices take part together: groups are a list, a tiling, or axes of a mesh."""
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", axes[2]))
    if tiled := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line):
        return int(tiled[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(listed[1].split(","))
    return devices
