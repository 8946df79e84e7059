"""The text of a compiled program, read: its computations, instructions and shapes, and how often each runs.

A loop's body is counted as often as it runs: as the compiler says, or else up to the number that its condition
compares with, which is how loops over layers are written.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
_BYTES |= {"f64": 8, "s64": 8, "u64": 8, "c64": 8}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_OPERAND = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_LOOP = re.compile(r"\bcondition=%?([\w.-]+), body=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LIMIT = re.compile(r"^(\d+)\)")
_SHAPE = re.compile(r"\b(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_SPACE = re.compile(r"S\([1-9]\d*\)")

ENTRY = ""
"""The name of the computation where a program begins."""


@dataclass(frozen=True)
class Array:
    """An array as it lies in memory."""

    elements: int
    size: int
    """Bytes, without what a tiled layout pads."""
    padded: int
    """Bytes with it."""
    in_main_memory: bool
    """Not in one of a chip's own memories."""


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    result: str
    """Its type, as written."""
    opcode: str
    operands: tuple[str, ...]
    """Names."""
    rest: str
    """All that follows the opcode's bracket."""
    is_root: bool

    @property
    def called(self) -> list[str]:
        """Computations that it names, but for those of a loop."""
        branches = [name.strip(" %") for names in _BRANCHES.findall(self.rest) for name in names.split(",")]
        return [*_CALLED.findall(self.rest), *branches]


Program = dict[str, list[Instruction]]
"""Instructions of each computation; the entry's name is `ENTRY`."""


def parse(hlo: str) -> Program:
    """The computations of an optimised program."""
    computations: Program = {}
    body: list[Instruction] = []
    for line in hlo.splitlines():
        if match := _COMPUTATION.match(line):
            body = computations[ENTRY if line.startswith("ENTRY") else match[1]] = []
        elif match := _INSTRUCTION.match(line):
            root, name, result, opcode, rest = match.groups()
            operands = tuple(_OPERAND.findall(rest.partition(")")[0]))
            body.append(Instruction(name, result, opcode, operands, rest, bool(root)))
    return computations


def count_runs(program: Program) -> dict[str, int]:
    """How often each computation runs."""
    calls = {name: [call for each in body for call in _calls(each, program)] for name, body in program.items()}
    runs: dict[str, int] = defaultdict(int)

    def run(name: str, times: int) -> None:
        runs[name] += times
        for called, trips in calls.get(name, []):
            run(called, times * trips)

    run(ENTRY, 1)
    return runs


def _calls(instruction: Instruction, program: Program) -> list[tuple[str, int]]:
    """Computations that an instruction runs, and how often."""
    called = [(name, 1) for name in instruction.called]
    if loop := _LOOP.search(instruction.rest):
        condition, body = loop.groups()
        limits = [
            int(match[1])
            for other in program.get(condition, [])
            if other.opcode == "constant" and other.result.startswith("s32[]") and (match := _LIMIT.match(other.rest))
        ]
        known = _TRIPS.search(instruction.rest)
        called.append((body, int(known[1]) if known else max(limits, default=1)))
    return called


def arrays(result: str) -> Iterator[Array]:
    """The arrays of a type, those of a tuple one after the other."""
    for kind, lengths, layout in _SHAPE.findall(result):
        if kind in _BYTES:
            shape = [int(length) for length in lengths.split(",") if length]
            each = _BYTES[kind]
            count, whole = math.prod(shape), math.prod(_padded(shape, layout))
            yield Array(count, each * count, each * whole, _SPACE.search(layout) is None)


def _padded(shape: list[int], layout: str) -> list[int]:
    """The lengths from major to minor, padded to whole tiles; a second tile only orders what lies within the first."""
    order = [int(axis) for axis in layout.partition(":")[0].split(",") if axis]
    lengths = [shape[axis] for axis in reversed(order)] if len(order) == len(shape) else list(shape)
    if not (match := _TILE.search(layout)):
        return lengths
    tile = [int(length) for length in match[1].split(",")]
    lengths = [1] * (len(tile) - len(lengths)) + lengths
    first = len(lengths) - len(tile)
    return lengths[:first] + [-(-length // each) * each for length, each in zip(lengths[first:], tile, strict=True)]
