"""Compares what training needs with the machine that a run is compiled for."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config import ConfigError, RunConfig
from pipeline.disk import in_words, trained_parameters
from pipeline.memory import fixed_bytes
from pipeline.vertex import machines
from pipeline.vertex.config import VertexConfig
from storage.machine import BFLOAT16_CAPABILITY

_GB = 10**9


def notes_on_machine(config: RunConfig) -> Iterator[str]:
    """What to tell the user about the Trainer's machine.

    Args:
        config: All settings, resolved.

    Raises:
        ConfigError: The machine cannot hold even what training takes without activations, and such
            runs are refused.
    """
    problem = _too_large(config)
    if problem and config.training.memory_check == "refuse":
        raise ConfigError(f"{problem}. training.memory_check = warn compiles it anyway")
    if problem:
        yield problem
    name = config.vertex.accelerator
    accelerator = machines.ACCELERATORS.get(name)
    if (
        accelerator is not None
        and config.training.precision == "bfloat16"
        and accelerator.compute_capability < BFLOAT16_CAPABILITY
    ):
        has, needs = (
            ".".join(map(str, each))
            for each in (accelerator.compute_capability, BFLOAT16_CAPABILITY)
        )
        yield (
            f"{name} has no bfloat16 arithmetic (compute capability {has}; bfloat16 needs {needs}):"
            " give --precision float16"
        )


def _too_large(config: RunConfig) -> str:
    """Why training cannot fit, and what would help; "" if it may."""
    needed, vertex = fixed_bytes(config), config.vertex
    accelerator = machines.ACCELERATORS.get(vertex.accelerator)
    if accelerator is not None:
        # Each accelerator holds all of it: they share only the batch.
        memory_gb, holder = float(accelerator.memory_gb), vertex.accelerator
        enough = (n for n, a in machines.ACCELERATORS.items() if a.memory_gb * _GB >= needed)
        advice = [f"take {name}" for name in enough][:1]
    else:
        memory_gb, holder = _main_memory_gb(vertex), "the Trainer's machine"
        advice = ["raise vertex.trainer_memory_gb"]
    if needed <= memory_gb * _GB:
        return ""
    all_weights = ""
    if trained_parameters(config):
        all_weights = " with all weights"
        advice.append("--lora-rank 16")
    return (
        f"{config.model.preset}{all_weights} needs {in_words(needed)} and activations; {holder} "
        f"has {memory_gb:g} GB: {', or '.join(advice)}"
    )


def _main_memory_gb(vertex: VertexConfig) -> float:
    """Memory of the Trainer's machine; a custom job takes the whole machine."""
    machine = machines.machine_with(vertex.accelerator, vertex.accelerator_count)
    if vertex.trains_in_custom_job:
        return machine.memory_gb
    own = vertex.resources.get("Trainer", {}).get("memory_gb")
    return own or vertex.trainer_memory_gb or machine.memory_gb
