import dataclasses

import pytest

from trainer.presets import Preset, get_preset
from trainer.training_config import TrainingConfig


def test_settings_left_open_are_the_presets(small_preset: Preset) -> None:
    resolved = TrainingConfig(steps=10).resolved(small_preset)
    assert resolved.steps == 10
    assert resolved.batch_size == small_preset.training.batch_size
    assert resolved.warmup_steps == 5
    assert not any(value is None for value in dataclasses.asdict(resolved).values())


@pytest.mark.parametrize(
    ("epochs", "examples", "steps", "warmup_steps"),
    [(1.0, 320, 10, 5), (2.5, 100, 8, 4), (100.0, 320, 1000, 20), (0.01, 100, 1, 0)],
)
def test_epochs_become_steps(epochs: float, examples: int, steps: int, warmup_steps: int) -> None:
    preset = get_preset("tiny")
    resolved = TrainingConfig(epochs=epochs, batch_size=32).resolved(preset)
    assert resolved.steps is None
    known = resolved.for_examples(examples, preset)
    assert (known.steps, known.warmup_steps) == (steps, warmup_steps)
    assert known.for_examples(1, preset) == known


def test_warmup_longer_than_the_epochs_is_refused() -> None:
    preset = get_preset("tiny")
    resolved = TrainingConfig(epochs=1.0, batch_size=32, warmup_steps=11).resolved(preset)
    with pytest.raises(ValueError, match=r"warmup_steps = 11 .* 1 epochs of 320 pictures are 10"):
        resolved.for_examples(320, preset)


@pytest.mark.parametrize(
    ("rank", "alpha", "expected"), [(4, 0.0, 4.0), (4, 8.0, 8.0), (0, 0.0, 0.0)]
)
def test_lora_alpha_is_the_rank_unless_given(rank: int, alpha: float, expected: float) -> None:
    config = TrainingConfig(lora_rank=rank, lora_alpha=alpha).resolved(get_preset("tiny"))
    assert config.lora_alpha == expected
