"""Collectives of a compiled program, read from its HLO text: how many, and how many bytes they move.

A loop's body is counted as often as it runs: as the compiler says, or else up to the number that its condition
compares with, which is how loops over layers are written.
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_LOOP = re.compile(r"\bcondition=%?([\w.-]+), body=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LIMIT = re.compile(r" = s32\[\]\S* constant\((\d+)\)")
_SHAPE = re.compile(r"\b(\w+)\[([\d,]*)\]")


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
    computations = _split(hlo)
    runs = _count_runs(computations)
    found: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
    for name, lines in computations.items():
        for line in lines:
            if match := _COLLECTIVE.search(line):
                result, kind, start = match.groups()
                total = found[kind, _group_size(line, devices)]
                total[0] += runs[name]
                total[1] += runs[name] * _result_bytes(result, is_pair=bool(start) and kind != "all-reduce")
    return [Collective(*key, *total) for key, total in sorted(found.items())]


def _split(hlo: str) -> dict[str, list[str]]:
    """Lines of each computation; the entry's name is empty."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations["" if line.startswith("ENTRY") else match[1]] = []
        else:
            lines.append(line)
    return computations


def _count_runs(computations: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs."""
    calls = {
        name: [call for line in lines for call in _calls(line, computations)] for name, lines in computations.items()
    }
    runs: dict[str, int] = defaultdict(int)

    def run(name: str, times: int) -> None:
        runs[name] += times
        for called, trips in calls.get(name, []):
            run(called, times * trips)

    run("", 1)
    return runs


def _calls(line: str, computations: dict[str, list[str]]) -> list[tuple[str, int]]:
    """Computations that an instruction runs, and how often."""
    branches = [name.strip(" %") for names in _BRANCHES.findall(line) for name in names.split(",")]
    called = [(name, 1) for name in [*_CALLED.findall(line), *branches]]
    if loop := _LOOP.search(line):
        condition, body = loop.groups()
        limits = [int(limit) for limit in _LIMIT.findall("\n".join(computations.get(condition, [])))]
        trips = int(match[1]) if (match := _TRIPS.search(line)) else max(limits, default=1)
        called.append((body, trips))
    return called


def _group_size(line: str, devices: int) -> int:
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        lengths = dict(axis.split("=") for axis in match[1].split(","))
        return math.prod(int(lengths[axis]) for axis in match[2].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    return devices


def _result_bytes(result: str, is_pair: bool) -> int:
    """Bytes of a result's type; of one that begins in the background, the second half of (operands, results)."""
    sizes = [
        _BYTES.get(kind, 4) * math.prod(int(length) for length in lengths.split(",") if length)
        for kind, lengths in _SHAPE.findall(re.sub(r"\{[^}]*\}", "", result))
        if kind in _BYTES
    ]
    return max(sizes, default=0) if is_pair else sum(sizes)
