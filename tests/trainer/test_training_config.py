import dataclasses
import json
import math
from typing import Any

import pydantic
import pytest

from storage.user_errors import UserError
from trainer.presets import Preset, get_preset
from trainer.training_config import (
    ResolvedTrainingConfig,
    RunParameters,
    TrainerSettings,
    TrainingConfig,
    TuningConfig,
    ValidationConfig,
)


def settings(**training: Any) -> TrainerSettings:
    return TrainerSettings(
        preset="tiny",
        image_size=64,
        base_weights="random",
        base_weights_hash="b" * 16,
        training=TrainingConfig(**training).resolved(get_preset("tiny")),
        validation=ValidationConfig(
            prompts=("a blue one", "a réd one"),
            sampler="dpmpp_2m",
            num_steps=2,
            guidance_scale=4.0,
            seed=1,
            every_steps=0,
        ),
        checkpoint_dir="checkpoints",
        export_weights="float32",
        compute="float32",
        code_version="c" * 16,
    )


def started(given: dict[str, Any], **parameters: Any) -> ResolvedTrainingConfig:
    """Settings with `given` for their training, started with other run parameters."""
    made = settings(**given)
    run: RunParameters = {**made.training.run_parameters, **parameters}
    return TrainerSettings.from_json(made.to_json(), run).training


def test_settings_left_open_are_the_presets(small_preset: Preset) -> None:
    resolved = TrainingConfig(steps=10).resolved(small_preset)
    assert resolved.steps == 10
    assert resolved.batch_size == small_preset.training.batch_size
    assert resolved.warmup_steps == 5
    left_open = {name for name, value in dataclasses.asdict(resolved).items() if value is None}
    # It stands for twenty times a run, of however many steps.
    assert left_open == {"evaluate_every_steps"}


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
    with pytest.raises(UserError, match=r"warmup_steps = 11 .* 1 epochs of 320 pictures are 10"):
        resolved.for_examples(320, preset)


@pytest.mark.parametrize(
    ("examples", "accumulation_steps", "devices", "batch_size", "parts"),
    [
        (33, 1, 1, 32, 1),
        (32, 1, 1, 32, 1),
        (11, 1, 1, 11, 1),
        (11, 4, 1, 8, 4),
        (31, 2, 3, 30, 2),
        (1, 1, 1, 1, 1),
        (3, 4, 1, 3, 3),
        (3, 2, 2, 2, 1),
    ],
)
def test_a_presets_batch_is_no_larger_than_the_train_split(
    examples: int, accumulation_steps: int, devices: int, batch_size: int, parts: int
) -> None:
    preset = get_preset("tiny")
    for length in ({"steps": 10}, {"epochs": 3.0}):
        config = TrainingConfig(**length, accumulation_steps=accumulation_steps).resolved(preset)
        found = config.for_examples(examples, preset, devices)
        assert (found.batch_size, found.accumulation_steps) == (batch_size, parts)
        assert found.steps == length.get("steps", math.ceil(3 * examples / batch_size))


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    preset = get_preset("tiny")
    config = TrainingConfig(accumulation_steps=2).resolved(preset)
    with pytest.raises(UserError, match="only 3 pictures, too few for a batch on 4 devices"):
        config.for_examples(3, preset, devices=4)


@pytest.mark.parametrize(
    ("given", "reduced"),
    [({"batch_size": 32}, 32), ({"batch_size": 32, "reduce_batch_size": "always"}, 11)],
)
def test_a_batch_that_was_given_is_reduced_where_that_was_said(
    given: dict[str, Any], reduced: int
) -> None:
    preset = get_preset("tiny")
    assert TrainingConfig(**given).resolved(preset).for_examples(11, preset).batch_size == reduced


@pytest.mark.parametrize(
    ("rank", "alpha", "expected"), [(4, 0.0, 4.0), (4, 8.0, 8.0), (0, 0.0, 0.0)]
)
def test_lora_alpha_is_the_rank_unless_given(rank: int, alpha: float, expected: float) -> None:
    config = TrainingConfig(lora_rank=rank, lora_alpha=alpha).resolved(get_preset("tiny"))
    assert config.lora_alpha == expected


def test_nothing_is_open_in_a_resolved_configuration() -> None:
    resolved = TrainingConfig().resolved(get_preset("tiny"))
    values = dataclasses.asdict(resolved)
    recommended = ("batch_size", "learning_rate", "learning_rate_schedule", "ema_decay")
    for name in (*recommended, "train_text_encoder"):
        with pytest.raises(pydantic.ValidationError, match=name):
            ResolvedTrainingConfig(**{**values, name: None})
        with pytest.raises(pydantic.ValidationError, match=name):
            ResolvedTrainingConfig(**{k: v for k, v in values.items() if k != name})


@pytest.mark.parametrize(
    "training", [{"steps": 30}, {"epochs": 2.5}, {"epochs": 1.0, "warmup_steps": 3}], ids=str
)
def test_settings_are_the_same_after_json(training: dict[str, Any]) -> None:
    made = settings(**training)
    tree = json.loads(json.dumps(made.to_json()))
    assert TrainerSettings.from_json(tree, made.training.run_parameters) == made
    assert not {"steps", "learning_rate", "seed"} & set(tree["training"])


def test_what_is_chosen_is_in_the_settings_where_something_is() -> None:
    of_choice = {"keep", "stop_early", "evaluate_every_steps", "choose_from_pictures"}
    # Else the settings, and the keys of the cache, are those of former versions.
    assert not of_choice & set(settings().to_json()["training"])
    made = settings(keep="best", stop_early=2, evaluate_every_steps=0, choose_from_pictures=4)
    assert made.to_json()["training"].items() >= {"keep": "best", "stop_early": 2}.items()
    assert TrainerSettings.from_json(made.to_json(), made.training.run_parameters) == made


def test_without_an_image_encoder_the_settings_are_those_of_former_versions() -> None:
    assert "image_to_image" not in settings().to_json()
    made = dataclasses.replace(settings(), image_to_image=True)
    assert made.to_json()["image_to_image"] is True
    assert TrainerSettings.from_json(made.to_json(), made.training.run_parameters) == made


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("training", "batch_size"), 0),
        (("training", "precision"), "half"),
        (("training", "surplus"), 1),
        (("validation", "prompts"), []),
        (("validation", "every_steps"), -1),
        (("export_weights",), "int8"),
        (("compute",), "int8"),
        (("surplus",), 1),
    ],
    ids=str,
)
def test_json_that_cannot_be_is_refused(path: tuple[str, ...], value: Any) -> None:
    tree = settings().to_json()
    section = tree if len(path) == 1 else tree[path[0]]
    section[path[-1]] = value
    with pytest.raises(ValueError, match=path[-1]):
        TrainerSettings.from_json(tree, settings().training.run_parameters)


def test_run_parameters_are_those_that_a_run_is_started_with() -> None:
    found = started({}, steps=40, learning_rate=2, seed=7)
    assert (found.steps, found.learning_rate, found.seed) == (40, 2.0, 7)
    assert isinstance(found.learning_rate, float)


@pytest.mark.parametrize(("given", "steps", "warmup"), [(20, 20, 20), (20, 19, 9)])
def test_a_warmup_longer_than_the_steps_is_half_of_them(
    given: int, steps: int, warmup: int
) -> None:
    assert started({"warmup_steps": given}, steps=steps).warmup_steps == warmup


def test_steps_have_precedence_over_epochs() -> None:
    found = started({"epochs": 2.0})
    assert (found.steps, found.epochs, found.warmup_steps) == (None, 2.0, None)
    found = started({"epochs": 2.0}, steps=10)
    assert (found.steps, found.epochs, found.warmup_steps) == (10, 0.0, 5)


@pytest.mark.parametrize("steps", [0, -1])
def test_impossible_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps is {steps}; it must be at least 1"):
        started({}, steps=steps)


@pytest.mark.parametrize("parameters", [{"learning_rate": 0.0}, {"seed": -1}, {"seed": 0.5}])
def test_impossible_run_parameters_are_refused(parameters: dict[str, Any]) -> None:
    [name] = parameters
    with pytest.raises(ValueError, match=name):
        started({}, **parameters)


def test_what_a_search_has_found_takes_the_place_of_the_settings(small_preset: Preset) -> None:
    given = TrainingConfig(steps=6, lora_rank=4, lora_alpha=8.0).resolved(small_preset)
    found = given.with_found({"learning_rate": 0.25, "ema_decay": 0.5, "min_snr_gamma": 5.0})
    assert found == dataclasses.replace(given, learning_rate=0.25, ema_decay=0.5, min_snr_gamma=5.0)
    # Adapters of another rank count as much.
    other = given.with_found({"lora_rank": 16})
    assert (other.lora_rank, other.lora_alpha) == (16, 32.0)


def test_a_learning_rate_is_searched_around_the_trainings_own_or_where_it_was_said() -> None:
    assert TuningConfig().learning_rates(1e-3) == pytest.approx((1e-4, 1e-2))
    assert TuningConfig(learning_rate=[1e-5, 1e-4]).learning_rates(1e-3) == (1e-5, 1e-4)
    assert TuningConfig(learning_rate=[]).learning_rates(1e-3) is None
