"""What one run of a compiled program moves: between devices, and between a device and its memory."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from melodjinn_jax.training.hlo import Array, Instruction, Program, arrays, count_runs, parse

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

CONTROL = ("while", "conditional", "call")
# What moves nothing, or ends what has been counted where it began.
FREE = (
    *CONTROL,
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier", "after-all", "partition-id"),
    *("copy-done", "slice-done", "async-update", "async-done", "custom-call-update", "custom-call-done"),
    *(f"{kind}-done" for kind in KINDS),
)
SLICES = ("slice", "dynamic-slice", "gather")


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind and group size in one run of a program."""

    kind: str
    devices: int
    """Of one group that exchanges."""
    count: int
    size: int
    """Bytes of their results on one device, all together."""

    @property
    def sent(self) -> float:
        """Bytes that a device sends, by rings (Chan et al. 2007)."""
        others = (self.devices - 1) / self.devices
        factor = {"all-reduce": 2 * others, "all-gather": others, "reduce-scatter": self.devices - 1}
        return self.size * factor.get(self.kind, others if self.kind == "all-to-all" else 1.0)


def find_collectives(hlo: str, devices: int) -> list[Collective]:
    """Collectives of an optimised program over `devices` devices, by kind and group size."""
    program = parse(hlo)
    runs = count_runs(program)
    found: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
    for name, body in program.items():
        for instruction in body:
            kind = instruction.opcode.removesuffix("-start")
            if kind in KINDS:
                sizes = [array.size for array in arrays(instruction.result)]
                total = found[kind, _group_size(instruction, devices)]
                total[0] += runs[name]
                total[1] += runs[name] * (max(sizes, default=0) if _gives_operands(instruction.opcode) else sum(sizes))
    return [Collective(*key, *total) for key, total in sorted(found.items())]


def _group_size(instruction: Instruction, devices: int) -> int:
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", instruction.rest):
        lengths = dict(axis.split("=") for axis in match[1].split(","))
        return math.prod(int(lengths[axis]) for axis in match[2].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", instruction.rest):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", instruction.rest):
        return match[1].count(",") + 1
    return devices


def memory_traffic(hlo: str) -> int:
    """Bytes that one run of a program reads from and writes to a device's main memory.

    Each instruction that is not fused reads its operands and writes its results, those in a chip's own memories apart,
    with the padding of their layouts. Of what it only slices it reads the slice, and of what it updates in place it
    writes the update. XLA's own `bytes accessed` counts a loop's body once, on a TPU a chip's own memories as well, and
    a copy of a slice as one of the whole.
    """
    program = parse(hlo)
    runs = count_runs(program)
    fused = {
        called for body in program.values() for each in body if each.opcode not in CONTROL for called in each.called
    }
    return sum(
        runs[name] * _moved(instruction, {other.name: other for other in body}, program)
        for name, body in program.items()
        if name not in fused
        for instruction in body
        if instruction.opcode not in FREE
    )


def _moved(instruction: Instruction, body: dict[str, Instruction], program: Program) -> int:
    """Bytes that an instruction reads and writes; `body` holds the instructions beside it."""
    results = list(arrays(instruction.result))
    if instruction.opcode in ("copy-start", "slice-start"):
        # Tuples of (destination, source, context) and (sources, destination, context).
        destination, source = results[:2] if instruction.opcode == "copy-start" else (results[1], results[0])
        return destination.padded * (destination.in_main_memory + source.in_main_memory)
    operands = [list(arrays(body[name].result)) for name in instruction.operands if name in body]
    inner = program[instruction.called[0]] if instruction.opcode == "fusion" else _as_fusion(instruction, body)
    read = sum(_read(inner, number, operand) for number, operand in enumerate(operands))
    written = sum(_written(inner, number, array) for number, array in enumerate(results))
    if _gives_operands(instruction.opcode):
        written -= sum(_in_main_memory(operand) for operand in operands)
    return read + written


def _gives_operands(opcode: str) -> bool:
    """Whether an instruction that goes on in the background gives its operands beside its results."""
    return opcode.endswith("-start") and opcode != "all-reduce-start"


def _as_fusion(instruction: Instruction, body: dict[str, Instruction]) -> list[Instruction]:
    """An instruction by itself as the computation of a fusion."""
    names = [name for name in instruction.operands if name in body]
    given = [
        Instruction(name, body[name].result, "parameter", (), f"{number})", False) for number, name in enumerate(names)
    ]
    return [*given, Instruction("", instruction.result, instruction.opcode, tuple(names), instruction.rest, True)]


def _read(inner: list[Instruction], number: int, operand: list[Array]) -> int:
    """Bytes read of operand `number` by a fusion of the instructions `inner`."""
    whole = _in_main_memory(operand)
    parameter = [each.name for each in inner if each.opcode == "parameter" and each.rest.startswith(f"{number})")]
    if not whole or not parameter:
        return whole
    read = 0
    for user, place in _users(inner, parameter[0]):
        if user.opcode in SLICES and place == 0:
            read += sum(array.padded for array in arrays(user.result))
        elif user.opcode != "dynamic-update-slice" or place != 0:
            return whole
    return min(read, whole)


def _users(inner: list[Instruction], name: str) -> Iterator[tuple[Instruction, int]]:
    """Instructions that use a value, perhaps by another shape, and as which of their operands."""
    for each in inner:
        if name in each.operands:
            if each.opcode == "bitcast":
                yield from _users(inner, each.name)
            else:
                yield each, each.operands.index(name)


def _written(inner: list[Instruction], number: int, result: Array) -> int:
    """Bytes written of result `number`, an array, by a fusion of the instructions `inner`."""
    if not result.in_main_memory:
        return 0
    by_name = {each.name: each for each in inner}
    origin = next((each for each in inner if each.is_root), None)
    if origin is not None and origin.opcode == "tuple":
        origin = by_name.get(origin.operands[number]) if number < len(origin.operands) else None
    while origin is not None and origin.opcode == "bitcast":
        origin = by_name.get(origin.operands[0])
    if origin is not None and origin.opcode == "dynamic-update-slice":
        return sum(array.padded for array in arrays(by_name[origin.operands[1]].result))
    return result.padded


def _in_main_memory(values: list[Array]) -> int:
    return sum(array.padded for array in values if array.in_main_memory)
