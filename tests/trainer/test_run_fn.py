"""What the TFX Trainer calls, on a small network and latents of noise."""

import dataclasses
import json
import logging
import platform
import re
import shutil
import subprocess
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import small_runs
import tensorflow as tf
from tfx.components.trainer.fn_args_utils import FnArgs

from storage import machine
from storage.user_errors import UserError
from trainer import presets, run_fn
from trainer.data.buckets import BucketCounts
from trainer.data.held_out import write_choosing
from trainer.data.latents import LatentsManifest, make_latent_example
from trainer.data.prior import ClassLatents
from trainer.data.trained_on import TrainedOn, marks_of
from trainer.diffusion.noise_schedule import LATENT_SCALE
from trainer.diffusion.sampler import to_image
from trainer.export.saved_models import ServingModules
from trainer.networks.new_vectors import with_vectors
from trainer.text.tokenizer import new_word, tokenize
from trainer.training.checkpoints import RunCheckpoints, StartingPoint
from trainer.training.evaluations import best_of, read_evaluations
from trainer.training.fine_tuner import FineTuner, TrainingDivergedError, read_history
from trainer.training.going_on import Line
from trainer.training.memory import InsufficientMemoryError
from trainer.training_config import (
    TUNED,
    WITHOUT_EFFECT_ON_WEIGHTS,
    TrainerSettings,
    TrainingConfig,
    ValidationConfig,
)
from trainer.tuning.search import TrialTuner
from trainer.weights import diffusers_export
from trainer.weights.base_model import BaseModel
from trainer.weights.exported import exported_values

PRESET = dataclasses.replace(small_runs.preset(), name="small")
BASE_MODEL = BaseModel.locate(PRESET, 64, "random")
EXAMPLES = 8
TRAINING = {
    "epochs": 1.5,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "checkpoint_every_steps": 1,
    "log_every_steps": 1,
    "min_snr_gamma": 5.0,
    "seed": 3,
}


CHOOSING = {"keep": "best", "evaluate_every_steps": 1}


@pytest.fixture(scope="module", autouse=True)
def small_is_a_preset() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "PRESETS", {**presets.PRESETS, "small": PRESET})
        yield


SQUARE = ((8, 8),)


def write_latents(
    folder: Path,
    broken: int | None = None,
    held_out: int = 0,
    shapes: Sequence[tuple[int, int]] = SQUARE,
    **facts: Any,
) -> Path:
    """Latents of noise; the example number `broken` holds an infinite number.

    Of the held-out ones, of which there may be none, the first half choose. Heights and widths of
    both are `shapes` in turn.
    """
    rng = np.random.default_rng(0)
    split = folder / "Split-train"
    split.mkdir(parents=True)
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    with tf.io.TFRecordWriter(str(split / "latents-00000-of-00001.gz"), options) as writer:
        for index in range(EXAMPLES):
            height, width = shapes[index % len(shapes)]
            mean = rng.standard_normal((height, width, 4))
            example = make_latent_example(
                example_id=f"picture-{index}",
                tokens=tokenize([f"picture {index}"])[0],
                context=rng.standard_normal((77, 8)),
                mean=mean * np.inf if index == broken else mean,
                log_variance=rng.standard_normal((height, width, 4)) - 4,
                size=(8 * height, 8 * width) if len(shapes) > 1 else None,
            )
            # As LatentGen does: else the same latents would be other bytes.
            writer.write(example.SerializeToString(deterministic=True))
    pictures = [small_runs.picture(index, shapes) for index in range(held_out)]
    if pictures:
        (folder / "Split-eval").mkdir()
        path = str(folder / "Split-eval" / "latents-00000-of-00001.gz")
        with tf.io.TFRecordWriter(path, options) as writer:
            for picture in pictures:
                writer.write(picture)
        write_choosing(str(folder), (f"held-out-{index}" for index in range(held_out // 2)))
    manifest = {
        "preset": "small",
        "image_size": 64,
        "encoders_hash": BASE_MODEL.hash(("text_encoder", "image_encoder")),
        "flip": False,
        "counts": {"train": EXAMPLES, "eval": 2},
    }
    LatentsManifest(**{**manifest, **facts}).write(str(folder))
    return folder


def arguments(folder: Path, latents: Path, **training: Any) -> FnArgs:
    settings = TrainerSettings(
        preset="small",
        image_size=64,
        base_weights="random",
        base_weights_hash=BASE_MODEL.hash(),
        training=TrainingConfig(**TRAINING, **training).resolved(PRESET),
        validation=ValidationConfig(
            prompts=("a blue one", "a red one"),
            seed=1,
            sampler="dpmpp_2m",
            num_steps=2,
            guidance_scale=4.0,
            every_steps=2,
        ),
        checkpoint_dir=str(folder / "checkpoints"),
        export_weights="float32",
        compute="float32",
        code_version="abc",
    )
    return FnArgs(
        train_files=[str(latents / "Split-train" / "*")],
        custom_config=settings.to_json(),
        hyperparameters=settings.training.run_parameters,
        serving_model_dir=str(folder / "Format-Serving"),
        model_run_dir=str(folder / "model_run"),
    )


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@dataclasses.dataclass(frozen=True)
class Ran:
    folder: Path
    latents: Path
    lines: list[str]
    manifest: dict[str, Any]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("run_fn")
    latents = write_latents(folder / "latents", held_out=20)
    handler, logger = _Lines(), logging.getLogger("trainer")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        run_fn.run_fn(
            arguments(
                folder, latents, **CHOOSING, lora_rank=2, lora_alpha=4.0, train_text_encoder=True
            )
        )
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    manifest = json.loads((folder / "Format-Serving" / "manifest.json").read_text())
    return Ran(folder, latents, handler.lines, manifest)


def test_parameters_and_memory_are_told_before_training(ran: Ran) -> None:
    said = "\n".join(ran.lines)
    total = sum(ran.manifest["parameters"].values())
    trainable = ran.manifest["trainable_parameters"]
    assert (
        f"Training {trainable:,} of {total:,} parameters: 3 steps of 4 pictures, 1.5 epochs of 8 "
        "pictures."
    ) in said
    told = next(i for i, line in enumerate(ran.lines) if line.startswith("Estimated memory: "))
    assert re.fullmatch(
        r"Estimated memory: [\d.]+ GB \(weights [\d.]+ GB, gradients [\d.]+ GB, optimizer "
        r"[\d.]+ GB, averages [\d.]+ GB, activations [\d.]+ GB, program [\d.]+ GB\); available: "
        r"[\d.]+ GB on this machine\.",
        ran.lines[told],
    )
    first_step = next(i for i, line in enumerate(ran.lines) if line.startswith("step 1 of 3"))
    assert told < first_step


def test_random_weights_are_told_in_capital_letters(ran: Ran) -> None:
    for network in ("DIFFUSION_MODEL", "TEXT_ENCODER", "DECODER"):
        assert f"THE {network} STARTS FROM RANDOM WEIGHTS, as requested." in ran.lines


def test_the_manifest_says_what_made_the_model(ran: Ran) -> None:
    manifest = ran.manifest
    # Every hyperparameter, with the steps that the epochs came to.
    wanted = TrainingConfig(
        **TRAINING, **CHOOSING, lora_rank=2, lora_alpha=4.0, train_text_encoder=True
    )
    resolved = dataclasses.asdict(wanted.resolved(PRESET).for_examples(EXAMPLES, PRESET))
    assert {name: manifest[name] for name in resolved} == resolved
    assert (manifest["steps"], manifest["seed"], manifest["lora_alpha"]) == (3, 3, 4.0)
    assert (manifest["preset"], manifest["image_size"]) == ("small", 64)
    assert manifest["base_weights_source"] == "random"
    names = ("sampler", "num_steps", "guidance_scale")
    drawing = {name: manifest["validation"][name] for name in names}
    assert manifest["defaults"] == drawing
    assert drawing["sampler"] == "dpmpp_2m"
    assert manifest["size_multiple"] == 8
    assert manifest["compute"] == "float32"
    assert manifest["base_weights"] == {
        network: BASE_MODEL.hash([network]) for network in presets.NETWORKS
    }
    assert manifest["latents"]["uri"] == str(ran.latents)
    assert manifest["latents"]["counts"] == {"train": EXAMPLES, "eval": 2}
    assert manifest["versions"]["tensorflow"] == tf.__version__
    assert manifest["versions"]["python"] == platform.python_version()
    assert manifest["code_version"] == "abc"
    # Commits may have come since; in no checkout there is none.
    git = ["git", "merge-base", "--is-ancestor", str(manifest["git_commit"]), "HEAD"]
    here = Path(__file__).parent
    known = subprocess.run(git, cwd=here, capture_output=True, check=False).returncode == 0
    assert known or (manifest["git_commit"] is None and not (here / "../../.git").exists())
    assert 0 < manifest["training_seconds"] < manifest["wall_time_seconds"] < 600
    assert manifest["images_per_second"] > 0
    assert 2e8 < manifest["peak_memory_bytes"] < 2e10
    assert 2e8 < manifest["estimated_memory_bytes"] < 2e10
    assert manifest["peak_gpu_memory_bytes"] is None
    assert manifest["replicas"] == 1
    assert manifest["prompts_are_captions"] is False
    history = read_history(str(ran.folder / "model_run"))
    assert [record.step for record in history] == [1, 2, 3]
    assert manifest["final_loss"] == history[-1].loss


def test_pictures_are_in_tensorboard_every_so_many_steps(ran: Ran) -> None:
    drawn = set()
    scalars = set()
    losses = {}
    logs = [*ran.folder.glob("model_run/*/events.*")]
    assert {path.parent.name for path in logs} == {"train", "held_out", "kept", "validation"}
    for path in logs:
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "images":
                    drawn.add((event.step, value.tag))
                    picture = tf.io.decode_png(value.tensor.string_val[2])
                    assert picture.shape == (64, 64, 3)
                elif value.tag:
                    scalars.add((event.step, value.tag))
                    losses[path.parent.name, event.step] = value
    kept = ran.manifest["kept"]["step"]
    assert drawn == {(step, f"validation/{i:02d}") for step in (0, 2, kept) for i in (0, 1)}
    # In one chart with the training's loss: the held-out ones, and the one that is kept.
    assert {step for name, step in losses if name == "held_out"} == {0, 1, 2, 3}
    assert {step for name, step in losses if name == "kept"} == {kept}
    values = [losses[name, kept] for name in ("held_out", "kept")]
    assert {value.tag for value in values} == {"loss"}
    for value in values:
        assert float(tf.make_ndarray(value.tensor)) == pytest.approx(ran.manifest["kept"]["loss"])
    for name in ("loss", "learning_rate", "gradient_norm", "images_per_second"):
        assert {(step, name) for step in (1, 2, 3)} <= scalars
    folders = sorted(path.name for path in (ran.folder / "model_run/validation").glob("step_*"))
    assert folders == sorted({f"step_{step:06d}" for step in (0, 2, kept)})


def test_held_out_pictures_choose_the_step_that_is_exported(ran: Ran) -> None:
    done = read_evaluations(str(ran.folder / "model_run"))
    assert [evaluation.step for evaluation in done] == [0, 1, 2, 3]
    assert {len(evaluation.losses) for evaluation in done} == {8}
    best, kept = best_of(done), ran.manifest["kept"]
    assert 0.0 < kept.pop("seconds") < ran.manifest["training_seconds"]
    assert kept.pop("why").startswith("it has the lowest loss on the 8 held-out pictures")
    assert kept == {
        "step": best.step,
        "steps_done": 3,
        "chosen": True,
        "loss": best.loss,
        "pictures": 8,
        "timesteps": 1,
    }
    said = "\n".join(ran.lines)
    assert "Every 1 steps, 8 of 20 held-out pictures are scored (10 may choose, 10 judge)" in said
    assert re.search(r"step 3 of 3: loss [\d.]+, held out [\d.]+ \(best: step \d, [\d.]+\)", said)


def test_the_adapters_file_says_what_it_is(ran: Ran) -> None:
    with safetensors.safe_open(ran.folder / "Format-Serving" / "lora.safetensors", "np") as file:
        said = file.metadata()
    training_id = ran.manifest["training_id"]
    expected = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{PRESET.architecture}/lora",
        "modelspec.resolution": f"{ran.manifest['image_size']}x{ran.manifest['image_size']}",
        "modelspec.prediction_type": "epsilon",
        "modelspec.title": f"{ran.manifest['preset']} {training_id}",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "4.0",
        "ss_num_train_images": "8",
        "ss_dataset_dirs": '{"1_pictures": {"n_repeats": 1, "img_count": 8}}',
        "ss_bucket_info": '{"buckets": {"0": {"resolution": [64, 64], "count": 8}}}',
        "ss_steps": "3",
        "ss_sd_model_name": "random",
        "ss_v2": "False",
        "training_id": training_id,
    }
    assert {key: said[key] for key in expected} == expected
    # What of captions may be told, only the push knows.
    assert "ss_tag_frequency" not in said


def test_the_trained_text_encoder_is_exported_with_its_adapters_merged(ran: Ran) -> None:
    base = BASE_MODEL.build("text_encoder")
    tensors = safetensors.numpy.load_file(ran.folder / "Format-Serving" / "lora.safetensors")
    exported = tf.saved_model.load(str(ran.folder / "Format-Serving" / "text_encoder"))
    tokens = tf.constant(tokenize(["picture 1"]), tf.int32)
    given = exported.signatures["serving_default"](tokens=tokens)["context"].numpy()
    assert np.abs(base(tokens) - given).max() > 1e-3

    layer = next(layer for layer in base.layers if hasattr(layer, "clip_attn"))
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        key = f"lora_te_text_model_encoder_layers_0_self_attn_{name}"
        down, up = (tensors[f"{key}.lora_{x}.weight"] for x in ("down", "up"))
        kernel = getattr(layer.clip_attn, name).kernel
        kernel.assign(kernel + tensors[f"{key}.alpha"] / 2 * (up @ down).T)
    np.testing.assert_allclose(base(tokens), given, atol=1e-4)


def started(ran: Ran, folder: Path, **training: Any) -> run_fn._Run:
    """A training that starts from the model of `ran`, before its first step."""
    given = arguments(folder, ran.latents, **training)
    settings = TrainerSettings.from_json(given.custom_config, given.hyperparameters)
    model = str(ran.folder / "Format-Serving")
    with pytest.MonkeyPatch.context() as patch:
        # It takes long, and no step is done.
        patch.setattr(FineTuner, "trace", lambda *_: [])
        patch.setattr(run_fn, "activation_bytes", lambda _: 0)
        return run_fn._prepare(settings, given.train_files, model, tuned=False)


def test_a_training_starts_from_the_weights_that_were_exported(ran: Ran, tmp_path: Path) -> None:
    """With its adapters merged, and with the text encoder that was trained, which is left alone."""
    run = started(ran, tmp_path)
    text_encoder, diffusion_model, _ = run.networks
    for network, model in (("text_encoder", text_encoder), ("diffusion_model", diffusion_model)):
        folder = str(ran.folder / "Format-Serving" / network)
        for weight, value in zip(
            model.weights, exported_values(folder, network, model), strict=True
        ):
            np.testing.assert_array_equal(weight, value)
    kernel = BASE_MODEL.build("text_encoder").weights
    assert any(
        np.any(np.asarray(a) != b) for a, b in zip(kernel, text_encoder.weights, strict=True)
    )
    # The latents' contexts are those of the base weights.
    assert run.tuner.text_encoder is text_encoder
    trained = {id(variable) for variable in run.tuner.variables}
    assert trained == {id(v.value) for v in diffusion_model.trainable_variables}
    assert run.start is not None
    assert run.start.facts == {
        "training_id": ran.manifest["training_id"],
        "weights": run.start.digest,
        "adapters_continued": False,
    }
    given = arguments(tmp_path, ran.latents)
    settings = TrainerSettings.from_json(given.custom_config, given.hyperparameters)
    facts = settings, run.config, run.base_model, run.latents, run.latents_uri
    assert run.training_id == run_fn._name(run_fn._facts(*facts, run.start))
    assert run.training_id != run_fn._name(run_fn._facts(*facts, None))
    assert run_fn._adapter_header(run, types.SimpleNamespace(step=3))["ss_sd_model_name"] == (
        f"small {ran.manifest['training_id']}, fine-tuned from random"
    )


def test_adapters_are_trained_on(ran: Ran, tmp_path: Path) -> None:
    run = started(ran, tmp_path, lora_rank=2, lora_alpha=4.0, train_text_encoder=True)
    assert run.start is not None
    assert run.start.facts["adapters_continued"] is True
    run.tuner.adapters.save(str(tmp_path), {})
    before, now = (
        safetensors.numpy.load_file(folder / "lora.safetensors")
        for folder in (ran.folder / "Format-Serving", tmp_path)
    )
    assert set(before) == set(now)
    for name, value in before.items():
        np.testing.assert_array_equal(now[name], value)
    # Drawn and scored before the first step is what was exported, to the last bit.
    folder = str(ran.folder / "Format-Serving" / "diffusion_model")
    with run.tuner.averaged():
        for weight, value in zip(
            run.networks[1].weights,
            exported_values(folder, "diffusion_model", run.networks[1]),
            strict=True,
        ):
            np.testing.assert_array_equal(weight, value)
    assert run_fn._adapter_header(run, types.SimpleNamespace(step=3))["ss_sd_model_name"] == (
        "random"
    )


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (
            {"lora_rank": 4},
            "has adapters with training.lora_rank = 2, which cannot be continued with 4: set "
            "training.lora_rank to 2, or training.lora_rank to 0",
        ),
        ({"lora_rank": 2}, r"training.lora_alpha = 4, .* with 2: set training.lora_alpha to 4"),
        (
            {"lora_rank": 2, "lora_alpha": 4.0},
            "also has adapters of the text encoder: set training.train_text_encoder to true",
        ),
    ],
)
def test_adapters_of_another_shape_cannot_be_trained_on(
    ran: Ran, tmp_path: Path, training: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        started(ran, tmp_path, **training)


def test_what_a_model_was_trained_on_it_knows_and_those_made_of_it(ran: Ran) -> None:
    known = TrainedOn.find(str(ran.folder / "Format-Serving"))
    assert known is not None
    files = [str(path) for path in (ran.latents / "Split-train").iterdir()]
    np.testing.assert_array_equal(known.own, marks_of(run_fn._records(files)))
    assert len(known.own) == 2 * EXAMPLES
    assert len(known.before) == 0
    start = types.SimpleNamespace(trained_on=marks_of([small_runs.picture(1)]))
    held_out = [run_fn._held_out(str(ran.latents), start_) for start_ in (None, start)]
    assert [of.all.count for of in held_out] == [20, 19]


@pytest.mark.slow
def test_other_prompts_are_drawn_by_the_finished_training_and_not_trained_for(
    ran: Ran, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor for anything else that changes no weights, or where a Trainer is killed in its export."""
    again = arguments(
        ran.folder,
        ran.latents,
        lora_rank=2,
        lora_alpha=4.0,
        train_text_encoder=True,
        **CHOOSING,
        memory_check="warn",
        checkpoints_kept=1,
    )
    again.custom_config["training"] |= {"log_every_steps": 2, "checkpoint_every_steps": 7}
    again.custom_config["validation"] |= {"prompts": ["a green one"], "every_steps": 1}
    again.custom_config["checkpoint_dir"] = str(tmp_path / "checkpoints")
    again.custom_config["image_to_image"] = True
    (tmp_path / "model_run").mkdir()
    shutil.copytree(ran.folder / "checkpoints", tmp_path / "checkpoints")
    again.serving_model_dir = str(tmp_path / "Format-Serving")
    again.model_run_dir = str(tmp_path / "model_run")
    caplog.set_level(logging.INFO, "trainer")
    run_fn.run_fn(again)
    assert "Resuming at step 3 of 3." in caplog.text
    assert "There are no pictures of step 1, 2: " in caplog.text
    manifest = json.loads((tmp_path / "Format-Serving" / "manifest.json").read_text())
    assert manifest["final_loss"] == ran.manifest["final_loss"]
    assert manifest["training_id"] == ran.manifest["training_id"]
    assert manifest["validation"]["prompts"] == ["a green one"]
    assert manifest["training_seconds"] < ran.manifest["training_seconds"]
    files = [folder / "Format-Serving/lora.safetensors" for folder in (ran.folder, tmp_path)]
    assert files[0].read_bytes() == files[1].read_bytes()
    encoder = BASE_MODEL.build("image_encoder")
    assert manifest["parameters"] == {
        **ran.manifest["parameters"],
        "image_encoder": encoder.count_params(),
    }
    exported = [tmp_path / "Format-Serving" / name for name in ("image_encoder", "diffusion_model")]
    served = tf.saved_model.load(str(exported[0])).signatures["serving_default"]
    pixels = tf.zeros([1, 64, 64, 3], tf.uint8)
    expected = LATENT_SCALE * encoder(to_image(pixels))[..., :4]
    np.testing.assert_allclose(served(images=pixels)["latent"], expected, atol=1e-5)
    assert "inpaint" in tf.saved_model.load(str(exported[1])).signatures
    assert not (ran.folder / "Format-Serving" / "image_encoder").exists()
    drawn = tmp_path / "model_run" / "validation"
    pictures = sorted(str(path.relative_to(drawn)) for path in drawn.rglob("*.png"))
    kept = ran.manifest["kept"]
    assert manifest["kept"] == {**kept, "seconds": 0.0}
    assert pictures == ["step_000000/00.png", f"step_{kept['step']:06d}/00.png"]
    assert len(list(drawn.glob("events.*"))) == 1


@pytest.mark.slow
def test_more_steps_go_on_from_the_shorter_training_and_export_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    latents = write_latents(tmp_path / "latents", held_out=20)
    settings = {
        **CHOOSING,
        "learning_rate_schedule": "constant",
        "lora_rank": 2,
        "accumulation_steps": 2,
    }
    caplog.set_level(logging.INFO, "trainer")

    def run(folder: str, steps: int) -> dict[str, Any]:
        given = arguments(tmp_path / folder, latents, **settings)
        given.hyperparameters = {**given.hyperparameters, "steps": steps}
        given.serving_model_dir, given.model_run_dir = (
            str(tmp_path / folder / f"{steps}" / name) for name in ("Format-Serving", "model_run")
        )
        (tmp_path / folder / f"{steps}" / "model_run").mkdir(parents=True)
        caplog.clear()
        run_fn.run_fn(given)
        return json.loads(Path(given.serving_model_dir, "manifest.json").read_text())

    whole = run("whole", 5)
    assert whole["went_on_from"] == {}
    shorter = run("parts", 3)
    assert shorter["goes_on_from"] == 3
    longer = run("parts", 5)
    assert longer["went_on_from"] == {"training_id": shorter["training_id"], "step": 3}
    assert f"Continuing from step 3 of training {shorter['training_id']}" in caplog.text
    assert "Resuming at step 3 of 5." in caplog.text
    # It is the same training, and its model the same model.
    assert longer["training_id"] == whole["training_id"]
    for name in ("kept", "final_loss", "goes_on_from"):
        assert longer[name] == whole[name]
    folders = [tmp_path / folder / "5" for folder in ("whole", "parts")]
    files = [folder / "Format-Serving/lora.safetensors" for folder in folders]
    assert files[0].read_bytes() == files[1].read_bytes()
    evaluated = [read_evaluations(str(folder / "model_run")) for folder in folders]
    assert evaluated[0] == evaluated[1]
    for pattern in ("validation/*/*.png", "validation/prompts.json"):
        drawn = [{p.relative_to(f): p.read_bytes() for p in f.rglob(pattern)} for f in folders]
        assert drawn[0] == drawn[1]
    # TensorBoard shows all steps.
    steps = {
        event.step
        for path in folders[1].glob("model_run/train/events.*")
        for event in tf.compat.v1.train.summary_iterator(str(path))
    }
    assert set(range(1, 6)) <= steps


@pytest.mark.slow
def test_buckets_are_trained_and_scored(tmp_path: Path) -> None:
    shapes = ((8, 8), (16, 8))
    half = EXAMPLES // 2
    buckets = [
        BucketCounts(64, 64, {"train": EXAMPLES - half, "eval": 3}, EXAMPLES - half),
        BucketCounts(64, 128, {"train": half, "eval": 3}, half),
    ]
    latents = write_latents(tmp_path / "latents", held_out=6, shapes=shapes, buckets=buckets)
    given = arguments(tmp_path, latents, evaluate_every_steps=2)
    settings = TrainerSettings.from_json(given.custom_config, given.hyperparameters)
    run = run_fn._prepare(settings, given.train_files, tuned=False)
    # What is told of memory is of the larger ones.
    (gradient, *_) = run.tuner._traced_gradients
    inputs = [op for op in gradient.graph.get_operations() if op.type == "Placeholder"]
    shapes_of_inputs = [
        tuple(op.outputs[0].shape) for op in inputs if op.outputs[0].shape.rank == 4
    ]
    assert shapes_of_inputs == [(4, 16, 8, 4)] * 2
    trained = run_fn._train(run, until=3)
    assert [record.step for record in trained.history] == [1, 2, 3]
    assert np.isfinite([record.loss for record in trained.history]).all()
    assert trained.evaluations is not None
    assert [e.step for e in trained.evaluations.done] == [0, 2, 3]
    assert sorted(map(len, trained.evaluations.pictures.rows_by_size())) == [3, 3]


def test_what_a_training_began_with_is_known_when_it_is_resumed(tmp_path: Path) -> None:
    training = TrainingConfig(**{**TRAINING, "epochs": 0.0}, learning_rate_schedule="constant")

    def beginning(training_id: str, steps: int) -> tuple[StartingPoint | None, dict[str, Any]]:
        run = types.SimpleNamespace(
            config=dataclasses.replace(training, steps=steps, evaluate_every_steps=0),
            folder=str(tmp_path / training_id),
            line=Line(str(tmp_path), "line", training_id),
            strategy=None,
        )
        evaluations, start, began_with = run_fn._beginning(run)
        assert evaluations is None
        return start, began_with

    def save(training_id: str, step: int) -> None:
        folder = str(tmp_path / training_id)
        RunCheckpoints(folder, kept=1, value=tf.Variable(1.0)).save(step)

    assert beginning("short", 3) == (None, {})
    save("short", 3)
    assert beginning("short", 3) == (None, {})
    start, began_with = beginning("long", 5)
    assert start == StartingPoint(str(tmp_path / "short"), 3)
    assert began_with == {"training_id": "short", "step": 3}
    save("long", 4)
    shutil.rmtree(tmp_path / "short")
    assert beginning("long", 5) == (None, began_with)
    shutil.rmtree(tmp_path / "long")
    assert beginning("long", 5) == (None, {})


def test_an_infinite_number_stops_the_run_and_nothing_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # There is far too little memory, too, which is said and not minded.
    limit = tmp_path / "memory.max"
    limit.write_text("1000000\n")
    monkeypatch.setattr(machine, "_CGROUP_LIMITS", (str(limit),))
    latents = write_latents(tmp_path / "latents", broken=5)
    caplog.set_level(logging.WARNING, "trainer")
    with pytest.raises(TrainingDivergedError) as error:
        run_fn.run_fn(arguments(tmp_path, latents, memory_check="warn"))
    said = re.fullmatch(
        r"the loss or its gradients became infinite or not a number at step ([123]); the examples "
        r"of that step were (.*); the last good checkpoint is (.*)\. Try a lower --learning-rate "
        r"than 0\.01",
        str(error.value),
    )
    assert said is not None
    assert "picture-5" in said[2].split(", ")
    assert len(said[2].split(", ")) == 4
    if said[1] == "1":
        assert said[3] == "none"
    else:
        assert said[3].endswith(f"ckpt-{int(said[1]) - 1}")
    assert not (tmp_path / "Format-Serving").exists()
    assert not (tmp_path / "model_run").exists()
    assert "this machine has 0.0 GB. What helps: " in caplog.text


def test_what_cannot_fit_is_refused_before_anything_is_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("1000000\n")
    monkeypatch.setattr(machine, "_CGROUP_LIMITS", (str(tmp_path / "none"), str(limit)))
    latents = write_latents(tmp_path / "latents")
    with pytest.raises(InsufficientMemoryError, match=r"training needs about .* has 0\.0 GB"):
        run_fn.run_fn(arguments(tmp_path, latents))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"preset": "tiny"}, "made for another model"),
        ({"image_size": 128}, "made for another model"),
        ({"encoders_hash": "other"}, "made for another model"),
        ({"counts": {"train": 3, "eval": 1}}, "batch size is 4 but the train split has only 3"),
    ],
    ids=str,
)
def test_latents_of_another_model_are_refused(
    tmp_path: Path, facts: dict[str, Any], said: str
) -> None:
    latents = write_latents(tmp_path / "latents", **facts)
    with pytest.raises(UserError, match=said):
        run_fn.run_fn(arguments(tmp_path, latents))


def test_a_reduced_batch_is_told(caplog: pytest.LogCaptureFixture) -> None:
    latents = LatentsManifest("small", 64, "hash", flip=False, counts={"train": 3, "eval": 1})
    recommended = PRESET.training.batch_size
    assert recommended > 3
    config = TrainingConfig(steps=1).resolved(PRESET)
    assert run_fn._config_for(config, latents, BASE_MODEL, None).batch_size == 3
    assert f"The batch size is 3 instead of {recommended}" in caplog.text


def test_epochs_and_batches_count_what_repeats() -> None:
    counts = {"train": 3, "eval": 1}
    latents = LatentsManifest("small", 64, "hash", flip=False, counts=counts, views=30)
    config = TrainingConfig(epochs=4.0, batch_size=10).resolved(PRESET)
    found = run_fn._config_for(config, latents, BASE_MODEL, None)
    # Four epochs of 30 are 12 batches of 10.
    assert (found.batch_size, found.steps) == (10, 12)


def search(folder: Path, latents: Path, trials: int = 3, **training: Any) -> TrialTuner:
    """The search that `tuner_fn` makes, of learning rates from 1e-3 to 1e-1."""
    given = arguments(folder, latents, **training)
    told = {
        "settings": given.custom_config,
        "run": given.hyperparameters,
        "tuning": {"trials": trials},
    }
    fn_args = FnArgs(train_files=given.train_files, custom_config=told)
    return run_fn.tuner_fn(fn_args).tuner


def trained_to(folder: Path) -> dict[str, np.ndarray]:
    """All that the latest checkpoint of the one training below a folder holds."""
    [training] = (path for path in folder.iterdir() if path.name != "lines")
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(training)))
    names = reader.get_variable_to_shape_map()
    return {name: reader.get_tensor(name) for name in names if "CHECKPOINTABLE" not in name}


@pytest.mark.slow
def test_trials_are_parts_of_the_training_that_they_come_to(tmp_path: Path) -> None:
    latents = write_latents(tmp_path / "latents", held_out=20)
    folders = {name: tmp_path / name for name in ("once", "in_parts", "between")}
    train = search(tmp_path, latents, **CHOOSING).train
    once = train({"learning_rate": 0.02}, 3, str(folders["once"]))
    # Another one in between, with the same networks, leaves no trace.
    first = train({"learning_rate": 0.02}, 1, str(folders["in_parts"]))
    other = train({"learning_rate": 0.05}, 2, str(folders["between"]))
    parts = train({"learning_rate": 0.02}, 3, str(folders["in_parts"]))
    assert dataclasses.replace(parts, seconds=once.seconds) == once
    assert parts.training_id == first.training_id != other.training_id
    assert len({once.losses, first.losses, other.losses}) == 3
    # The half that chooses, and it alone.
    assert len(once.losses) <= 10
    expected, found = (trained_to(folders[name]) for name in ("once", "in_parts"))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, name)
    evaluated = [
        (folders[name] / once.training_id / "evaluations.jsonl").read_text()
        for name in ("once", "in_parts")
    ]
    assert evaluated[0] == evaluated[1]


@pytest.mark.slow
def test_the_trainer_trains_no_step_of_what_the_search_has_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = write_latents(tmp_path / "latents", held_out=20)
    tuner = search(tmp_path, latents)
    tuner.search()
    chosen = tuner.conclude(str(tmp_path / "checkpoints")).chosen
    assert chosen.steps == 3
    assert 1e-3 <= chosen.hyperparameters["learning_rate"] <= 1e-1
    exported: list[tuple[Any, Any]] = []
    monkeypatch.setattr(run_fn, "_export", lambda run, trained, _: exported.append((run, trained)))
    recorded: list[Any] = []
    monkeypatch.setattr(run_fn, "_record", lambda *given: recorded.append(given))
    monkeypatch.setattr(run_fn, "draw_validation", lambda *_: None)
    monkeypatch.setattr(FineTuner, "train_step", None)
    given = arguments(tmp_path, latents)
    given.hyperparameters = {**given.hyperparameters, TUNED: dict(chosen.hyperparameters)}
    run_fn.run_fn(given)
    [(run, trained)] = exported
    assert run.training_id == chosen.result.training_id
    assert run.config.learning_rate == chosen.hyperparameters["learning_rate"]
    assert trained.step == 3
    assert [record.step for record in trained.history] == [1, 2, 3]


def test_nothing_is_searched_by_too_few_pictures(tmp_path: Path) -> None:
    latents = write_latents(tmp_path / "latents", held_out=6)
    with pytest.raises(UserError, match=r"tuning.trials = 3\): there are 6, but at least 16"):
        search(tmp_path, latents)


def test_weights_that_changed_since_are_refused(tmp_path: Path) -> None:
    given = arguments(tmp_path, write_latents(tmp_path / "latents"))
    given.custom_config["base_weights_hash"] = "other"
    with pytest.raises(ValueError, match="have changed since the run was prepared"):
        run_fn.run_fn(given)


def prepared_with_class(
    folder: Path, latents: Path, others: Path | None, weight: float = 0.5, **rest: Any
) -> run_fn._Run:
    """A training with class pictures, before its first step."""
    given = arguments(folder, latents, reduce_batch_size="always")
    settings = TrainerSettings.from_json(
        {**given.custom_config, "prior_weight": weight, **rest}, given.hyperparameters
    )
    specs: list[dict[str, tf.TensorSpec]] = []
    with pytest.MonkeyPatch.context() as patch:
        # It takes long, and no step is done.
        patch.setattr(FineTuner, "trace", lambda _, spec: specs.append(spec) or [])
        patch.setattr(run_fn, "activation_bytes", lambda _: 0)
        place = None if others is None else str(others)
        run = run_fn._prepare(settings, given.train_files, None, place, tuned=False)
    [spec] = specs
    assert spec["prior/latent/mean"] == spec["latent/mean"]
    return run


def test_class_pictures_are_in_the_name_and_the_manifest_of_a_training(tmp_path: Path) -> None:
    own, others = (write_latents(tmp_path / name, held_out=2) for name in ("own", "others"))
    run = prepared_with_class(tmp_path, own, others)
    facts = run_fn._prior_facts(run)
    assert (facts["uri"], facts["weight"]) == (str(others), 0.5)
    assert facts["counts"] == {"train": EXAMPLES, "eval": 2}
    # All of them are trained on, and so can judge nothing that is made of this.
    assert [Path(path).parent.name for path in run.prior.files] == ["Split-eval", "Split-train"]
    given = run.settings, run.config, BASE_MODEL, run.latents, run.latents_uri, None
    again = ClassLatents.read(str(others))
    assert run_fn._name(run_fn._facts(*given, again)) == run.training_id
    weighed = dataclasses.replace(run.settings, prior_weight=1.0), *given[1:]
    others = ClassLatents.read(str(write_latents(tmp_path / "x", 0)))
    names = {
        run.training_id,
        *(run_fn._name(run_fn._facts(*facts)) for facts in ((*weighed, again), (*given, others))),
        run_fn._name(run_fn._facts(*given)),
    }
    assert len(names) == 4
    assert "prior" not in run_fn._facts(*given)


def test_class_pictures_that_are_missing_or_of_another_model_are_refused(tmp_path: Path) -> None:
    own = write_latents(tmp_path / "own")
    with pytest.raises(UserError, match="give their folder with --class-latents, or set prior"):
        prepared_with_class(tmp_path, own, None)
    other = write_latents(tmp_path / "other", encoders_hash="another")
    with pytest.raises(UserError, match="the latents were made for another model"):
        prepared_with_class(tmp_path, own, other)


def test_a_training_is_named_by_what_decides_its_weights(tmp_path: Path) -> None:
    first, again = (write_latents(tmp_path / name) for name in ("first", "again"))
    other = write_latents(tmp_path / "other", broken=0)

    def found(latents: Path = first, **changed: Any) -> str:
        given = arguments(tmp_path, latents)
        run, training, rest = given.hyperparameters, given.custom_config["training"], {}
        for name, value in changed.items():
            of_training = name in TrainingConfig.__dataclass_fields__
            target = run if name in run else training if of_training else rest
            target[name] = value
        settings = TrainerSettings.from_json({**given.custom_config, **rest}, run)
        facts = run_fn._facts(
            settings,
            settings.training.for_examples(EXAMPLES, PRESET),
            BASE_MODEL,
            LatentsManifest.read(str(latents)),
            str(latents),
            None,
        )
        return run_fn._name(facts)

    assert found(again) == found()
    assert found(other) != found()
    validation = {
        "prompts": ["x"],
        "seed": 2,
        "sampler": "ddim",
        "num_steps": 3,
        "guidance_scale": 1.0,
        "every_steps": 0,
    }
    without_effect = {
        "export_weights": "float16",
        "compute": "auto",
        "checkpoint_dir": "elsewhere",
        "base_weights": "/moved/elsewhere",
        "validation": validation,
        "memory_check": "warn",
        "checkpoint_every_steps": 7,
        "checkpoints_kept": 9,
        "log_every_steps": 3,
        "image_to_image": True,
        # What 1.5 epochs of 8 examples are.
        "steps": 3,
    }
    assert found(**without_effect) == found()
    with_effect = {
        "code_version": "abd",
        "base_weights_hash": "other",
        "image_size": 128,
        "steps": 4,
        "learning_rate": 0.5,
        "seed": 4,
        "batch_size": 2,
        "accumulation_steps": 2,
        "optimizer": "lion",
        "learning_rate_schedule": "linear",
        "warmup_steps": 1,
        "weight_decay": 0.5,
        "max_gradient_norm": 0.5,
        "ema_decay": 0.5,
        "caption_dropout": 0.5,
        "min_snr_gamma": 0.5,
        "noise_offset": 0.5,
        "lora_rank": 1,
        "lora_alpha": 0.5,
        "train_text_encoder": True,
        "precision": "bfloat16",
        "xla": "on",
        "gradient_checkpointing": True,
        "devices": "one",
        "keep": "best",
        "stop_early": 2,
    }
    # Where nothing is chosen by held-out losses, it does not matter what they are of.
    of_choice = {"evaluate_every_steps": 5, "choose_from_pictures": 8}
    assert found(**of_choice) == found()
    for name, value in of_choice.items():
        assert found(keep="best", **{name: value}) != found(keep="best")
    ids = {name: found(**{name: value}) for name, value in with_effect.items()}
    assert len({found(), *ids.values()}) == 1 + len(ids)
    # Whoever adds a setting has to say which kind it is.
    assert {f.name for f in dataclasses.fields(TrainingConfig)} == (
        WITHOUT_EFFECT_ON_WEIGHTS
        | set(of_choice)
        | (set(with_effect) - {"code_version", "base_weights_hash", "image_size"})
    )


WORD = new_word("<thing>", "animal", 2)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a word was learned."""
    folder = tmp_path_factory.mktemp("word")
    latents = write_latents(folder / "latents", held_out=20, word=dataclasses.asdict(WORD))
    given = arguments(folder, latents)
    told = {**dataclasses.asdict(WORD), "learned_from": None, "learned_sha256": None}
    given.custom_config["word"] = told

    def export(place: str, modules: ServingModules, training_id: str) -> None:
        """All weights, and the text encoder's signature: drawing takes long to trace."""
        text = modules.text_encoder
        tf.saved_model.save(text, f"{place}/text_encoder", signatures={"text": text.text})
        for network in ("diffusion_model", "decoder"):
            module = tf.Module()
            module._variables = getattr(modules, network)._variables
            tf.saved_model.save(module, f"{place}/{network}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_fn, "draw_validation", lambda *_: None)
        patch.setattr(run_fn, "export_models", export)
        run_fn.run_fn(given)
    return folder


def test_a_words_model_is_the_base_model_that_knows_it(taught: Path) -> None:
    exported = taught / "Format-Serving"
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["word"] == dataclasses.asdict(WORD)
    assert manifest["text_encoder_trained"] is True
    assert manifest["trainable_parameters"] == 2 * 8
    learned = safetensors.numpy.load_file(exported / "learned_embeds.safetensors")
    for network, model in (
        ("diffusion_model", BASE_MODEL.build("diffusion_model")),
        ("decoder", BASE_MODEL.build("decoder")),
    ):
        stored = exported_values(str(exported / network), network, model)
        for weight, value in zip(model.weights, stored, strict=True):
            np.testing.assert_array_equal(weight, value)
    # What is pushed takes the word as text, and has the vectors of the file.
    served = tf.saved_model.load(str(exported / "text_encoder")).signatures["text"]
    text = ["a <thing>, so", "a animal"]
    found = served(prompt=tf.constant(text), negative_prompt=tf.constant(["", ""]))["context"]
    encoder = BASE_MODEL.build("text_encoder")
    tokens = tokenize(text, word=WORD)
    np.testing.assert_allclose(found[1], encoder(tokens[1:])[0], atol=1e-5)
    encoder = with_vectors(encoder, PRESET, learned["<thing>"])
    np.testing.assert_allclose(found[0], encoder(tokens[:1])[0], atol=1e-5)
    # A single file has the vocabulary alone.
    place, alone = str(exported / "text_encoder"), BASE_MODEL.build("text_encoder")
    for weight, value in zip(
        alone.weights, diffusers_export._without_word(place, alone, PRESET, WORD), strict=True
    ):
        np.testing.assert_array_equal(weight, value)
    header = safetensors.safe_open(exported / "learned_embeds.safetensors", "np").metadata()
    assert header["modelspec.trigger_phrase"] == "<thing>"
    assert header["training_id"] == manifest["training_id"]


def prepared(folder: Path, latents: Path, start: Path | None, word: dict[str, Any]) -> run_fn._Run:
    """A training before its first step, with the word or, of none, without."""
    given = arguments(folder, latents)
    settings = TrainerSettings.from_json(
        {**given.custom_config, **({"word": word} if word else {})}, given.hyperparameters
    )
    model = None if start is None else str(start / "Format-Serving")
    with pytest.MonkeyPatch.context() as patch:
        # It takes long, and no step is done.
        patch.setattr(FineTuner, "trace", lambda *_: [])
        patch.setattr(run_fn, "activation_bytes", lambda _: 0)
        return run_fn._prepare(settings, given.train_files, model, tuned=False)


@pytest.mark.slow
def test_a_word_is_kept_and_trained_on(taught: Path, tmp_path: Path) -> None:
    path = taught / "Format-Serving" / "learned_embeds.safetensors"
    learned = safetensors.numpy.load_file(path)["<thing>"]
    fields = dataclasses.asdict(WORD)
    latents = taught / "latents"
    # From the model; or from the file, as it could be another tool's; both by the same name.
    from_file = {**fields, "learned_from": str(path), "learned_sha256": "abc"}
    for start, word in ((taught, fields), (None, from_file)):
        run = prepared(tmp_path, latents, start, word)
        np.testing.assert_array_equal(run.tuner.variables[0], learned)
        assert run.word == WORD
    facts = [
        run_fn._facts(run.settings, run.config, run.base_model, run.latents, run.latents_uri, None)[
            "word"
        ]
    ]
    assert facts == [{**fields, "learned_sha256": "abc"}]
    # A training of everything else keeps it, too.
    plain = write_latents(tmp_path / "plain")
    run = prepared(tmp_path, plain, taught, {})
    assert run.word == WORD
    assert run.tuner.new_vectors is None
    table = run.networks[0].get_layer("text_model.embeddings").token_embedding.embeddings
    np.testing.assert_array_equal(table[49408:], learned)
    other = {**fields, "token": "<other>"}
    of_other = write_latents(tmp_path / "other", word=other)
    with pytest.raises(UserError, match=r"knows the word <thing> with 2 vectors.* <other> with 2"):
        prepared(tmp_path, of_other, taught, other)
    with pytest.raises(UserError, match=r"no new word, .*<thing>.*run LatentGen again"):
        prepared(tmp_path, plain, None, fields)
