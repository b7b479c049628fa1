"""Two releases of a network of a few thousand parameters, exported and published for real."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "trainer")]

IMAGE_SIZE = 64
DEFAULTS = {"num_steps": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The Trainer's `Format-Serving`, of two models that differ in all three networks."""
    import small_runs

    from trainer.export import export_models, serving_modules
    from trainer.models import build_decoder, build_diffusion_model, build_text_encoder
    from trainer.weights import load_base_weights

    preset = small_runs.preset()
    networks = {
        "text_encoder": build_text_encoder(preset),
        "diffusion_model": build_diffusion_model(preset, IMAGE_SIZE),
        "decoder": build_decoder(preset, IMAGE_SIZE),
    }
    for name, model in networks.items():
        load_base_weights(model, name, preset, "random")
    modules = serving_modules(**networks, preset=preset, image_size=IMAGE_SIZE)
    folders = {}
    for number in (1, 2):
        folders[number] = tmp_path_factory.mktemp("model")
        for model in networks.values():
            rng = np.random.default_rng(number)
            # Large enough to show in the pictures.
            model.set_weights(
                [w + rng.normal(0, 0.05, w.shape).astype(w.dtype) for w in model.get_weights()]
            )
        export_models(str(folders[number]), modules)
        manifest = {"preset": "tiny", "image_size": IMAGE_SIZE, "defaults": DEFAULTS}
        (folders[number] / "manifest.json").write_text(json.dumps(manifest))
    return folders


@pytest.fixture(scope="session")
def publish(exported: dict[int, Path]) -> Callable[..., int]:
    """Publishes one of the two into a serving directory, as the pusher does; gives its version."""
    from components.serving_pusher.warmup import warmup_requests
    from serving.releases import NETWORKS
    from serving.serving_directory import ServingDirectory

    warmup = {
        number: {name: warmup_requests(str(folder / name), name) for name in NETWORKS}
        for number, folder in exported.items()
    }

    def publish(root: Path | str, number: int) -> int:
        facts = {
            "model": {"id": number, "uri": f"model-{number}"},
            "preset": "tiny",
            "image_size": IMAGE_SIZE,
            "defaults": DEFAULTS,
            "metrics": {"loss": 0.1602, "loss_baseline": 0.2037},
            "pushed_at": "2026-11-25T12:00:00+00:00",
        }
        directory = ServingDirectory(str(root))
        source, requests = str(exported[number]), warmup[number]
        return directory.publish(source, facts, lambda staged: None, requests)["version"]

    return publish


@pytest.fixture(scope="session")
def released(publish: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A serving directory with release 1; not to be changed."""
    root = tmp_path_factory.mktemp("released") / "serving_model"
    publish(root, 1)
    return root


@pytest.fixture
def serving_root(released: Path, tmp_path: Path) -> Path:
    """Release 1 in a serving directory of the test's own."""
    root = Path(shutil.copytree(released, tmp_path / "serving_model"))
    config = root / "models.config"
    config.write_text(config.read_text().replace(str(released), str(root)))
    return root
