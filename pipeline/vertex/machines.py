"""Machines with accelerators on Vertex.

A pipeline names CPU, memory and accelerator, and Vertex takes the smallest machine that has them; a
custom job names the machine. The numbers come from Compute Engine's documentation.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine type.

    Attributes:
        name: Name of the type, such as `a2-highgpu-1g`.
        cpu: Number of vCPUs.
        memory_gb: Memory in GB.
    """

    name: str
    cpu: int
    memory_gb: int


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A kind of accelerator.

    Attributes:
        memory_gb: Memory of one, in GB.
        compute_capability: NVIDIA's number for what it can compute.
    """

    memory_gb: int
    compute_capability: tuple[int, int]


NO_ACCELERATOR = "none"

ACCELERATORS: dict[str, Accelerator] = {
    "NVIDIA_TESLA_A100": Accelerator(40, (8, 0)),
    "NVIDIA_A100_80GB": Accelerator(80, (8, 0)),
    "NVIDIA_H100_80GB": Accelerator(80, (9, 0)),
    "NVIDIA_H100_MEGA_80GB": Accelerator(80, (9, 0)),
    "NVIDIA_L4": Accelerator(24, (8, 9)),
    "NVIDIA_TESLA_V100": Accelerator(16, (7, 0)),
    "NVIDIA_TESLA_T4": Accelerator(16, (7, 5)),
}
"""All accelerators, the one to take first."""

_MACHINES: dict[str, dict[int, Machine]] = {
    "NVIDIA_TESLA_A100": {
        1: Machine("a2-highgpu-1g", 12, 85),
        2: Machine("a2-highgpu-2g", 24, 170),
        4: Machine("a2-highgpu-4g", 48, 340),
        8: Machine("a2-highgpu-8g", 96, 680),
        16: Machine("a2-megagpu-16g", 96, 1360),
    },
    "NVIDIA_A100_80GB": {
        1: Machine("a2-ultragpu-1g", 12, 170),
        2: Machine("a2-ultragpu-2g", 24, 340),
        4: Machine("a2-ultragpu-4g", 48, 680),
        8: Machine("a2-ultragpu-8g", 96, 1360),
    },
    "NVIDIA_H100_80GB": {
        1: Machine("a3-highgpu-1g", 26, 234),
        2: Machine("a3-highgpu-2g", 52, 468),
        4: Machine("a3-highgpu-4g", 104, 936),
        8: Machine("a3-highgpu-8g", 208, 1872),
    },
    "NVIDIA_H100_MEGA_80GB": {8: Machine("a3-megagpu-8g", 208, 1872)},
    "NVIDIA_L4": {
        1: Machine("g2-standard-12", 12, 48),
        2: Machine("g2-standard-24", 24, 96),
        4: Machine("g2-standard-48", 48, 192),
        8: Machine("g2-standard-96", 96, 384),
    },
    "NVIDIA_TESLA_V100": {
        1: Machine("n1-standard-8", 8, 30),
        2: Machine("n1-standard-16", 16, 60),
        4: Machine("n1-standard-32", 32, 120),
        8: Machine("n1-standard-64", 64, 240),
    },
    "NVIDIA_TESLA_T4": {
        1: Machine("n1-standard-8", 8, 30),
        2: Machine("n1-standard-16", 16, 60),
        4: Machine("n1-standard-32", 32, 120),
    },
    NO_ACCELERATOR: {0: Machine("n1-standard-16", 16, 60)},
}


def accelerators() -> tuple[str, ...]:
    """All accelerators, and `none`."""
    return tuple(_MACHINES)


def counts(accelerator: str) -> tuple[int, ...]:
    """How many accelerators of a kind a machine can have."""
    return tuple(_MACHINES[accelerator])


def machine_with(accelerator: str, count: int) -> Machine:
    """The machine with this many accelerators; raises a `KeyError` if there is none."""
    return _MACHINES[accelerator][0 if accelerator == NO_ACCELERATOR else count]
