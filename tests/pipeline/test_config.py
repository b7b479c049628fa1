"""The configuration tree, through `load_config` and through the real command line."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from signing_keys import key_pair

import runner_local
from pipeline.config import (
    DEFAULT_FILE,
    ConfigError,
    DatasetConfig,
    EvaluationConfig,
    check_keys,
    load_config,
    prompt_notes,
    resolve_clip_model,
    resolve_dataset,
    save_config,
)
from pipeline.config.buckets import BUCKET_LIMITS
from pipeline.config.schema import SECTIONS, WordConfig
from pipeline.vertex.config import VertexConfig
from trainer.presets import get_preset, preset_names

REPO_ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def write(tmp_path):
    def write_file(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write_file


def test_defaults_are_resolved_by_the_preset():
    config = load_config()
    recommended = get_preset("tiny").training
    assert config.training.steps == recommended.steps
    assert config.training.batch_size == recommended.batch_size
    assert config.training.learning_rate == recommended.learning_rate
    assert config.model.image_size == 128
    sampling = get_preset("tiny").sampling
    for name, value in dataclasses.asdict(sampling).items():
        assert getattr(config.validation, name) == value
    assert config.dataset.path == str(REPO_ROOT / "data" / "creatures")
    # What the dataset asks for, or captions that are held out.
    assert config.validation.prompts is None
    assert config.output == str(Path.cwd() / "runs" / "default")


def test_full_size_preset_brings_its_own_values(tmp_path, write):
    for file in get_preset("sd-v1-4").weight_files.values():
        (tmp_path / file.name).touch()
    text = f"model: {{preset: sd-v1-4, base_weights: {tmp_path}}}"
    config = load_config(write(text))
    assert config.model.image_size == 512
    drawn = config.validation
    assert (drawn.sampler, drawn.num_steps, drawn.guidance_scale) == ("ddim", 25, 7.5)
    assert config.training.steps == get_preset("sd-v1-4").training.steps


def test_every_value_is_set_after_resolution():
    def leaves(tree):
        for value in tree.values():
            yield from leaves(value) if isinstance(value, dict) else [value]

    config = load_config()
    open_fields = {"config", "image_column", "caption_column", "caption_template", "schema"}
    open_fields |= {"form", "caption", "captions_from", "withdrawn"}
    closed = dataclasses.asdict(config) | {"dataset": {}, "evaluation": {}, "vertex": {}}
    # There is no class.
    for name in ("caption", "folder", "folder_fingerprint", "max_distance"):
        assert closed["prior"].pop(name) is None
    # Nothing is signed.
    for name in ("sign_key", "sign_key_env", "c2pa_certificate", "c2pa_key_env"):
        assert closed["serving"].pop(name) is None
    word = closed.pop("word")
    # None is learned.
    assert {name for name, value in word.items() if value is None} == {
        "token",
        "initial",
        "learned_from",
    }
    # The dataset says, or the Trainer finds captions that are held out.
    assert closed["validation"].pop("prompts") is None
    # What the base weights do.
    for name in ("prediction", "zero_terminal_snr"):
        assert closed["model"].pop(name) is None
    # Of buckets, the preset's and the square's, where there are any.
    for name in ("step", "max_pixels", "min_side", "max_side"):
        assert closed["model"].pop(f"bucket_{name}") is None
    # Only where it is asked for.
    assert closed["serving"].pop("checkpoint") is None
    # Twenty times a run, however long it is.
    assert closed["training"].pop("evaluate_every_steps") is None
    # Around the training's own.
    assert closed["tuning"].pop("learning_rate") is None
    assert None not in list(leaves(closed))
    unset = {name for name, value in vars(config.dataset).items() if value is None}
    assert unset <= open_fields
    unset = {name for name, value in vars(config.evaluation).items() if value is None}
    assert unset == {"clip_model", "measures", "max_memorization_gap", "max_copies"}


def test_what_is_started_from_is_what_is_compared_with(tmp_path, monkeypatch):
    def of(**flags):
        config = load_config(None, {k.replace("__", "."): ("--x", v) for k, v in flags.items()})
        return config.model.start_from, config.evaluation.baseline

    assert of() == ("base", "latest_blessed")
    assert of(model__start_from="latest_blessed") == ("latest_blessed", "started_from")
    assert of(model__start_from="release:12") == ("release:12", "started_from")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "7").mkdir()
    assert of(model__start_from="7") == (str(tmp_path / "7"), "started_from")
    assert of(model__start_from="gs://b/7", evaluation__baseline="base_weights") == (
        "gs://b/7",
        "base_weights",
    )


@pytest.mark.parametrize(
    ("size", "given", "expected"), [(64, None, 32), (128, None, 32), (192, None, 0), (192, 5, 5)]
)
def test_pictures_are_drawn_where_they_are_small(size, given, expected):
    flags = {"model.image_size": ("--image-size", size)}
    if given is not None:
        flags["evaluation.num_samples"] = ("--x", given)
        flags["evaluation.num_training_samples"] = ("--y", given)
    evaluation = load_config(flags=flags).evaluation
    assert evaluation.num_samples == expected
    assert evaluation.num_training_samples == (16 if expected == 32 else expected)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            "max_memorization_gap: 0.3, num_training_pictures: 0",
            r"evaluation\.max_memorization_gap = 0\.3 .*is impossible with "
            r"evaluation\.num_training_pictures = 0: no training pictures are scored",
        ),
        (
            "max_copies: 0.0, num_training_samples: 0",
            r"evaluation\.max_copies = 0\.0 .*is impossible with "
            r"evaluation\.num_training_samples = 0: no pictures are drawn for training captions",
        ),
        ("max_copies: 1.5", r"evaluation\.max_copies = 1\.5 .*is impossible: it must be"),
    ],
)
def test_nothing_is_refused_for_what_nobody_looks_for(write, settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        load_config(write(f"evaluation: {{{settings}}}"))


def test_a_clip_needs_pictures_and_its_files(write, tmp_path):
    clip = f"clip_model: {tmp_path}"
    with pytest.raises(
        ConfigError, match=r"with evaluation\.num_samples = 0: there are no pictures"
    ):
        load_config(write(f"evaluation: {{{clip}, num_samples: 0}}"))
    config = load_config(write(f"evaluation: {{{clip}}}"))
    with pytest.raises(ConfigError, match=r"evaluation\.clip_model = .*config\.json is missing"):
        resolve_clip_model(config)
    nothing = load_config()
    assert resolve_clip_model(nothing) is nothing


def test_a_dataset_asks_for_what_is_particular_to_it(write_dataset, write, tmp_path):
    dataset = write_dataset(tmp_path / "pictures", 40)
    creatures, _ = resolve_dataset(load_config())
    every = ("colour_agreement", "shape_agreement", "eyes_agreement", "feature_agreement")
    assert creatures.evaluation.measures == every
    other = load_config(flags={"dataset.path": ("--dataset", str(dataset))})
    assert resolve_dataset(other)[0].evaluation.measures == ()
    (dataset / "README.md").write_text("---\nmeasures: [colours]\n---\n")
    with pytest.raises(ConfigError, match=r"README\.md .* evaluation\.measures overrides"):
        resolve_dataset(other)
    path = write(f"dataset: {{path: {dataset}}}\nevaluation: {{measures: [colour_agreement]}}")
    assert resolve_dataset(load_config(path))[0].evaluation.measures == ("colour_agreement",)
    problem = r"evaluation\.measures = .*'size' is not a measure"
    with pytest.raises(ConfigError, match=problem):
        load_config(write("evaluation: {measures: [size]}"))


def test_a_dataset_says_what_is_drawn_unless_the_user_does(write_dataset, tmp_path):
    creatures, _ = resolve_dataset(load_config())
    assert len(creatures.validation.prompts) == 10
    assert creatures.validation.prompts[0] == "a drawing of a round blue creature with horns"
    dataset = write_dataset(tmp_path / "pictures", 40)
    flags = {"dataset.path": ("--dataset", str(dataset))}
    # Captions that are held out: the Trainer has them.
    assert resolve_dataset(load_config(flags=flags))[0].validation.prompts is None
    (dataset / "README.md").write_text("---\nvalidation_prompts: [a dragon, two]\n---\n")
    assert resolve_dataset(load_config(flags=flags))[0].validation.prompts == ("a dragon", "two")
    given = {**flags, "validation.prompts": ("--prompt", ["a bird"])}
    assert resolve_dataset(load_config(flags=given))[0].validation.prompts == ("a bird",)
    asked, _ = runner_local._parse(["--prompt", "1", "--prompt", "a bird"])
    assert asked.validation.prompts == ("1", "a bird")
    for wrong, said in (("a dragon", "must be a list of texts"), (["x"] * 65, "has 65 prompts")):
        (dataset / "README.md").write_text(f"---\nvalidation_prompts: {wrong}\n---\n")
        with pytest.raises(ConfigError, match=f"`validation_prompts` in README.md .*{said}"):
            resolve_dataset(load_config(flags=flags))


def test_file_is_merged_key_by_key_and_flags_have_the_last_word(write):
    path = write("training: {steps: 7, batch_size: 3}\nmodel:\n  flip: always\nevaluation:\n")
    config = load_config(path, {"training.steps": ("--steps", 9)})
    assert (config.training.steps, config.training.batch_size) == (9, 3)
    assert config.model.flip == "always"
    assert config.model.preset == "tiny"
    assert config.training.weight_decay == load_config().training.weight_decay


def test_of_several_files_the_last_one_wins_key_by_key(tmp_path, capsys):
    recipe, mine, wrong = (tmp_path / name for name in ("recipe.yaml", "mine.yaml", "wrong.yaml"))
    recipe.write_text("training: {steps: 7, batch_size: 3}\nmodel: {flip: never}\n")
    mine.write_text("training: {steps: 8}\n")
    wrong.write_text("training: {steps: -1}\n")
    config, _ = runner_local._parse(["--config", str(recipe), "--config", str(mine)])
    assert (config.training.steps, config.training.batch_size) == (8, 3)
    assert config.model.flip == "never"
    argv = ["--config", str(recipe), "--config", str(wrong)]
    expect_one_line(runner_local.main(argv), capsys, [f"training.steps = -1 (in {wrong})"])


def test_recommended_warmup_is_shortened_to_half_of_the_steps():
    assert load_config(flags={"training.steps": ("--steps", 5)}).training.warmup_steps == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1E-4", 1e-4), ("2.5e-3", 2.5e-3), ("3e-05", 3e-5), ("1", 1.0), (".5", 0.5)],
)
def test_yaml_floats_as_people_write_them(write, text, value):
    assert (
        load_config(write(f"training: {{learning_rate: {text}}}")).training.learning_rate == value
    )


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("xla: on", "xla", "on"),
        ("xla: off", "xla", "off"),
        ("gradient_checkpointing: true", "gradient_checkpointing", True),
        ("train_text_encoder: False", "train_text_encoder", False),
    ],
)
def test_yaml_words_as_people_write_them(write, tmp_path, text, key, value):
    config = load_config(write(f"training: {{{text}}}"))
    assert getattr(config.training, key) is value or getattr(config.training, key) == value
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_empty_file_changes_nothing(write):
    assert load_config(write("# nothing here\n")) == load_config()


def test_saved_config_reads_back_to_an_equal_tree(tmp_path):
    config = load_config(flags={"training.learning_rate": ("--learning-rate", 1e-4)})
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_output_is_a_section_or_the_folder_alone(write, tmp_path):
    config = load_config()
    assert (config.keep_runs, config.keep_checkpoints) == (0, False)
    assert load_config(write("output: out")) == dataclasses.replace(
        config, output=str(Path.cwd() / "out")
    )
    text = "output: {folder: out, keep_runs: 3, keep_checkpoints: true}"
    config = load_config(write(text))
    assert config.output == str(Path.cwd() / "out")
    assert (config.keep_runs, config.keep_checkpoints) == (3, True)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    kept = load_config(write("output: {keep_runs: 1}"))
    assert (kept.output, kept.keep_runs) == (load_config().output, 1)


def test_the_saved_settings_of_a_folder_that_was_moved_are_those_of_where_it_is(
    write_dataset, tmp_path
):
    before, after = tmp_path / "before", tmp_path / "after"
    write_dataset(before / "pictures", 20)
    given = {
        "output": ("--output", str(before)),
        "dataset.path": ("--dataset", str(before / "pictures")),
    }
    save_config(load_config(flags=given), before / "config.yaml")
    # A file that somebody else put there is taken at its word.
    (before / "mine.yaml").write_text((before / "config.yaml").read_text())
    assert load_config(before / "config.yaml").output == str(before)
    (before / "metadata.sqlite").touch()
    before.rename(after)
    config = load_config(after / "config.yaml")
    assert (config.output, config.dataset.path) == (str(after), str(after / "pictures"))
    assert load_config(after / "mine.yaml").output == str(before)


SECRET = "hunter2"
SECRET_URL = f"http://me:{SECRET}@host/x"


@pytest.mark.parametrize("key", ["dataset.path", "dataset.schema", "model.base_weights", "output"])
@pytest.mark.parametrize("in_file", [False, True])
def test_a_secret_in_an_address_is_refused_and_never_said(tmp_path, capsys, key, in_file):
    section, _, name = key.rpartition(".")
    if in_file:
        (tmp_path / "mine.yaml").write_text(
            yaml.safe_dump({section: {name: SECRET_URL}} if section else {name: SECRET_URL})
        )
        argv = ["--config", str(tmp_path / "mine.yaml")]
    else:
        flags = {"path": "dataset", "schema": "schema", "base_weights": "base-weights"}
        argv = [f"--{flags.get(name, name)}", SECRET_URL]
    assert runner_local.main(argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {key} (")
    assert "http://***@host/x has a password" in said.err
    assert ".netrc" in said.err
    assert SECRET not in said.err


@pytest.mark.parametrize(
    "text",
    [
        f"evaluation: {{clip_model: {SECRET_URL}}}",
        f"vertex: {{api_endpoint: 'https://{SECRET}@host'}}",
        f"validation: {{prompts: [a fox, 'like {SECRET_URL}']}}",
        f"dataset: {SECRET_URL}",
        SECRET_URL,
        f"{SECRET_URL!r}: 3",
        f"dataset: {{'{SECRET_URL}': 3}}",
        f"model: {{image_size: {SECRET_URL}}}",
        f"model: {{preset: {SECRET_URL}}}",
    ],
)
def test_no_message_about_a_file_shows_a_secret(write, tmp_path, capsys, text):
    assert runner_local.main(["--config", write(text)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert SECRET not in said.err + said.out


@pytest.mark.parametrize(
    "argv",
    [
        [SECRET_URL],
        [f"--datset={SECRET_URL}"],
        ["--steps", SECRET_URL],
        ["--verbose=" + SECRET_URL],
    ],
)
def test_no_message_about_a_flag_shows_a_secret(capsys, argv):
    assert runner_local.main(argv) == 2
    assert SECRET not in capsys.readouterr().err


def test_relative_paths_start_at_the_current_folder(write_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = {"dataset.path": ("--dataset", "pictures"), "output": ("--output", "out")}
    config = load_config(flags=flags)
    write_dataset(tmp_path / "pictures", 30)
    half = dataclasses.replace(config.dataset, eval_fraction=0.5)
    config, fingerprint = resolve_dataset(dataclasses.replace(config, dataset=half))
    assert config.dataset.path == str(tmp_path / "pictures")
    assert len(fingerprint) == 64
    assert config.output == str(tmp_path / "out")
    assert load_config().dataset.path == str(REPO_ROOT / "data" / "creatures")


def test_addresses_are_left_as_they_are():
    flags = {"dataset.path": ("--dataset", "gs://bucket/pictures")}
    assert load_config(flags=flags).dataset.path == "gs://bucket/pictures"


def test_default_file_explains_every_key_and_names_the_presets_values():
    text = DEFAULT_FILE.read_text()
    tree = yaml.safe_load(text)
    for section, cls in SECTIONS.items():
        assert list(tree[section]) == [field.name for field in dataclasses.fields(cls)]
    lines = text.splitlines()
    no_preset_decides = {
        field.name
        for cls in (DatasetConfig, EvaluationConfig, VertexConfig, WordConfig)
        for field in dataclasses.fields(cls)
    } | {"prompts", "checkpoint", "evaluate_every_steps", "zero_terminal_snr"}
    no_preset_decides |= {"folder", "folder_fingerprint", "num_compared", "max_distance"}
    no_preset_decides |= {"sign_key", "sign_key_env", "c2pa_certificate", "c2pa_key_env"}
    no_preset_decides |= {f"bucket_{name}" for name in BUCKET_LIMITS}
    for number, line in enumerate(lines):
        if re.match(r"  [a-z_]+:", line):
            assert lines[number - 1].startswith("  #"), f"{line} is not explained"
        section = line.partition(":")[0] if re.match("[a-z]", line) else section
        match = re.match(r"  ([a-z_]+): null", line)
        # The search goes by the training's learning rate.
        if match and match[1] not in no_preset_decides and section != "tuning":
            comment = " ".join(lines[max(0, number - 4) : number])
            for preset in map(get_preset, preset_names()):
                places = (preset.training, preset.sampling, preset)
                value = getattr(next(of for of in places if hasattr(of, match[1])), match[1])
                # Of the full-size ones, what is said of the first is so of all, unless it is said.
                names = (preset.name, "sd-v1-4")
                found = (re.findall(rf"{re.escape(n)} ([\w.-]+)", comment) for n in names)
                said = next(filter(None, found))[-1].rstrip(".")
                assert said in (value, str(value).lower()) or float(said) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainin: {steps: 3}", ["'trainin'", "did you mean 'training'?"]),
        ("training: {batchsize: 3}", ["'training.batchsize'", "'training.batch_size'"]),
        ("steps: 3", ["'steps'", "did you mean 'training.steps'?"]),
        ("zzz: 3", ["'zzz'", "dataset", "training", "output"]),
        ("output: {keep_run: 3}", ["'output.keep_run'", "did you mean 'output.keep_runs'?"]),
        ("output: {keep_runs: -1}", ["output.keep_runs = -1", "a whole number of at least 0"]),
        ("output: {keep_runs: true}", ["output.keep_runs = true", "a whole number"]),
        ("output: {keep_checkpoints: 1}", ["output.keep_checkpoints = 1", "true or false"]),
        ("training: 3", ["training = 3", "must be a section"]),
        ("training: {steps: abc}", ["training.steps = 'abc'", "a whole number of at least 1"]),
        ("training: {steps: 0}", ["training.steps = 0", "at least 1"]),
        ("training: {steps: -5}", ["training.steps = -5", "at least 1"]),
        ("training: {steps: true}", ["training.steps = true", "a whole number"]),
        ("training: {batch_size: 0}", ["training.batch_size = 0", "at least 1"]),
        ("training: {batch_size: 1.5}", ["training.batch_size = 1.5", "a whole number"]),
        ("training: {learning_rate: 0}", ["training.learning_rate = 0", "above 0"]),
        ("training: {learning_rate: .inf}", ["learning_rate = inf", "above 0"]),
        ("training: {learning_rate_schedule: step}", ["'step'", "constant, linear, cosine"]),
        ("training: {steps: 5, warmup_steps: 6}", ["warmup_steps = 6", "training.steps = 5"]),
        ("training: {weight_decay: null}", ["weight_decay = nothing", "at least 0"]),
        ("training: {epochs: -1}", ["training.epochs = -1", "at least 0"]),
        ("training: {epochs: .inf}", ["training.epochs = inf", "a number"]),
        ("training: {steps: 5, epochs: 2}", ["epochs = 2", "training.steps = 5", "give only one"]),
        ("training: {accumulation_steps: 0}", ["accumulation_steps = 0", "at least 1"]),
        (
            "training: {batch_size: 6, accumulation_steps: 4}",
            ["accumulation_steps = 4", "training.batch_size = 6", "must divide batch_size"],
        ),
        ("training: {min_snr_gamma: -1}", ["min_snr_gamma = -1", "at least 0"]),
        ("training: {noise_offset: yes}", ["noise_offset = 'yes'", "a number of at least 0"]),
        ("training: {caption_dropout: 1}", ["caption_dropout = 1", "at least 0 and below 1"]),
        ("training: {ema_decay: 1}", ["ema_decay = 1", "at least 0 and below 1"]),
        ("training: {max_gradient_norm: 0}", ["max_gradient_norm = 0", "above 0"]),
        ("training: {lora_rank: -4}", ["lora_rank = -4", "a whole number of at least 0"]),
        ("training: {lora_rank: 4.0}", ["lora_rank = 4.0", "a whole number of at least 0"]),
        ("training: {lora_alpha: 8}", ["lora_alpha = 8", "lora_rank = 0", "set lora_rank"]),
        ("training: {train_text_encoder: 1}", ["train_text_encoder = 1", "true or false, or null"]),
        ("training: {precision: fp16}", ["'fp16'", "auto, float32, bfloat16, float16"]),
        ("training: {xla: true}", ["training.xla = true", "auto, on, off"]),
        ("training: {gradient_checkpointing: auto}", ["'auto'", "true or false"]),
        ("training: {devices: 2}", ["training.devices = 2", "all, one"]),
        ("training: {memory_check: ignore}", ["'ignore'", "refuse, warn"]),
        ("training: {checkpoint_every_steps: 0}", ["checkpoint_every_steps = 0", "at least 1"]),
        ("training: {checkpoints_kept: 0}", ["checkpoints_kept = 0", "at least 1"]),
        ("training: {log_every_steps: 0}", ["log_every_steps = 0", "at least 1"]),
        ("training: {keep: first}", ["training.keep = 'first'", "last, best"]),
        ("training: {choose_from_pictures: 1}", ["choose_from_pictures = 1", "at least 2"]),
        (
            "training: {keep: best, evaluate_every_steps: 0}",
            ["keep = 'best'", "training.evaluate_every_steps = 0", "nothing can be chosen"],
        ),
        (
            "training: {stop_early: 3, evaluate_every_steps: 0}",
            ["stop_early = 3", "training.evaluate_every_steps = 0"],
        ),
        ("tuning: {trials: 1}", ["tuning.trials = 1", "nothing to be compared with", "try 12"]),
        ("tuning: {trials: -1}", ["tuning.trials = -1", "at least 0"]),
        ("tuning: {parallel_trials: 0}", ["parallel_trials = 0", "at least 1"]),
        ("tuning: {learning_rate: [1e-3]}", ["learning_rate = [0.001]", "the lowest and the"]),
        ("tuning: {learning_rate: [1e-2, 1e-3]}", ["the lowest and the highest", "[1e-4, 1e-2]"]),
        ("tuning: {learning_rate: 1e-3}", ["tuning.learning_rate = 0.001", "impossible"]),
        ("tuning: {rank: [4, 8]}", ["tuning.rank = [4, 8]", "training.lora_rank = 0", "adapters"]),
        ("tuning: {ema_decay: [0.9, 1]}", ["ema_decay = [0.9, 1]", "below 1"]),
        ("tuning: {trials: 12, ema_decay: [0.9, 0.9]}", ["ema_decay", "has a value twice"]),
        (
            "tuning: {trials: 12, learning_rate: [], min_snr_gamma: [5]}",
            ["tuning.trials = 12", "nothing to search", "give tuning.learning_rate a range"],
        ),
        ("validation: {every_steps: -1}", ["every_steps = -1", "at least 0"]),
        ("dataset: {eval_fraction: 0}", ["eval_fraction = 0", "above 0 and below 1"]),
        ("dataset: {eval_fraction: 1}", ["eval_fraction = 1", "above 0 and below 1"]),
        ("dataset: {path: [1]}", ["dataset.path", "text"]),
        ("model: {preset: tny}", ["'tny'", "tiny, sd-v1-4", "did you mean 'tiny'"]),
        ("model: {preset: 3}", ["model.preset = 3", "tiny, sd-v1-4"]),
        ("model: {image_size: 96}", ["96", "'tiny'", "multiple of 64"]),
        ("model: {image_size: 0}", ["model.image_size = 0", "at least 1"]),
        (
            "model: {preset: sd-v1-4, image_size: 192, base_weights: random}",
            ["192", "'sd-v1-4'", "multiple of 128"],
        ),
        (
            "model: {start_from: lates_blessed}",
            ["there is no such folder", "latest_blessed, release"],
        ),
        ("model: {start_from: 'release:three'}", ["'three' is not a release number", "release:N"]),
        ("model: {base_weights: /no/such}", ["'/no/such'", "no such folder", "'random'"]),
        ("model: {base_weights: /no/such.safetensors}", ["no such file", ".safetensors in the"]),
        (
            "model: {base_weights: gs://b/x.ckpt}",
            ["gs://b/x.ckpt is a pickle", "weights_only=True"],
        ),
        ("model: {flip: true}", ["model.flip = true", "auto, always, never"]),
        ("model: {crop: left}", ["model.crop = 'left'", "centre, random"]),
        ("model: {buckets: 1}", ["model.buckets = 1", "true or false"]),
        (
            "model: {bucket_step: 64}",
            ["model.bucket_step = 64", "model.buckets = false", "set model.buckets to true"],
        ),
        (
            "model: {buckets: true, bucket_step: 48}",
            ["model.bucket_step = 48", "preset 'tiny' requires", "multiples of 32"],
        ),
        (
            "model: {buckets: true, bucket_min_side: 160, bucket_max_side: 96}",
            ["model.bucket_max_side = 96", "at least the shortest side, 160"],
        ),
        (
            "model: {buckets: true, bucket_max_pixels: 4000}",
            ["bucket_max_pixels = 4000", "shortest side, 64, has 4,096 pixels"],
        ),
        ("dataset: {max_pixels: 0}", ["dataset.max_pixels = 0", "at least 1"]),
        ("dataset: {max_aspect_ratio: 0.5}", ["max_aspect_ratio = 0.5", "at least 1"]),
        ("dataset: {near_duplicates: drop}", ["'drop'", "keep_together, keep_one, ignore"]),
        (
            "dataset: {caption_template: sks}",
            ["'sks' (in ", "is not a template", "{caption} exactly once"],
        ),
        ("dataset: {caption_template: '{title}'}", ["'{title}'", "there is no field {title}"]),
        ("dataset: {tag_shuffle: -1}", ["dataset.tag_shuffle = -1", "at least 0"]),
        ("dataset: {tag_dropout: 1.0, tag_shuffle: 4}", ["dataset.tag_dropout = 1.0"]),
        ("dataset: {tag_dropout: 0.1}", ["tag_dropout = 0.1", "dataset.tag_shuffle = 0"]),
        ("dataset: {fail_on_anomalies: 1}", ["fail_on_anomalies = 1", "true or false"]),
        ("dataset: {schema: /no/such}", ["'/no/such'", "No such file", "schema.pbtxt"]),
        ("validation: {prompts: []}", ["validation.prompts", "a list of texts"]),
        (
            "validation: {prompts: [a dragon, '&nbsp;']}",
            ["validation.prompts: prompt 2 of 2 is empty: say what to draw"],
        ),
        ("validation: {prompts: one}", ["validation.prompts = 'one'", "a list of texts"]),
        ("training:\n  steps: 3\n  steps: 4\n", ["line 3", "'steps' is given twice"]),
        ("training: {steps: [1}", ["line 1", "not valid YAML"]),
        ("- training", ["must hold keys and values"]),
        ("1: 2", ["the key 1 is not a name"]),
    ],
)
def test_wrong_file_is_one_line_and_status_2(write, tmp_path, capsys, text, said):
    output = tmp_path / "out"
    status = runner_local.main(["--config", write(text), "--output", str(output)])
    expect_one_line(status, capsys, said)
    assert not output.exists()


def test_full_size_takes_the_published_weights_and_never_noise_instead(tmp_path):
    # The hub's library reads its settings at import.
    done = subprocess.run(
        [sys.executable, "runner_local.py", "--preset", "sd-v1-4", "--output", tmp_path / "out"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "model.base_weights = 'default'" in done.stderr
    assert "'fchollet/stable-diffusion' is not in the hub's cache" in done.stderr


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--steps", "abc"], ["training.steps = 'abc' (from --steps)", "a whole number"]),
        (["--steps", "-1"], ["training.steps = -1 (from --steps)", "at least 1"]),
        (["--steps", "1e3"], ["training.steps = 1000.0 (from --steps)", "a whole number"]),
        (["--steps"], ["--steps", "expected one argument"]),
        (["--batch-size", "0"], ["training.batch_size = 0 (from --batch-size)"]),
        (["--learning-rate", "nan"], ["training.learning_rate = nan (from --learning-rate)"]),
        (["--epochs", "-1"], ["training.epochs = -1 (from --epochs)", "at least 0"]),
        (["--epochs", "2", "--steps", "5"], ["epochs = 2 (from --epochs)", "give only one"]),
        (["--lora-rank", "x"], ["training.lora_rank = 'x' (from --lora-rank)", "whole number"]),
        (["--precision", "half"], ["'half' (from --precision)", "auto, float32, bfloat16"]),
        (["--seed", "-1"], ["seed = -1 (from --seed)", "at least 0"]),
        (
            ["--preset", "huge"],
            ["model.preset = 'huge' (from --preset)", "tiny, sd-v1-4"],
        ),
        (["--image-size", "100"], ["model.image_size = 100 (from --image-size)", "64"]),
        (["--stepz", "3"], ["'--stepz'", "did you mean --steps?"]),
        (["--resolution", "64"], ["'--resolution'", "did you mean --image-size?"]),
        (["surplus"], ["'surplus'", "--help"]),
        (["--config", "/no/such.yaml"], ["/no/such.yaml does not exist"]),
        (["--config", "/"], ["/ cannot be read"]),
        (["--output", ""], ["output"]),
        (["--output", "gs://bucket/run"], ["a folder on this machine"]),
    ],
)
def test_wrong_flag_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, argv, said):
    monkeypatch.chdir(tmp_path)
    expect_one_line(runner_local.main(argv), capsys, said)
    assert list(tmp_path.iterdir()) == []


def test_seed_flag_sets_training_and_validation_but_not_what_is_held_out():
    config, _ = runner_local._parse(["--seed", "5"])
    assert (config.training.seed, config.validation.seed) == (5, 5)
    assert (config.dataset.seed, config.evaluation.seed) == (0, 0)


def test_flag_texts_that_look_like_numbers_stay_texts():
    config, _ = runner_local._parse(["--output", "2024", "--dataset", "1e3"])
    assert Path(config.output).name == "2024"
    assert Path(config.dataset.path).name == "1e3"


def test_dataset_that_is_not_there(tmp_path, capsys):
    argv = ["--dataset", str(tmp_path / "none"), "--output", str(tmp_path / "out")]
    expect_one_line(runner_local.main(argv), capsys, [str(tmp_path / "none")])
    assert not (tmp_path / "out").exists()


def test_dataset_without_parquet_files(tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    argv = ["--dataset", str(tmp_path / "pictures"), "--output", str(tmp_path / "out")]
    expect_one_line(runner_local.main(argv), capsys, ["arquet"])


def test_a_single_picture(write, write_dataset, tmp_path, capsys):
    folder = write_dataset(tmp_path / "pictures", 1)
    argv = ["--dataset", str(folder), "--output", str(tmp_path / "out")]
    expect_one_line(runner_local.main(argv), capsys, ["all 1 rows", "there must be at least two"])
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written_to(dataset, tmp_path, capsys):
    (tmp_path / "file").touch()
    argv = ["--dataset", str(dataset), "--output", str(tmp_path / "file" / "out")]
    expect_one_line(runner_local.main(argv), capsys, ["cannot be written to", "--output"])


def test_metadata_that_is_no_database(dataset, tmp_path, capsys):
    (tmp_path / "metadata.sqlite").write_text("no database" * 1000)
    argv = ["--dataset", str(dataset), "--output", str(tmp_path)]
    expect_one_line(runner_local.main(argv), capsys, ["metadata.sqlite", "move it away"])


@pytest.mark.parametrize("argv", [["--help"], ["--steps", "0"]])
def test_help_and_errors_load_neither_tensorflow_nor_tfx(argv):
    script = (
        "import runner_local, sys\n"
        f"try:\n    status = runner_local.main({argv!r})\n"
        "except SystemExit as error:\n    status = error.code\n"
        "heavy = {'tensorflow', 'tfx', 'apache_beam', 'keras'} & set(sys.modules)\n"
        "print(f'status {status}, heavy {sorted(heavy)}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(REPO_ROOT)),
        check=True,
    )
    status = 0 if argv == ["--help"] else 2
    assert done.stdout.splitlines()[-1] == f"status {status}, heavy []"
    if argv == ["--help"]:
        flags = "--dataset --preset --steps --epochs --batch-size --learning-rate --lora-rank"
        for flag in (*flags.split(), "--precision", "--seed"):
            assert flag in done.stdout
        assert "examples:" in done.stdout


def expect_one_line(status: int, capsys: pytest.CaptureFixture[str], said: list[str]) -> None:
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    for text in said:
        assert text in captured.err


def test_validation_prompts_that_will_be_cut_are_named(tmp_path):
    long = "a dragon with " + "very " * 71 + "long horns"
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"validation": {"prompts": ["a dragon", long]}}))
    [note] = prompt_notes(load_config(str(path)))
    assert note.startswith(f"{long!r} is longer than the 77 tokens")
    assert note.endswith("has no effect: 'horns'")


def test_what_is_withdrawn_is_another_dataset_and_checked_before_a_run(tmp_path: Path) -> None:
    listed = tmp_path / "withdrawn.txt"
    listed.write_text("caption:a creature # asked for by mail\n")
    config = load_config(None, {"dataset.withdrawn": ("--withdrawn", str(listed))})
    assert config.dataset.withdrawn == str(listed)
    assert resolve_dataset(config)[1] != resolve_dataset(load_config())[1]
    listed.write_text("# what was asked for\ncaption:a creature\n")
    with pytest.raises(ConfigError) as error:
        resolve_dataset(config)
    assert str(error.value) == (
        f"dataset.withdrawn: {listed}, line 2: 'caption:a creature' has no reason: write "
        "sha256:HASH # REASON, row:ID # REASON or caption:TEXT # REASON"
    )
    listed.unlink()
    with pytest.raises(ConfigError, match=r"dataset\.withdrawn: .*withdrawn\.txt cannot be read"):
        resolve_dataset(config)


@pytest.mark.parametrize(
    ("serving", "message"),
    [
        ({"sign_key": "a", "sign_key_env": "B"}, r"both name a key; give only one of them"),
        ({"c2pa_certificate": "a"}, r"belong together: give both, or null for both"),
        ({"c2pa_key_env": "A"}, r"belong together: give both, or null for both"),
        ({"sign_key_env": "-----BEGIN"}, r"must be the name of an environment variable, such as"),
    ],
)
def test_what_is_signed_with_is_named(serving, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, {f"serving.{key}": ("--x", value) for key, value in serving.items()})


def test_keys_are_looked_at_before_anything_starts(tmp_path, monkeypatch):
    def of(**serving):
        check_keys(load_config(None, {f"serving.{k}": ("--x", v) for k, v in serving.items()}))

    of()
    private, _ = key_pair()
    monkeypatch.setenv("RELEASE_KEY", private.decode())
    of(sign_key_env="RELEASE_KEY")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "release.key").write_bytes(private)
    of(sign_key="release.key")
    with pytest.raises(
        ConfigError, match=r"serving\.sign_key_env names the environment variable NOT_THERE"
    ):
        of(sign_key_env="NOT_THERE")
    # A key in place of the certificates would go into every release.
    with pytest.raises(ConfigError, match="must hold only certificates in PEM"):
        of(c2pa_certificate="release.key", c2pa_key_env="PICTURE_KEY")
