"""Accelerators: what their makers state of them. Rates are peaks, which no program reaches."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One chip (a JAX device, of those below)."""

    name: str
    kind: str
    """How JAX's `device_kind` begins."""
    flops: float
    """Floating-point operations per second, dense bfloat16 with float32 sums."""
    memory: float
    """Bytes of its own memory."""
    memory_bandwidth: float
    """Bytes per second between it and the chip."""
    link_bandwidth: float
    """Bytes per second that the chip sends to its neighbours, all links together."""


CHIPS = (
    # Cloud TPU's pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e": peak compute, HBM, HBM bandwidth, and the
    # interconnect per chip, there in Gbit/s of both directions together, here in bytes of one.
    Chip("v4", "TPU v4", 275e12, 32e9, 1228e9, 2400e9 / 16),
    Chip("v5e", "TPU v5 lite", 197e12, 16e9, 819e9, 1600e9 / 16),
    Chip("v5p", "TPU v5", 459e12, 95e9, 2765e9, 4800e9 / 16),
    Chip("v6e", "TPU v6 lite", 918e12, 32e9, 1640e9, 3200e9 / 16),
    # NVIDIA's data sheets, SXM; NVLink of both directions together, here of one.
    Chip("A100", "NVIDIA A100", 312e12, 80e9, 2039e9, 600e9 / 2),
    Chip("H100", "NVIDIA H100", 989e12, 80e9, 3350e9, 900e9 / 2),
    Chip("H200", "NVIDIA H200", 989e12, 141e9, 4800e9, 900e9 / 2),
)


def find_chip(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`; None if it is not in the table, as CPUs are not."""
    found = [chip for chip in CHIPS if device_kind.startswith(chip.kind)]
    return max(found, key=lambda chip: len(chip.kind), default=None)
