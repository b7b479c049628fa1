"""The one configuration tree.

`pipeline/default.yaml` says what every key means and holds every default. A file of the user's
and then the command line's flags are laid over it, key by key; what results is validated whole
and frozen, with nothing left open. Importing this module imports no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tempfile
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
import pydantic
import yaml
from google.protobuf import text_format
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from tensorflow_metadata.proto.v0 import schema_pb2

from pipeline.vertex.settings import VertexConfig
from storage.errors import one_line
from trainer.presets import Preset, get_preset, preset_names
from trainer.training_config import ResolvedTrainingConfig, TrainingConfig

REPO_ROOT = Path(__file__).resolve().parent.parent
DEFAULT_FILE = Path(__file__).resolve().parent / "default.yaml"

_STRICT = ConfigDict(extra="forbid", strict=True)

# Pictures of this size are drawn in a fraction of a second on two cores.
_SAMPLED_IMAGE_SIZE = 64
_NUM_SAMPLES = 32

Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class ConfigError(ValueError):
    """A setting that cannot be; the message is one line for the user."""


@dataclass(frozen=True, config=_STRICT)
class DatasetConfig:
    """What to train on.

    Attributes:
        path: Folder, archive or URL, or a dataset of the Hugging Face hub.
        config: The dataset's configuration; `None` for its default one.
        split: The dataset's own split to read, several joined by `+`, or `all`.
        image_column: Column with the pictures; `None` to find it.
        caption_column: Column with the captions; `None` to find it.
        eval_fraction: Fraction of the pictures held out for evaluation.
        seed: Decides which pictures are held out.
        max_pixels: Larger pictures are set aside.
        max_aspect_ratio: Pictures whose sides differ by a larger factor are set aside.
        max_rejected_fraction: Fraction of unusable rows above which the run stops.
        schema: File with a schema to validate against; `None` to infer one.
        fail_on_anomalies: Whether an anomaly in the statistics stops the run.
    """

    path: Text
    config: Text | None
    split: Text
    image_column: Text | None
    caption_column: Text | None
    eval_fraction: Fraction
    seed: Seed
    max_pixels: Annotated[int, Field(ge=1)]
    max_aspect_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    max_rejected_fraction: Annotated[float, Field(ge=0, le=1)]
    schema: Text | None
    fail_on_anomalies: bool


@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    """What to fine-tune.

    Attributes:
        preset: Name of the preset.
        image_size: Side of the pictures in pixels.
        base_weights: `default`, `random`, or a folder, bucket or model of the hub with the weights.
        flip: Whether mirror images are trained on too; `auto`: unless a caption says left or right.
        crop: Which part of a picture that is not square is kept.
        export_weights: What the exported models store their weights as.
    """

    preset: Text
    image_size: Annotated[int, Field(ge=1)]
    base_weights: Text
    flip: Literal["auto", "always", "never"]
    crop: Literal["centre", "random"]
    export_weights: Literal["float32", "float16"]


@dataclass(frozen=True, config=_STRICT)
class ValidationConfig:
    """The pictures drawn before and after fine-tuning.

    Attributes:
        prompts: What to draw, one picture each.
        num_steps: Sampling steps.
        guidance_scale: Classifier-free guidance scale; 1 is none.
        seed: Decides the initial noise.
        every_steps: Training steps after which they are drawn, too; 0: only before and after.
    """

    prompts: Annotated[tuple[Text, ...], Field(min_length=1, max_length=64)]
    num_steps: Annotated[int, Field(ge=1, le=1000)]
    guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    seed: Seed
    every_steps: Annotated[int, Field(ge=0)]


@dataclass(frozen=True, config=_STRICT)
class EvaluationConfig:
    """How the fine-tuned model is judged.

    Attributes:
        num_strata: Timesteps drawn for each held-out picture, one from each equal part of the
            noise schedule.
        seed: Decides timesteps and noise.
        baseline: What a model is compared with.
        min_loss_improvement: How far the held-out loss must be below the baseline's for the
            model to be blessed.
        max_loss_regression: How far above the baseline's the interval may say that it is.
        max_stratum_regression: The same in any part of the noise schedule, as a fraction of the
            baseline's loss there.
        num_samples: Held-out captions that pictures are drawn for.
        clip_model: Folder, bucket or model of the hub with a CLIP to score them; `None` for none.
    """

    num_strata: Annotated[int, Field(ge=1, le=1000)]
    seed: Seed
    baseline: Literal["latest_blessed", "base_weights"]
    min_loss_improvement: Annotated[float, Field(allow_inf_nan=False)]
    max_loss_regression: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    max_stratum_regression: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    num_samples: Annotated[int, Field(ge=0, le=10_000)]
    clip_model: Text | None


@dataclass(frozen=True, config=_STRICT)
class ServingConfig:
    """What is pushed.

    Attributes:
        canary: Whether a model must draw a picture in a fresh process to be pushed.
        keep_versions: Newest releases that are kept, and the current one; 0 for all.
    """

    canary: bool
    keep_versions: Annotated[int, Field(ge=0)]


@dataclass(frozen=True, config=_STRICT)
class RunConfig:
    """Everything that a run depends on, with no field left open; see `load_config`."""

    dataset: DatasetConfig
    model: ModelConfig
    training: ResolvedTrainingConfig
    validation: ValidationConfig
    evaluation: EvaluationConfig
    serving: ServingConfig
    vertex: VertexConfig
    output: Text


_SECTIONS: Mapping[str, type] = {
    "dataset": DatasetConfig,
    "model": ModelConfig,
    "training": TrainingConfig,
    "validation": ValidationConfig,
    "evaluation": EvaluationConfig,
    "serving": ServingConfig,
    "vertex": VertexConfig,
}


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: `1e-4` is a number, `on` a word, a key given twice an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} is not a name", problem_mark=key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} is given twice; keep one of them",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML follows, takes yes, no, on and off for booleans.
_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile("^(?:true|True|false|False)$"), list("tTfF"))
# It also demands a point and a signed exponent in a float.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


@dataclasses.dataclass(frozen=True)
class _Setting:
    """A value and who gave it."""

    value: Any
    origin: str


def load_config(
    path: str | os.PathLike[str] | None = None,
    flags: Mapping[str, tuple[str, Any]] | None = None,
) -> RunConfig:
    """Resolves and validates the configuration.

    Args:
        path: A YAML file of the user's; it may give any part of the keys.
        flags: Last word: dotted key, such as `training.steps`, to (name of the flag, value).

    Returns:
        The tree with every open value filled in by the preset. Local folders are absolute; of the
        dataset, which may be on a hub, `resolve_dataset` says where it is.

    Raises:
        ConfigError: In one line, what was given, what is allowed and where to change it.
    """
    settings: dict[str, _Setting] = {}
    default_origin = "the default"
    _lay_over(settings, _read_yaml(DEFAULT_FILE), default_origin)
    if path is not None:
        _lay_over(settings, _read_yaml(Path(path)), f"in {path}")
    for key, (flag, value) in (flags or {}).items():
        settings[key] = _Setting(value, f"from {flag}")

    preset_setting = settings["model.preset"]
    if not isinstance(preset_setting.value, str) or preset_setting.value not in preset_names():
        raise ConfigError(
            f"{_given('model.preset', preset_setting)} is not a preset: choose one of "
            f"{_listed(preset_names(), preset_setting.value)}"
        )
    preset = get_preset(preset_setting.value)
    for key, recommended in (
        ("model.image_size", preset.image_size),
        ("validation.guidance_scale", preset.guidance_scale),
    ):
        if settings[key].value is None:
            settings[key] = _Setting(recommended, "the preset's")
    if settings["evaluation.num_samples"].value is None:
        small = settings["model.image_size"].value == _SAMPLED_IMAGE_SIZE
        settings["evaluation.num_samples"] = _Setting(_NUM_SAMPLES if small else 0, "for the size")

    sections = {name: _build(name, cls, settings) for name, cls in _SECTIONS.items()}
    output = settings["output"]
    if not isinstance(output.value, str) or not output.value:
        raise ConfigError(f"{_given('output', output)} is impossible: it must be a folder's path")
    if "://" in output.value:
        raise ConfigError(
            f"{_given('output', output)} is impossible: a local run needs a folder on this "
            "machine, because its metadata is an SQLite database"
        )

    try:
        preset.check_image_size(sections["model"].image_size)
    except ValueError as error:
        given = _given("model.image_size", settings["model.image_size"])
        raise ConfigError(f"{given}: {error}") from None
    training = sections["training"].resolved(preset)
    _check_training(training, settings)
    for name, allowed in sections["vertex"].problems():
        given = _given(f"vertex.{name}", settings[f"vertex.{name}"])
        raise ConfigError(f"{given} is impossible: {allowed}")

    dataset = sections["dataset"]
    if settings["dataset.path"].origin == default_origin:
        dataset = dataclasses.replace(dataset, path=str(REPO_ROOT / dataset.path))
    if dataset.schema is not None:
        dataset = dataclasses.replace(dataset, schema=_absolute(dataset.schema))
        _check_schema(dataset.schema, settings["dataset.schema"])
    model = sections["model"]
    if model.base_weights not in ("default", "random"):
        model = dataclasses.replace(model, base_weights=_absolute(model.base_weights))
    _check_base_weights(model.base_weights, preset, settings["model.base_weights"])
    evaluation = sections["evaluation"]
    if evaluation.clip_model is not None:
        if not evaluation.num_samples:
            raise ConfigError(
                f"{_given('evaluation.clip_model', settings['evaluation.clip_model'])} is "
                "impossible with evaluation.num_samples = 0: there are no pictures to score"
            )
        address = _absolute(evaluation.clip_model)
        evaluation = dataclasses.replace(evaluation, clip_model=address)
    return RunConfig(
        dataset=dataset,
        model=model,
        training=training,
        validation=sections["validation"],
        evaluation=evaluation,
        serving=sections["serving"],
        vertex=sections["vertex"],
        output=_absolute(output.value),
    )


def default_settings() -> dict[str, Any]:
    """Every dotted key with its default, `None` where the preset decides."""
    settings: dict[str, _Setting] = {}
    _lay_over(settings, _read_yaml(DEFAULT_FILE), "the default")
    return {key: setting.value for key, setting in settings.items()}


def save_config(config: RunConfig, path: str | os.PathLike[str]) -> None:
    """Writes the resolved tree as YAML that `load_config` reads back to an equal tree."""
    tree = dataclasses.asdict(config)
    tree["validation"]["prompts"] = list(config.validation.prompts)
    target = Path(path)
    partial = target.with_name(f".{target.name}.tmp")
    partial.write_text(
        "# The settings of the latest run, resolved. Use them again with --config.\n"
        + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100),
        encoding="utf-8",
    )
    os.replace(partial, target)


def resolve_dataset(config: RunConfig) -> tuple[RunConfig, str]:
    """Finds the dataset and looks at it before anything starts.

    Returns:
        The configuration with the place of the dataset written out, a dataset of the hub with its
        commit; and the dataset's fingerprint, a hash that changes with its content.

    Raises:
        ConfigError: There is no such dataset, it lacks a column, or a split would be empty.
    """
    # pyarrow costs a second that errors in the settings need not wait for.
    from components.caption_example_gen import sources

    dataset = config.dataset
    try:
        spec = sources.resolve_dataset(
            sources.DatasetSpec(
                dataset=dataset.path,
                config=dataset.config or "",
                split=dataset.split,
                image_column=dataset.image_column or "",
                caption_column=dataset.caption_column or "",
            )
        )
        source = sources.open_dataset(spec)
        sources.check_dataset(spec, source, eval_fraction=dataset.eval_fraction, seed=dataset.seed)
        fingerprint = sources.dataset_fingerprint(spec, source)
    except sources.DatasetError as error:
        raise ConfigError(str(error)) from None
    resolved = dataclasses.replace(dataset, path=spec.dataset)
    return dataclasses.replace(config, dataset=resolved), fingerprint


def resolve_base_weights(config: RunConfig, *, fetch: bool = True) -> RunConfig:
    """Finds and verifies the base weights, and fetches those of the hub, before anything starts.

    Args:
        config: All settings.
        fetch: Whether those of the hub are needed on this machine.

    Returns:
        The configuration with the place of the weights written out, a model of the hub with its
        commit.

    Raises:
        ConfigError: A file is missing, damaged or of another model.
    """
    from storage.folders import FolderError
    from trainer.weights.base_model import BaseModel

    model = config.model
    try:
        found = BaseModel.locate(get_preset(model.preset), model.image_size, model.base_weights)
        source = found.prepare(fetch=fetch)
    except FolderError as error:
        raise ConfigError(f"model.base_weights = {model.base_weights!r}: {error}") from None
    return dataclasses.replace(config, model=dataclasses.replace(model, base_weights=source))


def resolve_clip_model(config: RunConfig) -> RunConfig:
    """Finds the CLIP that samples are scored with, before anything starts.

    Returns:
        The configuration with its place written out, a model of the hub with its commit.

    Raises:
        ConfigError: There is none, or it is another kind of model.
    """
    evaluation = config.evaluation
    if evaluation.clip_model is None:
        return config
    # TensorFlow takes seconds that nobody else need wait for.
    from components.loss_scorer.clip import check_clip
    from storage.folders import FolderError

    try:
        address = check_clip(evaluation.clip_model)
    except FolderError as error:
        raise ConfigError(f"evaluation.clip_model = {evaluation.clip_model!r}: {error}") from None
    resolved = dataclasses.replace(evaluation, clip_model=address)
    return dataclasses.replace(config, evaluation=resolved)


def check_output_folder(output: str) -> None:
    """Creates `output` where it is missing; raises a `ConfigError` where it cannot be used."""
    try:
        os.makedirs(output, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ConfigError(
            f"the output folder {output} cannot be written to ({error.strerror}): choose another "
            "one with --output"
        ) from None


def _check_base_weights(source: str, preset: Preset, setting: _Setting) -> None:
    if source in ("random", "default"):
        return
    # huggingface_hub costs half a second that nobody else need wait for.
    from storage import hub
    from storage.folders import open_folder
    from trainer.weights import diffusers_layout

    files = [file.name for file in preset.weight_files.values()]
    given = f"{_given('model.base_weights', setting)} is impossible"
    wanted = (
        f"it must be a folder with {', '.join(files)}, or one in diffusers' layout, or 'random' to "
        "start from nothing"
    )
    if source.startswith(hub.SCHEME):
        try:
            hub.parse_address(source)
        except hub.HubError as error:
            raise ConfigError(f"{given}: {error}") from None
    if "://" in source:
        return
    if not os.path.isdir(source):
        raise ConfigError(f"{given}: there is no such folder; {wanted}")
    if diffusers_layout.is_diffusers(open_folder(source)):
        return
    missing = [name for name in files if not os.path.isfile(os.path.join(source, name))]
    if missing:
        raise ConfigError(f"{given}: the folder lacks {', '.join(missing)}; {wanted}")


def _check_training(training: ResolvedTrainingConfig, settings: Mapping[str, _Setting]) -> None:
    """Raises a `ConfigError` where two settings of the training contradict each other."""

    def given(name: str) -> str:
        return f"{_given(f'training.{name}', settings[f'training.{name}'])} is impossible"

    steps, warmup_steps = training.steps, training.warmup_steps
    if steps is not None and training.epochs:
        raise ConfigError(
            f"{given('epochs')} with training.steps = {steps}: give one of them, epochs 0 or steps "
            "null"
        )
    if steps is not None and warmup_steps is not None and warmup_steps > steps:
        raise ConfigError(
            f"{given('warmup_steps')} with training.steps = {steps}: it must be at most as many"
        )
    if training.batch_size % training.accumulation_steps:
        raise ConfigError(
            f"{given('accumulation_steps')} with training.batch_size = {training.batch_size}: it "
            "must divide it, so that all parts are of one size"
        )
    if training.lora_alpha and not training.lora_rank:
        raise ConfigError(
            f"{given('lora_alpha')} with training.lora_rank = 0, where there are no adapters: set "
            "lora_rank, or lora_alpha to 0"
        )


def _check_schema(path: str, setting: _Setting) -> None:
    if "://" in path:
        return
    try:
        text_format.Parse(Path(path).read_text(encoding="utf-8"), schema_pb2.Schema())
    except (OSError, ValueError, text_format.ParseError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds no schema"
        raise ConfigError(
            f"{_given('dataset.schema', setting)} is impossible ({reason}): it must be a "
            "schema.pbtxt, such as a run writes below artifacts/SchemaGen"
        ) from None


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"the configuration file {path} does not exist: give --config the path of a YAML file"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"the configuration file {path} cannot be read: {reason}") from None
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or one_line(error)
        raise ConfigError(f"{path}{place} is not valid YAML: {problem}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path} holds {_shown(tree)}: it must hold keys and values, as pipeline/default.yaml"
        )
    return tree


def _keys() -> Iterator[str]:
    for section, cls in _SECTIONS.items():
        for field in dataclasses.fields(cls):
            yield f"{section}.{field.name}"
    yield "output"


def _lay_over(settings: dict[str, _Setting], tree: Mapping[str, Any], origin: str) -> None:
    """Sets every key that `tree` gives; `None` for a whole section gives nothing."""
    known = set(_keys())
    for name, value in tree.items():
        if name in known:
            settings[name] = _Setting(value, origin)
        elif name not in _SECTIONS:
            raise _unknown(name, (*_SECTIONS, "output"), origin)
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                dotted = f"{name}.{key}"
                if dotted not in known:
                    raise _unknown(dotted, [k for k in known if k.startswith(f"{name}.")], origin)
                settings[dotted] = _Setting(inner, origin)
        elif value is not None:
            keys = ", ".join(f.name for f in dataclasses.fields(_SECTIONS[name]))
            raise ConfigError(
                f"{name} = {_shown(value)} ({origin}) is impossible: it must be a section with "
                f"keys of its own: {keys}"
            )


def _unknown(key: str, allowed: typing.Iterable[str], origin: str) -> ConfigError:
    # A right name in the wrong section is the likeliest mistake after a misspelt one.
    elsewhere = [k for k in _keys() if k.rpartition(".")[2] == key.rpartition(".")[2]]
    close = elsewhere or difflib.get_close_matches(key, sorted(allowed), n=1, cutoff=0.5)
    close = close or difflib.get_close_matches(key, sorted(_keys()), n=1, cutoff=0.6)
    names = ", ".join(sorted(allowed))
    hint = f"did you mean {close[0]!r}?" if close else f"the keys are {names}"
    return ConfigError(f"there is no setting {key!r} ({origin}): {hint}")


def _build(section: str, cls: type, settings: Mapping[str, _Setting]) -> Any:
    values = {}
    for field in dataclasses.fields(cls):
        value = settings[f"{section}.{field.name}"].value
        values[field.name] = tuple(value) if isinstance(value, list) else value
    try:
        return cls(**values)
    except pydantic.ValidationError as error:
        hints = typing.get_type_hints(cls, include_extras=True)
        problems = []
        for name in dict.fromkeys(str(e["loc"][0]) for e in error.errors()):
            key = f"{section}.{name}"
            problems.append(
                f"{_given(key, settings[key])} is impossible: it must be {_allowed(hints[name])}"
            )
        raise ConfigError("; ".join(problems)) from None


def _given(key: str, setting: _Setting) -> str:
    return f"{key} = {_shown(setting.value)} ({setting.origin})"


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listed(names: typing.Iterable[str], given: Any) -> str:
    names = tuple(names)
    close = difflib.get_close_matches(str(given), names, n=1)
    return ", ".join(names) + (f" (did you mean {close[0]!r}?)" if close else "")


_NOUNS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null to leave it open",
}


def _allowed(hint: Any) -> str:
    """Words for what a field of this type hint takes, such as "a whole number of at least 1"."""
    if hint in _NOUNS:
        return _NOUNS[hint]
    if typing.get_origin(hint) is tuple:
        return "a list of texts that are not empty"
    if typing.get_origin(hint) is dict:
        key, value = typing.get_args(hint)
        return f"a mapping from {_allowed(key)} to {_allowed(value)}"
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(typing.get_args(hint))
    if typing.get_origin(hint) is not Annotated:
        return ", or ".join(_allowed(choice) for choice in typing.get_args(hint))
    base, *metadata = typing.get_args(hint)
    words, bounds = _allowed(base), []
    for info in metadata:
        words = getattr(info, "description", None) or words
        for constraint in getattr(info, "metadata", ()):
            if isinstance(constraint, annotated_types.Ge):
                bounds.append(f"of at least {constraint.ge}")
            elif isinstance(constraint, annotated_types.Gt):
                bounds.append(f"above {constraint.gt}")
            elif isinstance(constraint, annotated_types.Le):
                bounds.append(f"at most {constraint.le}")
            elif isinstance(constraint, annotated_types.Lt):
                bounds.append(f"below {constraint.lt}")
            elif isinstance(constraint, annotated_types.MinLen) and base is str:
                words = "text that is not empty"
            elif isinstance(constraint, annotated_types.MaxLen):
                words += f", from 1 to {constraint.max_length} of them"
    return " ".join([words, " and ".join(bounds)]).strip()
