"""The machine that a run is compiled for: whether training fits it, and a line about both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pipeline import disk
from pipeline.config import ConfigError, RunConfig
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


def in_words(config: RunConfig, serving_dir: str) -> str:
    """What is compiled, in a line.

    Args:
        config: All settings, resolved.
        serving_dir: Where the model is pushed to.
    """
    training, vertex = config.training, config.vertex
    length = f"{training.epochs:g} epochs" if training.steps is None else f"{training.steps} steps"
    machine = machines.machine_with(vertex.accelerator, vertex.accelerator_count)
    on = machine.name
    if vertex.trainer_cpu or vertex.trainer_memory_gb or "Trainer" in vertex.resources:
        # Vertex takes the smallest machine that has them.
        cpu, memory_gb = _trainer_value(vertex, "cpu"), _trainer_value(vertex, "memory_gb")
        on = f"{cpu:g} vCPUs and {memory_gb:g} GB"
    if vertex.trains_in_custom_job:
        on = f"{vertex.workers} x {machine.name}{' (Spot)' if vertex.spot else ''}"
    if vertex.accelerator != machines.NO_ACCELERATOR:
        on += f" with {vertex.accelerator_count} {vertex.accelerator}"
    return (
        f"{config.model.preset}, {length} with batches of {training.batch_size} in "
        f"{training.precision}, on {on} in {vertex.region}; pushes to {serving_dir}"
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
        memory_gb, holder = _trainer_value(vertex, "memory_gb"), "the Trainer's machine"
        advice = ["raise vertex.trainer_memory_gb"]
    if needed <= memory_gb * _GB:
        return ""
    all_weights = ""
    if disk.trained_parameters(config):
        all_weights = " with all weights"
        advice.append("--lora-rank 16")
    return (
        f"{config.model.preset}{all_weights} needs {disk.in_words(needed)} and activations; "
        f"{holder} has {memory_gb:g} GB: {', or '.join(advice)}"
    )


def _trainer_value(vertex: VertexConfig, name: Literal["cpu", "memory_gb"]) -> float:
    """CPU or memory of the Trainer's machine; a custom job takes the whole machine."""
    machine = machines.machine_with(vertex.accelerator, vertex.accelerator_count)
    whole: float = getattr(machine, name)
    if vertex.trains_in_custom_job:
        return whole
    own: float | None = getattr(vertex, f"trainer_{name}")
    return vertex.resources.get("Trainer", {}).get(name) or own or whole
