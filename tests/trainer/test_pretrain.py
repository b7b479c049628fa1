import dataclasses
import json

import pytest
import small_runs
import tensorflow as tf
from safetensors.numpy import load_file

from trainer import presets, pretrain
from trainer.presets import NETWORKS
from trainer.pretraining import pretrain as pretraining
from trainer.training.fine_tuner import FineTuner
from trainer.weights.base_model import BaseModel
from trainer.weights.errors import WeightsError

PRESET = dataclasses.replace(small_runs.preset(), name="small")


class _InGraphs(FineTuner):
    """Gradients of a fine-tuner's step need a graph."""

    def train(self, *arguments):
        tf.config.run_functions_eagerly(False)
        try:
            return super().train(*arguments)
        finally:
            tf.config.run_functions_eagerly(True)


def _pretrain(folder, *flags):
    arguments = ["--preset", "small", "--out", str(folder), "--work-dir", str(folder / "work")]
    arguments += flags
    assert pretrain.main([*arguments, "--pictures", "32", "--seed", "3"]) == 0
    return {name: load_file(folder / f"{name}.safetensors") for name in NETWORKS}


def _equal(one, other):
    return all((one[name] == other[name]).all() for name in one)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    batches = ("--autoencoder-batch-size", "2", "--diffusion-batch-size", "2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "_HELD_OUT", 8)
        patch.setattr(presets, "PRESETS", {"small": PRESET})
        # A few steps of each kind: to trace them would take far longer than to take them.
        patch.setattr(pretraining, "FineTuner", _InGraphs)
        tf.config.run_functions_eagerly(True)
        try:
            steps = ("--autoencoder-steps", "2", "--diffusion-steps", "2")
            first = _pretrain(folder / "first", *batches, *steps)
            steps = ("--autoencoder-steps", "0", "--diffusion-steps", "1")
            start = ("--start", str(folder / "first"))
            more = _pretrain(folder / "more", *batches, *steps, *start)
        finally:
            tf.config.run_functions_eagerly(False)
    return folder / "first", first, more


def test_what_it_writes_is_loaded_and_checked(weights):
    folder, first, _ = weights
    base_model = BaseModel.locate(PRESET, PRESET.image_size, str(folder))
    decoder = base_model.build("decoder")
    assert sum(tensor.size for tensor in first["decoder"].values()) == decoder.count_params()
    facts = json.loads((folder / "training.json").read_text())
    assert facts["held_out_loss"] > 0
    assert facts["reconstruction"]["psnr_db"] > 0
    assert str(folder) not in json.dumps(facts)
    with (folder / "decoder.safetensors").open("r+b") as f:
        f.seek(-1, 2)
        f.write(b"\xff")
    with pytest.raises(WeightsError, match="SHA-256"):
        base_model.build("decoder")


def test_more_diffusion_steps_leave_the_autoencoder(weights):
    _, first, more = weights
    for name in ("image_encoder", "decoder"):
        assert _equal(more[name], first[name])
    for name in ("text_encoder", "diffusion_model"):
        assert not _equal(more[name], first[name])


def test_where_the_weights_go_has_to_be_said(capsys):
    with pytest.raises(SystemExit):
        pretrain.main(["--preset", "tiny"])
    assert "required: --out" in capsys.readouterr().err
