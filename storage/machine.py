"""This machine: the memory that this process may use, and the processor."""

from __future__ import annotations

import os
import platform
import re
import resource
from pathlib import Path

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_MEMINFO = "/proc/meminfo"
_CPUINFO = "/proc/cpuinfo"
_FLAGS = re.compile(r"^(?:flags|Features)\s*: (.*)$", re.MULTILINE)
_MODEL_NAME = re.compile(r"^model name\s*: (.*)$", re.MULTILINE)
# The flags by which TensorFlow's kernels choose their arithmetic.
_VECTORS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})
"""A processor with one of these `cpu_flags` is faster in bfloat16; others emulate it."""
BFLOAT16_CAPABILITY = (8, 0)
"""Compute capability of Ampere, the first generation of NVIDIA's GPUs that has bfloat16."""

_AVAILABLE = re.compile(r"^MemAvailable: *([0-9]+) kB$", re.MULTILINE)


def memory_bytes() -> int:
    """The machine's memory in bytes, or the limit of this process's container."""
    return min([os.sysconf("SC_PHYS_PAGES") * resource.getpagesize(), *_container_limits()])


def free_memory_bytes() -> int:
    """The free part of `memory_bytes`.

    From a container's limit, only the memory of this process is subtracted. If the system does not
    say how much memory is available, all of it counts as free.
    """
    held = resident_bytes()
    free = [limit - held for limit in _container_limits()]
    meminfo = Path(_MEMINFO)
    if meminfo.is_file() and (found := _AVAILABLE.search(meminfo.read_text())):
        free.append(int(found[1]) * 1024)
    return max(0, min(free, default=memory_bytes()))


def resident_bytes() -> int:
    """Memory that this process holds now, in bytes; 0 if the system does not say."""
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[1]) if statm.is_file() else 0
    return pages * resource.getpagesize()


def cpu_flags() -> frozenset[str]:
    """The processor's features, in the kernel's words such as `avx2`; empty if there is no list."""
    cpuinfo = Path(_CPUINFO)
    found = _FLAGS.search(cpuinfo.read_text()) if cpuinfo.is_file() else None
    return frozenset(found[1].split() if found else ())


def processor() -> str:
    """The processor's name, the features of its vector units, and the cores of this process.

    Another processor may round differently.
    """
    cpuinfo = Path(_CPUINFO)
    found = _MODEL_NAME.search(cpuinfo.read_text()) if cpuinfo.is_file() else None
    name = found[1].strip() if found else platform.machine()
    flags = cpu_flags()
    vectors = [flag for flag in _VECTORS if flag in flags]
    return ", ".join([name, *vectors, f"{len(os.sched_getaffinity(0))} cores"])


def gigabytes(size: float) -> str:
    """`size` bytes in words, such as `3.4 GB`."""
    return f"{size / 1e9:.1f} GB"


def _container_limits() -> list[int]:
    found = [Path(path).read_text().strip() for path in _CGROUP_LIMITS if Path(path).is_file()]
    return [int(text) for text in found if text.isdigit()]
