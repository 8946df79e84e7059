"""What one run of a compiled program moves: between devices, and between a device and its memory."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from melodjinn_jax.training.hlo import Array, Instruction, Program, arrays, count_runs, parse

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

CONTROL = ("while", "conditional", "call")
FREE = (
    *CONTROL,
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier", "after-all", "partition-id"),
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
    runs, fused = count_runs(program), _fused(program)
    found: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
    seen: set[str] = set()
    for name, body in program.items():
        for instruction in body:
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS or (name in fused and _is_repeated(instruction, seen)):
                continue
            results = instruction.result
            if name.startswith("all-reduce-scatter"):  # an all-reduce of which each device keeps its part
                kind, results = "reduce-scatter", next(each.result for each in body if each.is_root)
            size = sum(array.size for array in arrays(results))
            if _gives_operands(instruction.opcode):
                given = [each.result for each in body if each.name in instruction.operands]
                size -= sum(array.size for result in given for array in arrays(result))
            total = found[kind, _group_size(instruction, devices)]
            total[0] += runs[name]
            total[1] += runs[name] * size
    return [Collective(*key, *total) for key, total in sorted(found.items())]


def _fused(program: Program) -> set[str]:
    """Computations that are parts of instructions."""
    return {
        called for body in program.values() for each in body if each.opcode not in CONTROL for called in each.called
    }


def _is_repeated(instruction: Instruction, seen: set[str]) -> bool:
    """Whether it is the rest of a fused collective that goes on beside other work, and so stands in several fusions."""
    channel = re.search(r"channel_id=\d+", instruction.rest)
    if channel is None:
        return False
    is_repeated = channel[0] in seen
    seen.add(channel[0])
    return is_repeated


def _gives_operands(opcode: str) -> bool:
    """Whether an instruction that goes on in the background gives its operands beside its results."""
    return opcode.endswith("-start") and opcode != "all-reduce-start"


def _group_size(instruction: Instruction, devices: int) -> int:
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^ ]*\))? \{([^}]*)\}", instruction.rest):
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
    writes the update. Of a conditional all branches count. XLA's own `bytes accessed` counts a loop's body once, on a
    TPU a chip's own memories as well, and a copy of a slice as one of the whole.
    """
    program = parse(hlo)
    runs, fused = count_runs(program), _fused(program)
    total = 0
    for name, body in program.items():
        beside = {each.name: each for each in body}
        for instruction in body:
            if name not in fused and not _is_free(instruction):
                total += runs[name] * _moved(instruction, beside, program)
    return total


def _is_free(instruction: Instruction) -> bool:
    """Whether it moves nothing, or ends what has been counted where it began."""
    return (
        instruction.opcode in FREE
        or instruction.opcode.endswith(("-done", "-update"))
        or 'custom_call_target="AllocateBuffer"' in instruction.rest
    )


def _moved(instruction: Instruction, beside: dict[str, Instruction], program: Program) -> int:
    """Bytes that an instruction reads and writes; `beside` holds those of its computation."""
    results = list(arrays(instruction.result))
    if instruction.opcode in ("copy-start", "slice-start"):
        # Tuples of (destination, source, context) and (sources, destination, context).
        destination, source = results[:2] if instruction.opcode == "copy-start" else (results[1], results[0])
        return destination.padded * (destination.in_main_memory + source.in_main_memory)
    operands = [list(arrays(beside[name].result)) for name in instruction.operands if name in beside]
    inner = program[instruction.called[0]] if instruction.opcode == "fusion" else _as_fusion(instruction, beside)
    passed = _aliases(instruction)
    read = sum(
        _read(inner, number, operand, program)
        for number, operand in enumerate(operands)
        if number not in passed.values()
    )
    written = sum(
        _written(inner, number, array, program)
        for number, array in enumerate(results)
        if array.in_main_memory and (number not in passed or _origin(inner, number).opcode == "dynamic-update-slice")
    )
    if _gives_operands(instruction.opcode):
        written -= sum(_in_main_memory(operand) for operand in operands)
    return read + written


def _aliases(instruction: Instruction) -> dict[int, int]:
    """Numbers of results that are operands, and of which."""
    pairs = re.search(r"output_to_operand_aliasing=\{((?:\{\d*\}: \(\d+, \{\}\)(?:, )?)*)\}", instruction.rest)
    found = re.findall(r"\{(\d*)\}: \((\d+), ", pairs[1]) if pairs else []
    return {int(result or 0): int(operand) for result, operand in found}


def _as_fusion(instruction: Instruction, beside: dict[str, Instruction]) -> list[Instruction]:
    """An instruction by itself as the computation of a fusion."""
    names = [name for name in instruction.operands if name in beside]
    given = [
        Instruction(name, beside[name].result, "parameter", (), f"{number})", False)
        for number, name in enumerate(names)
    ]
    return [*given, Instruction("", instruction.result, instruction.opcode, tuple(names), instruction.rest, True)]


def _read(inner: list[Instruction], number: int, operand: list[Array], program: Program) -> int:
    """Bytes read of operand `number` by a fusion of the instructions `inner`."""
    whole = _in_main_memory(operand)
    name = _parameter(inner, number)
    if not whole or name is None:
        return whole
    read = 0
    for user, place in _users(inner, name, program):
        if user.opcode in SLICES and place == 0:
            # A slice may have been given another type, but what is read of it has the operand's.
            parts = math.prod(array.elements for array in arrays(user.result))
            read += parts * operand[0].size // operand[0].elements
        elif user.opcode != "dynamic-update-slice" or place != 0:
            return whole
    return min(read, whole)


def _parameter(inner: list[Instruction], number: int) -> str | None:
    """The name of parameter `number`."""
    return next(
        (each.name for each in inner if each.opcode == "parameter" and each.rest.startswith(f"{number})")), None
    )


def _users(inner: list[Instruction], name: str, program: Program) -> Iterator[tuple[Instruction, int]]:
    """Instructions that use a value, perhaps by another shape or within a fusion, and as which of their operands."""
    for each in inner:
        for place in (place for place, operand in enumerate(each.operands) if operand == name):
            if each.opcode == "bitcast":
                yield from _users(inner, each.name, program)
            elif each.opcode == "fusion":
                nested = program[each.called[0]]
                own = _parameter(nested, place)
                if own is not None:
                    yield from _users(nested, own, program)
                    if _origin(nested, 0).name == own:
                        yield from _users(inner, each.name, program)
            else:
                yield each, place


def _origin(inner: list[Instruction], number: int) -> Instruction:
    """The instruction that makes result `number` of a fusion of the instructions `inner`."""
    by_name = {each.name: each for each in inner}
    origin = next(each for each in inner if each.is_root)
    if origin.opcode == "tuple":
        origin = by_name[origin.operands[number]]
    while origin.opcode == "bitcast":
        origin = by_name[origin.operands[0]]
    return origin


def _written(inner: list[Instruction], number: int, result: Array, program: Program) -> int:
    """Bytes written of result `number`, an array in main memory, by a fusion of the instructions `inner`."""
    origin = _origin(inner, number)
    if origin.opcode == "fusion":
        return _written(program[origin.called[0]], 0, result, program)
    by_name = {each.name: each for each in inner}
    if origin.opcode == "dynamic-update-slice" and by_name[origin.operands[0]].opcode in ("parameter", "bitcast"):
        return sum(array.padded for array in arrays(by_name[origin.operands[1]].result))
    return result.padded


def _in_main_memory(values: list[Array]) -> int:
    return sum(array.padded for array in values if array.in_main_memory)
