"""The settings in `pipeline/recipes`: each can be, and needs what it says."""

import re
from pathlib import Path

import pytest

from pipeline.config import DEFAULT_FILE, load_config
from trainer.presets import get_preset
from trainer.training.optimizer import moment_values

RECIPES = sorted((Path(DEFAULT_FILE).parent / "recipes").glob("*.yaml"))
LARGE = [path for path in RECIPES if path.stem.startswith("all-weights")]


def test_there_are_some() -> None:
    assert {"style", "word", "adapters-8gb", "all-weights-24gb", "all-weights-40gb"} <= {
        path.stem for path in RECIPES
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_possible_at_full_size_and_in_small(path: Path) -> None:
    config = load_config(path)
    assert config.model.preset == "sd-v1-4"
    flags = {"model.preset": ("--preset", "tiny"), "training.steps": ("--steps", 6)}
    small = load_config(path, flags)
    assert (small.model.preset, small.training.steps) == ("tiny", 6)
    text = path.read_text()
    for told in (f"--config pipeline/recipes/{path.name} ", "# Needs", "Costs: "):
        assert told in text


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_what_a_recipe_needs_is_what_the_estimate_counts(path: Path) -> None:
    training, parameters = load_config(path).training, get_preset("sd-v1-4").parameters
    trained = parameters["diffusion_model"]
    kept = moment_values(training.optimizer, (trained,))
    in_memory = sum(parameters[n] for n in ("text_encoder", "diffusion_model", "decoder"))
    values = [in_memory, trained, kept, trained]
    text = " ".join(line.lstrip("# ") for line in path.read_text().splitlines())
    said = re.search(r"Needs[^;]*; ([\d.]+) together", text)
    assert said
    assert float(said[1]) == pytest.approx(sum(values) * 4 / 1e9, abs=0.06)
    for number in values:
        assert f" {number * 4 / 1e9:.2f}" in text
