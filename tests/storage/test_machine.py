import re
from pathlib import Path

import pytest

from storage import machine


@pytest.fixture
def limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "_CGROUP_LIMITS", (str(tmp_path / "none"), str(path)))
    monkeypatch.setattr(machine, "_MEMINFO", str(tmp_path / "meminfo"))
    return path


def test_a_container_has_what_it_is_allowed(limit: Path) -> None:
    machines = machine.memory_bytes()
    assert machine.free_memory_bytes() == machines
    for text in ("max\n", f"{2**62}\n"):
        limit.write_text(text)
        assert machine.memory_bytes() == machines
    allowed = machine.resident_bytes() + 10**6
    limit.write_text(f"{allowed}\n")
    assert machine.memory_bytes() == allowed
    # What this process holds grows meanwhile.
    assert 0 <= machine.free_memory_bytes() <= 10**6
    limit.write_text("4096")
    assert machine.free_memory_bytes() == 0


def test_free_is_what_the_system_says(limit: Path) -> None:
    limit.with_name("meminfo").write_text(
        "MemTotal: 9 kB\nMemAvailable:    2048 kB\nCached: 1 kB\n"
    )
    assert machine.free_memory_bytes() == 2048 * 1024


def test_bytes_in_words() -> None:
    assert machine.gigabytes(3_449_999_999) == "3.4 GB"


def test_what_a_processor_can_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "_CPUINFO", str(listed))
    assert machine.cpu_flags() == frozenset()
    listed.write_text("processor\t: 0\nflags\t\t: fpu amx_bf16\nbugs\t\t: none\n\nflags\t: other\n")
    assert machine.cpu_flags() == {"fpu", "amx_bf16"}
    assert re.fullmatch(r".+, amx_bf16, \d+ cores", machine.processor())
