r"""What a compiled step does on one device: matrix products, memory traffic, collectives.

Read from the text of the compiled program, because XLA's `cost_analysis` counts the body of a loop
once: here a body counts as often as its loop turns. A loop whose turns the compiler doesn't know
counts once. Bytes that a device sends in a group of g devices, for a ring:

    all-reduce 2 b (g - 1) / g, all-gather and all-to-all b (g - 1) / g of their result,
    reduce-scatter b (g - 1) of its result, collective-permute b
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([a-z][a-z0-9-]*)\((.*)$")
COMPUTATION = re.compile(r"^(?:ENTRY )?%(\S+) \(.*\{$")
SHAPE = re.compile(r"([a-z]+[0-9]*)\[([0-9,]*)\]")
BITS = {"pred": 8, "bf16": 16, "f16": 16} | {f"{k}{n}": n for k in "suf" for n in (8, 16, 32, 64)}
SENT = {
    "all-reduce": lambda size, group: 2 * size * (group - 1) / group,
    "all-gather": lambda size, group: size * (group - 1) / group,
    "all-to-all": lambda size, group: size * (group - 1) / group,
    "reduce-scatter": lambda size, group: size * (group - 1),
    "collective-permute": lambda size, group: size,
}
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"}
"""They move nothing."""
SLICED = {"dynamic-slice", "gather"}
"""They read as much as they give, not all of what they read from."""


class Instruction(NamedTuple):
    """One line of a computation."""

    shape: str
    kind: str
    operands: tuple[str, ...]
    rest: str
    """What stands behind the opening parenthesis."""


class Work(NamedTuple):
    """What one device does in a step."""

    flops: float
    """Of matrix products: two a multiplication and addition."""
    traffic: float
    """Bytes that instructions read and write, fused ones together."""
    sent: float
    """Bytes that collectives send."""
    collectives: float
    """How many are run."""
    group: int
    """Devices of the largest group that communicates; 1 where none does."""

    def __add__(self, other: tuple) -> Work:
        flops, traffic, sent, count = (a + b for a, b in zip(self[:4], other[:4], strict=True))
        return Work(flops, traffic, sent, count, max(self.group, other[4]))

    def times(self, count: float) -> Work:
        """The same, that often."""
        flops, traffic, sent, collectives = (count * value for value in self[:4])
        return Work(flops, traffic, sent, collectives, self.group)


NOTHING = Work(0.0, 0.0, 0.0, 0.0, 1)
Computation = dict[str, Instruction]


def work_of(text: str) -> Work:
    """Counts the work of the program's entry.

    Args:
        text: of a compiled program, `compiled.as_text()`.

    Returns:
        The work of one device; every device runs the same program.
    """
    computations, entry = _parse(text)
    devices = int((re.search(r"num_partitions=(\d+)", text) or [0, "1"])[1])
    found: dict[str, Work] = {}

    def count(name: str) -> Work:
        if name not in found:
            total = NOTHING
            for instruction in computations[name].values():
                total += _own(instruction, computations[name], computations, devices)
                for called, turns in _called(instruction):
                    total += count(called).times(turns)
            found[name] = total
        return found[name]

    return count(entry)


def _parse(text: str) -> tuple[dict[str, Computation], str]:
    computations: dict[str, Computation] = {}
    entry, own = "", {}
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            own = computations[match[1]] = {}
            entry = match[1] if line.startswith("ENTRY") else entry
        elif match := INSTRUCTION.match(line):
            name, shape, kind, rest = match.groups()
            operands = tuple(re.findall(r"%([\w.\-]+)", rest.partition(")")[0]))
            own[name] = Instruction(shape, kind, operands, rest)
    return computations, entry


def _called(one: Instruction) -> list[tuple[str, int]]:
    """Computations that are run on their own, and how often."""
    if one.kind == "while":
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', one.rest)
        names = re.findall(r"(?:body|condition)=%([\w.\-]+)", one.rest)
        return [(name, int(known[1]) if known else 1) for name in names]
    if one.kind == "conditional":  # the longest would be right; the branches of ours are alike
        names = re.findall(r"(?:true|false)_computation=%([\w.\-]+)", one.rest)
        listed = re.search(r"branch_computations=\{(.*?)\}", one.rest)
        names += re.findall(r"%([\w.\-]+)", listed[1]) if listed else []
        return [(name, 1) for name in names]
    if one.kind == "call":
        return [(name, 1) for name in re.findall(r"to_apply=%([\w.\-]+)", one.rest)]
    return []


def _own(one: Instruction, around: Computation, every: dict[str, Computation], devices: int) -> Any:
    kind = one.kind.removesuffix("-start")
    if kind in SENT:
        group = _group(one.rest, devices)
        sent = SENT[kind](_bytes(one.shape), group) if group > 1 else 0.0
        return Work(0.0, 2 * _bytes(one.shape), sent, 1.0, group)
    if one.kind in FREE or one.kind in ("while", "conditional", "call") or "-done" in one.kind:
        return NOTHING
    if one.kind != "fusion":
        return Work(_flops(one, around), _traffic(one, around, {}), 0.0, 0.0, 1)
    match = re.search(r"calls=%([\w.\-]+)", one.rest)
    inside = every[match[1]] if match else {}
    flops = sum(_flops(part, inside) for part in inside.values())
    return Work(flops, _traffic(one, around, inside), 0.0, 0.0, 1)


def _flops(one: Instruction, around: Computation) -> float:
    if one.kind == "convolution":
        kernel, labels = around[one.operands[1]], re.search(r"dim_labels=\w+_(\w+)->", one.rest)
        outputs = _dims(kernel.shape)[labels[1].index("o")] if labels else 1
        return 2.0 * math.prod(_dims(one.shape)) * math.prod(_dims(kernel.shape)) / outputs
    if one.kind != "dot":
        return 0.0
    left = _dims(around[one.operands[0]].shape)
    match = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", one.rest)
    summed = [int(axis) for axis in match[1].split(",") if axis] if match else []
    return 2.0 * math.prod(_dims(one.shape)) * math.prod(left[axis] for axis in summed)


def _traffic(one: Instruction, around: Computation, inside: Computation) -> float:
    """Bytes read and written: of what is sliced or written in place, the part alone."""
    parameters = {
        int(part.rest.partition(")")[0]): name
        for name, part in inside.items()
        if part.kind == "parameter"
    }
    written, read = _bytes(one.shape), 0.0
    for place, operand in enumerate(one.operands):
        whole = _bytes(around[operand].shape) if operand in around else 0
        if inside:
            uses = [use for use in inside.values() if parameters.get(place) in use.operands]
        else:
            sliced = place == 0 and (one.kind in SLICED or one.kind.endswith("-slice"))
            uses = [one] if sliced else []
        parts = [_part(use, parameters.get(place, operand), inside or around) for use in uses]
        if uses and all(part is not None for part in parts):
            read += sum(part for part in parts if part is not None)
            if any(use.kind == "dynamic-update-slice" for use in uses) and whole <= written:
                written += parts[0] - whole  # type: ignore[operator]
        else:
            read += whole
    return read + written


def _part(use: Instruction, name: str, scope: Computation) -> float | None:
    """Bytes of `name` that an instruction touches; None: all of them."""
    if use.operands[0] != name:
        return None
    if use.kind in SLICED:
        return _bytes(use.shape)
    if use.kind == "dynamic-update-slice":
        return _bytes(scope[use.operands[1]].shape)
    return None


def _group(rest: str, devices: int) -> int:
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([0-9,]+)\}", rest):
        return len(match[1].split(","))
    return devices


def _dims(shape: str) -> list[int]:
    match = SHAPE.search(shape)
    return [int(size) for size in match[2].split(",") if size] if match else []


def _bytes(shape: str) -> float:
    """Of all arrays of a shape, which may be a tuple."""
    found = SHAPE.findall(shape)
    sizes = [math.prod(int(n) for n in dims.split(",") if n) for _, dims in found]
    return sum(n * BITS.get(kind, 32) / 8 for (kind, _), n in zip(found, sizes, strict=True))
