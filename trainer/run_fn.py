"""Entry points of the TFX Trainer and Tuner; the only module here that knows TFX."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import hashlib
import json
import logging
import os
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tfx.components.trainer.fn_args_utils import FnArgs
from tfx.components.tuner.component import TunerFnResult

from storage.filesystem import content_digest
from storage.machine import processor
from storage.made_with import git_changed, git_commit, versions
from storage.model_manifest import ModelManifest
from storage.user_errors import UserError
from trainer.data.held_out import HeldOutPictures, held_out_pictures, read_choosing
from trainer.data.latents import LatentsManifest, batch_spec, training_batches
from trainer.data.prior import ClassLatents
from trainer.data.prompts import held_out_prompts
from trainer.data.trained_on import TrainedOn, marks_of, unseen
from trainer.diffusion.noise_schedule import NoiseSchedule
from trainer.export.fastest_compute import fastest_compute
from trainer.export.saved_models import ServingModules, export_models, serving_modules
from trainer.export.validation import PROMPTS_NAME, draw_validation
from trainer.model_spec import DIFFUSERS, adapter_keys, model_spec, public_name
from trainer.networks import build_network
from trainer.networks.new_vectors import token_embedding, with_more_tokens, with_vectors
from trainer.presets import ENCODERS, NETWORKS, Preset, get_preset
from trainer.text.new_word import FIRST_NEW_ID, NewWord
from trainer.text.tokenizer import tokenize
from trainer.training.checkpoints import StartingPoint, checkpoint_steps
from trainer.training.distribution import is_chief, training_strategy, wait_for_all
from trainer.training.evaluations import (
    Evaluation,
    Evaluations,
    Plan,
    ScoredPictures,
    evaluations_for,
    too_few_to_choose,
    trial_rows,
)
from trainer.training.fine_tuner import (
    FineTuner,
    StepRecord,
    TrainingDivergedError,
    write_history,
)
from trainer.training.going_on import OF_LENGTH, Line, Note, chosen_alike, goes_on
from trainer.training.memory import (
    InsufficientMemoryError,
    MemoryEstimate,
    MemoryGuard,
    activation_bytes,
    peak_gpu_bytes,
)
from trainer.training.precision import on_this_machine
from trainer.training.progress import TrainingProgress
from trainer.training_config import (
    CLASS_LATENTS,
    TUNED,
    ComputeDtype,
    ResolvedTrainingConfig,
    TrainerSettings,
    TuningConfig,
    ValidationConfig,
    WordSettings,
)
from trainer.tuning.oracle import SuccessiveHalving, num_trials, search_space
from trainer.tuning.schedule import rungs, total_scores, total_steps
from trainer.tuning.search import TrialResult, TrialTuner, in_words
from trainer.weights.base_model import BaseModel
from trainer.weights.learned_embeds import read_learned_embeds, write_learned_embeds
from trainer.weights.starting_model import CONTINUED, StartingModel

_PICTURES = "validation"
# TensorBoard shows curves of the same name from several folders in one chart.
_TRAIN, _HELD_OUT, _KEPT = _CURVES = ("train", "held_out", "kept")
_LOSS = "loss"
_LOGGED = (
    *(_LOSS, "learning_rate", "gradient_norm", "images_per_second", "loss_scale"),
    "prior_loss",  # if there are class pictures
)

logger = logging.getLogger(__name__)


def run_fn(fn_args: FnArgs) -> None:
    """Fine-tunes the diffusion model on latents and exports the SavedModels.

    If `TF_CONFIG` names several workers, all of them train and only the chief writes.

    Args:
        fn_args: From TFX: `train_files` (the Latents artifact's train split), `custom_config` and
            `hyperparameters` (see `TrainerSettings.from_json`; also `TUNED`, if the Tuner found
            any, and `CLASS_LATENTS`, if there are class pictures), `base_model` (the folder of the
            SavedModels that it starts from instead of the base weights, if any),
            `serving_model_dir` and `model_run_dir` (outputs).

    Raises:
        UserError: The latents were made with a preset, size or encoders that differ from the
            settings, or there are fewer of them than a batch; or the adapters of the starting
            model have another rank.
        WeightsError: The base weights have changed since the run was prepared, or the starting
            model cannot be used.
        InsufficientMemoryError: Training would not fit into the device's memory.
        TrainingDivergedError: The loss or its gradients became infinite or not a number.
        TrainingInterruptedError: It was told to stop; its progress is saved.
    """
    since = time.monotonic()
    settings = TrainerSettings.from_json(fn_args.custom_config, fn_args.hyperparameters)
    if tuned := fn_args.hyperparameters.get(TUNED):
        logger.info("The search found: %s.", in_words(tuned))
        settings = _with_found(settings, tuned)
    run = _prepare(
        settings,
        fn_args.train_files,
        fn_args.base_model,
        fn_args.hyperparameters.get(CLASS_LATENTS),
        tuned=bool(tuned),
    )
    trained = _train(run)
    if is_chief(run.strategy):
        compute = _export(run, trained, fn_args.serving_model_dir)
        _record(run, trained, compute, fn_args, since)
    # When this returns, TFX looks for the model, in every worker.
    wait_for_all(run.strategy)


def tuner_fn(fn_args: FnArgs) -> TunerFnResult:
    """Makes the hyperparameter search, whose trials are trainings like those of `run_fn`.

    A trial is trained with the schedule of the whole training up to some step, and continues from
    there if it advances. So the best trial, once it is done, is the Trainer's training.

    Args:
        fn_args: From TFX: `train_files` and `custom_config`, which has `settings` (from
            `TrainerSettings.to_json`), `run` (`RunParameters`) and `tuning` (the fields of a
            `TuningConfig`), and `class_latents` and `base_model` as for `run_fn`.

    Returns:
        A `TrialTuner`.

    Raises:
        UserError: Too few pictures are held out for half of them to choose, or as in `run_fn`.
        WeightsError: The base weights have changed since the run was prepared.
    """
    told = fn_args.custom_config
    settings = TrainerSettings.from_json(told["settings"], told["run"])
    tuning = TuningConfig(**told["tuning"])
    base_model, _ = _base_model(settings)
    latents_uri = _latents_uri(fn_args.train_files)
    latents = LatentsManifest.read(latents_uri)
    _check_inputs(latents, settings, base_model)
    prior = _class_latents(told.get(CLASS_LATENTS), settings, base_model)
    # No devices are set up: the process that tells the others what to try needs none.
    config = _config_for(settings.training, latents, base_model, strategy=None)
    assert config.steps is not None
    start = _Start.of(fn_args.base_model, base_model, config)
    if start is not None and start.continues_adapters and {*tuning.rank} - {config.lora_rank}:
        raise UserError(
            f"tuning.rank = {[*tuning.rank]} cannot be searched: training continues the adapters "
            f"of the starting model, whose rank is {config.lora_rank}; set it to []"
        )
    held_out = _held_out(latents_uri, start)
    if problem := too_few_to_choose(config, held_out):
        raise UserError(
            f"hyperparameters cannot be searched (tuning.trials = {tuning.trials}): {problem}"
        )
    schedule = rungs(num_trials(tuning), config.steps)
    scored, strata = trial_rows(
        total_steps(schedule), config.batch_size, total_scores(schedule), held_out.choosing.count
    )
    pictures = ScoredPictures(
        held_out.choosing.records[:scored], strata, base_model.preset, base_model.image_size
    )
    facts = {
        "training": _name(_facts(settings, config, base_model, latents, latents_uri, start, prior)),
        "tuning": {**dataclasses.asdict(tuning), "parallel_trials": 1},
        "scored": pictures.name,
    }
    search_id = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    logger.info(
        "%d trials take %.1f times the steps of one training; each is scored on %d of %d held-out "
        "pictures (%d judge), at %d timestep%s each.",
        schedule[0].trials,
        total_steps(schedule) / config.steps,
        scored,
        held_out.all.count,
        held_out.judging.count,
        strata,
        "" if strata == 1 else "s",
    )

    return TunerFnResult(
        tuner=TrialTuner(
            SuccessiveHalving(schedule, search_space(tuning, config), config.seed),
            _Trials(
                settings,
                fn_args.train_files,
                pictures,
                fn_args.base_model,
                told.get(CLASS_LATENTS),
            ),
            os.path.join(settings.checkpoint_dir, f"search-{search_id}"),
            rungs=schedule,
            pictures=scored,
            timesteps=strata,
        ),
        fit_kwargs={},
    )


class _Trials:
    """Trains trials, reusing the networks between those that differ only in learning rate."""

    def __init__(
        self,
        settings: TrainerSettings,
        train_files: Sequence[str],
        pictures: ScoredPictures,
        starting_model: str | None = None,
        class_latents: str | None = None,
    ) -> None:
        """Prepares nothing yet.

        Args:
            settings: The settings without the searched hyperparameters.
            train_files: As for `run_fn`.
            pictures: What trials are scored on.
            starting_model: `base_model` of `run_fn`.
            class_latents: As for `run_fn`.
        """
        # Trials only ever continue from the latest checkpoint.
        training = dataclasses.replace(settings.training, checkpoints_kept=1)
        self._settings = dataclasses.replace(settings, training=training)
        self._train_files, self._pictures = train_files, pictures
        self._starting_model, self._class_latents = starting_model, class_latents
        self._run: _Run | None = None
        self._built_with: dict[str, float] = {}
        self._folder = tempfile.TemporaryDirectory()

    def __call__(self, found: Mapping[str, float], steps: int, folder: str) -> TrialResult:
        """Trains up to a step and scores the weights that would be exported then."""
        settings = _with_found(dataclasses.replace(self._settings, checkpoint_dir=folder), found)
        try:
            run = self._prepared(settings, found)
        except InsufficientMemoryError as error:
            return TrialResult("", 0, (), 0.0, problem=str(error))
        try:
            trained = _train(run, until=steps)
        except TrainingDivergedError:
            return TrialResult(run.training_id, 0, (), 0.0, problem="the training diverged")
        kept_step = None if trained.step == run.tuner.steps_done else trained.step
        losses = run.tuner.score_exported(self._pictures, run.folder, kept_step)
        return TrialResult(run.training_id, trained.step, self._pictures.means(losses), 0.0)

    def _prepared(self, settings: TrainerSettings, found: Mapping[str, float]) -> _Run:
        built_with = {name: value for name, value in found.items() if name != "learning_rate"}
        initial = os.path.join(self._folder.name, "initial")
        if self._run is None or built_with != self._built_with:
            # Otherwise two runs would have to share the memory.
            self._run = None
            keras.backend.clear_session()
            gc.collect()
            self._run = _prepare(
                settings, self._train_files, self._starting_model, self._class_latents, tuned=True
            )
            self._built_with = built_with
            self._run.tuner.save_state(initial)
            return self._run
        rate = settings.training.learning_rate
        self._run.tuner.restart(initial, rate)
        config = dataclasses.replace(self._run.config, learning_rate=rate)
        facts = _facts(
            settings,
            config,
            self._run.base_model,
            self._run.latents,
            self._run.latents_uri,
            self._run.start,
            self._run.prior,
        )
        training_id = _name(facts)
        return dataclasses.replace(
            self._run,
            settings=dataclasses.replace(self._run.settings, training=config),
            config=config,
            training_id=training_id,
            line=_line(settings, facts),
            folder=os.path.join(settings.checkpoint_dir, training_id),
        )


def _with_found(settings: TrainerSettings, found: Mapping[str, float]) -> TrainerSettings:
    return dataclasses.replace(settings, training=settings.training.with_found(found))


@dataclasses.dataclass(frozen=True)
class _Start:
    """The model that a training starts from instead of the base weights.

    Attributes:
        model: Its folder and its manifest.
        digest: Names its weights.
        continues_adapters: Whether training continues its adapters, on the base weights.
        trained_on: Marks of the pictures it was trained on, directly or before (see `TrainedOn`).
    """

    model: StartingModel
    digest: str
    continues_adapters: bool
    trained_on: np.ndarray

    @classmethod
    def of(
        cls, folder: str | None, base_model: BaseModel, config: ResolvedTrainingConfig
    ) -> _Start | None:
        """The model in a folder; `None` if there is none."""
        if not folder:
            return None
        model = StartingModel.locate(folder, base_model)
        known = TrainedOn.find(folder)
        if known is None:
            logger.warning(
                "The model in %s was made by an earlier version, which did not record the pictures "
                "it was trained on: some of them may be held out now.",
                folder,
            )
        return cls(
            model,
            model.digest,
            model.continues_adapters(config),
            np.zeros(0, np.uint64) if known is None else known.all,
        )

    @property
    def own_text_encoder(self) -> bool:
        """Whether its contexts differ from those in the latents."""
        return self.model.manifest.text_encoder_trained and not self.continues_adapters

    def build(self, base_model: BaseModel, network: str) -> keras.Model:
        """A network as it is at the first step, without the adapters that are continued."""
        own = network == "diffusion_model" or self.own_text_encoder
        if self.continues_adapters or not own:
            return base_model.build(network)
        preset = base_model.preset
        if network == "text_encoder" and self.word is not None:
            preset = with_more_tokens(preset, self.word.vectors)
        model = build_network(network, preset, base_model.image_size)
        self.model.load(model, network)
        return model

    @property
    def word(self) -> NewWord | None:
        """A new word that it knows."""
        return self.model.word

    def adapters(self) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
        """The adapters that are continued; none if new ones are trained."""
        return self.model.read_adapters() if self.continues_adapters else {}

    @property
    def facts(self) -> dict[str, Any]:
        """Its entry in a manifest."""
        return {
            "training_id": self.model.manifest.training_id,
            "weights": self.digest,
            CONTINUED: self.continues_adapters,
        }


@dataclasses.dataclass(frozen=True)
class _Run:
    """Everything that is ready before the first step.

    Attributes:
        settings: The settings, completed with what depends on the latents.
        config: Its hyperparameters, with epochs converted to steps.
        strategy: How devices and workers share a batch; `None` for one device.
        base_model: The base weights that training starts from, directly or at one remove, with the
            preset of the trained model.
        start: The model that it starts from instead; `None` for the base weights.
        latents: Manifest of the latents.
        latents_uri: Folder of the latents.
        train_files: Patterns of the files of their train split.
        prior: Latents of class pictures, which are trained on as well; `None` for none.
        networks: Text encoder, diffusion model and decoder, which training changes.
        modules: The modules that serve them, with their variables.
        modules_before: The same for what they predict before training.
        tuner: Trains them.
        word: A new word that the text encoder knows; `None` for none.
        memory: The estimated memory.
        training_id: Names the training by everything that decides its weights.
        line: This training and all that differ from it only in their number of steps.
        prompts_are_captions: Whether the prompts are held-out captions, or made from one.
        tuned: Whether held-out pictures choose its hyperparameters.
        folder: Folder of the checkpoints, logs and pictures.
    """

    settings: TrainerSettings
    config: ResolvedTrainingConfig
    strategy: tf.distribute.Strategy | None
    base_model: BaseModel
    start: _Start | None
    latents: LatentsManifest
    latents_uri: str
    train_files: Sequence[str]
    prior: ClassLatents | None
    networks: tuple[keras.Model, keras.Model, keras.Model]
    modules: ServingModules
    modules_before: ServingModules
    tuner: FineTuner
    word: NewWord | None
    memory: MemoryEstimate
    training_id: str
    line: Line
    prompts_are_captions: bool
    tuned: bool
    folder: str

    @functools.cached_property
    def image_encoder(self) -> keras.Model | None:
        """The frozen network that encodes pictures to draw from, if it is exported."""
        if not self.settings.image_to_image:
            return None
        return self.base_model.build("image_encoder")

    @property
    def parameters(self) -> dict[str, int]:
        """Number of parameters of each network that is served."""
        served = (*self.networks, self.image_encoder)
        return {model.name: model.count_params() for model in served if model is not None}

    @property
    def trainable_parameters(self) -> int:
        """Number of trained parameters, of the networks or of their adapters."""
        return sum(v.shape.num_elements() for v in self.tuner.variables)


@dataclasses.dataclass(frozen=True)
class _Trained:
    """The result of a training.

    Attributes:
        history: Its log.
        seconds: Its duration, including drawing pictures and scoring held-out ones in between.
        evaluations: The held-out losses; `None` if there are none.
        step: Step whose averaged weights the networks hold.
        went_on_from: The `training_id` and `step` of the shorter training that it continued; empty
            if it did all its steps itself.
    """

    history: list[StepRecord]
    seconds: float
    evaluations: Evaluations | None
    step: int
    went_on_from: dict[str, Any]


def _prepare(
    settings: TrainerSettings,
    train_files: Sequence[str],
    starting_model: str | None = None,
    class_latents: str | None = None,
    *,
    tuned: bool,
) -> _Run:
    """Everything that can fail fails here: inputs, weights, memory."""
    config = settings.training
    # Workers can only be joined before TensorFlow does anything else.
    strategy = training_strategy(config.devices)
    base_model, before = _base_model(settings)
    latents_uri = _latents_uri(train_files)
    latents = LatentsManifest.read(latents_uri)
    _check_inputs(latents, settings, base_model)
    prior = _class_latents(class_latents, settings, base_model)
    config = _config_for(config, latents, base_model, strategy)
    prompts_are_captions = settings.validation.prompts is None or settings.prompts_from_caption
    settings = dataclasses.replace(
        settings, training=config, validation=_with_prompts(settings.validation, latents_uri)
    )

    start = _Start.of(starting_model, base_model, config)
    keras.utils.set_random_seed(config.seed)
    build = base_model.build if start is None else functools.partial(start.build, base_model)
    with strategy.scope() if strategy else contextlib.nullcontext():
        diffusion_model = build("diffusion_model")
        text_encoder = build("text_encoder")
        if settings.word is not None:
            text_encoder = _with_word(text_encoder, settings.word, base_model.preset, start)
    word = _known_word(settings, start)
    networks = text_encoder, diffusion_model, base_model.build("decoder")
    modules = serving_modules(*networks, base_model.preset, base_model.image_size, word=word)
    # A starting model already predicts what it is trained to predict.
    as_before = start is not None or (
        NoiseSchedule.of(before) == NoiseSchedule.of(base_model.preset)
    )
    modules_before = (
        modules
        if as_before
        else serving_modules(*networks, before, base_model.image_size, word=word)
    )
    memory_guard = MemoryGuard(networks, config)
    if not config.lora_rank and settings.word is None:
        trained = networks[:2] if config.train_text_encoder else (diffusion_model,)
        memory_guard([v.value for model in trained for v in model.weights], activations=0)
    text = base_model.preset.text_encoder
    empty_tokens = tf.constant(tokenize([""], text.max_length, text.padding))
    encodes = config.train_text_encoder or settings.word is not None
    encodes |= start is not None and start.own_text_encoder
    tuner = FineTuner(
        diffusion_model,
        base_model.preset,
        config,
        empty_caption=(empty_tokens if encodes else modules.text_encoder.encode(empty_tokens))[0],
        text_encoder=text_encoder if encodes else None,
        adapters={} if start is None else start.adapters(),
        word=None if settings.word is None else settings.word.word,
        strategy=strategy,
        prior_weight=None if prior is None else settings.prior_weight,
    )
    spec = batch_spec(
        base_model.preset,
        latents.largest,
        latents.flip,
        config.batch_size,
        latents.caption_variants,
    )
    if prior is not None:
        spec |= prior.spec(base_model.preset, base_model.image_size, config.batch_size)
    gradients = tuner.trace(spec)
    memory = memory_guard(tuner.variables, activations=activation_bytes(gradients))
    facts = _facts(settings, config, base_model, latents, latents_uri, start, prior)
    training_id = _name(facts)
    run = _Run(
        settings=settings,
        config=config,
        strategy=strategy,
        base_model=base_model,
        start=start,
        latents=latents,
        latents_uri=latents_uri,
        train_files=train_files,
        prior=prior,
        networks=networks,
        modules=modules,
        modules_before=modules_before,
        tuner=tuner,
        word=word,
        memory=memory,
        training_id=training_id,
        line=_line(settings, facts),
        prompts_are_captions=prompts_are_captions,
        tuned=tuned,
        folder=os.path.join(settings.checkpoint_dir, training_id),
    )
    assert config.steps is not None
    if start is not None:
        logger.info(
            "Starting from the model in %s, of training %s%s.",
            start.model.folder,
            start.model.manifest.training_id,
            ", and continuing its adapters" if start.continues_adapters else "",
        )
    logger.info(
        "Training %s of %s parameters: %d steps of %d pictures, %.1f epochs of %d pictures.",
        f"{run.trainable_parameters:,}",
        f"{sum(model.count_params() for model in run.networks):,}",
        config.steps,
        config.batch_size,
        config.steps * config.batch_size / latents.epoch_size,
        latents.epoch_size,
    )
    if prior is not None:
        logger.info(
            "Each picture is paired with one of %d class pictures, whose loss is weighted by %g.",
            sum(prior.manifest.counts.values()),
            settings.prior_weight,
        )
    logger.info("Estimated memory: %s; available: %s.", memory, memory_guard.available)
    return run


def _with_word(
    text_encoder: keras.Model, word: WordSettings, preset: Preset, start: _Start | None
) -> keras.Model:
    """The text encoder with the vectors of a new word as they are at the first step."""
    if start is not None and start.word is not None:
        # It already has vectors; those from a file take precedence.
        table = token_embedding(text_encoder).embeddings
        if word.learned_from is not None:
            learned = read_learned_embeds(word.learned_from, table.shape[1], word.vectors)
            table.assign(np.concatenate([np.asarray(table)[:FIRST_NEW_ID], learned]))
        return text_encoder
    table = np.asarray(token_embedding(text_encoder).embeddings)
    vectors = np.tile(table[word.initial_id], (word.vectors, 1))
    if word.learned_from is not None:
        vectors = read_learned_embeds(word.learned_from, table.shape[1], word.vectors)
    return with_vectors(text_encoder, preset, vectors)


def _known_word(settings: TrainerSettings, start: _Start | None) -> NewWord | None:
    """The word that is trained, or else the word of the starting model.

    Raises:
        UserError: The two differ.
    """
    own = None if settings.word is None else settings.word.word
    of_start = None if start is None else start.word
    if own is None or of_start is None:
        return own or of_start
    if (own.token, own.vectors) != (of_start.token, of_start.vectors):
        assert start is not None
        raise UserError(
            f"the model in {start.model.folder} knows the word {of_start.token} with "
            f"{of_start.vectors} vectors, this training teaches {own.token} with {own.vectors}: "
            f"set word.token to {of_start.token} and word.vectors to {of_start.vectors}, or start "
            "from another model"
        )
    return own


def _base_model(settings: TrainerSettings) -> tuple[BaseModel, Preset]:
    """The base weights with the preset of the trained model, and their own preset."""
    found = BaseModel.locate(
        get_preset(settings.preset), settings.image_size, settings.base_weights
    )
    trained = settings.trained_preset(found.preset)
    return dataclasses.replace(found, preset=trained), found.preset


def _latents_uri(train_files: Sequence[str]) -> str:
    """Folder of the latents, from patterns `<uri>/Split-train/*`."""
    return os.path.dirname(os.path.dirname(train_files[0]))


def _train(run: _Run, until: int | None = None) -> _Trained:
    """Trains, and draws the validation prompts before, after and in between.

    If the training was already complete, only the pictures before and after are drawn. Afterwards
    the networks hold the averages of their weights. With `until`, it is a trial: nothing is drawn,
    training pauses after that step, and the networks stay as they are then.
    """
    config, tuner = run.config, run.tuner
    assert config.steps is not None
    writes = is_chief(run.strategy)
    evaluations, start, went_on_from = _beginning(run)
    if writes:
        if start is not None:
            _take_over_pictures(run, start)
        _remove_other_pictures(run)

    def writer(name: str) -> tf.summary.SummaryWriter:
        if writes:
            return tf.summary.create_file_writer(os.path.join(run.folder, name))
        return tf.summary.create_noop_writer()

    train_log, picture_log = writer(_TRAIN), writer(_PICTURES)
    files = tf.io.gfile.glob(list(run.train_files))

    def batches(first_step: int) -> Iterator[dict[str, tf.Tensor]]:
        own = training_batches(
            files,
            run.base_model.preset,
            run.base_model.image_size,
            flip=run.latents.flip,
            batch_size=config.batch_size,
            seed=config.seed,
            first_step=first_step,
            num_examples=run.latents.counts["train"],
            num_views=run.latents.views,
            caption_variants=run.latents.caption_variants,
            buckets=run.latents.trained_buckets,
        )
        if run.prior is None:
            return own
        return run.prior.with_prior(
            own,
            run.base_model.preset,
            run.base_model.image_size,
            batch_size=config.batch_size,
            seed=config.seed,
            first_step=first_step,
        )

    def draw(step: int) -> None:
        if writes and until is None:
            modules = run.modules if step else run.modules_before
            with picture_log.as_default():
                draw_validation(modules, run.settings.validation, _pictures_of(run, step), step)

    with train_log.as_default():
        # With the averages, as on export, so that the same traces can be used.
        with tuner.averaged():
            draw(0)
        since = time.monotonic()
        held_out_log = writer(_HELD_OUT) if evaluations else tf.summary.create_noop_writer()
        with TrainingProgress(config.steps) as progress:

            def log_evaluation(evaluation: Evaluation) -> None:
                with held_out_log.as_default():
                    tf.summary.scalar(_LOSS, evaluation.loss, step=evaluation.step)

            def on_evaluation(evaluation: Evaluation) -> None:
                assert evaluations is not None
                best = evaluations.best if evaluations.chooses else None
                progress.held_out(evaluation.loss, best)
                log_evaluation(evaluation)

            def log_record(record: StepRecord) -> None:
                for name in _LOGGED:
                    if (value := getattr(record, name)) is not None:
                        tf.summary.scalar(name, value, step=record.step)

            def on_record(record: StepRecord) -> None:
                progress.update(record)
                log_record(record)

            def on_start(records: Sequence[StepRecord], before: Sequence[Evaluation]) -> None:
                for record in records:
                    log_record(record)
                for evaluation in before:
                    log_evaluation(evaluation)

            history = tuner.train(
                batches,
                run.folder,
                on_record,
                start=start,
                on_start=on_start,
                draw=draw,
                draw_every_steps=run.settings.validation.every_steps,
                evaluations=evaluations,
                on_evaluation=on_evaluation,
                until=until,
            )
        seconds = time.monotonic() - since
        if until is not None:
            chosen = evaluations.best if evaluations and evaluations.keeps_best else None
            for log in (train_log, picture_log, held_out_log):
                log.close()
            return _Trained(
                history,
                seconds,
                evaluations,
                chosen.step if chosen else tuner.steps_done,
                went_on_from,
            )
        kept, last = evaluations.kept if evaluations else None, history[-1].step
        step = kept.step if kept else last
        if step == last:
            tuner.assign_averages()
        else:
            logger.info("Keeping the weights of step %d of %d.", step, last)
            tuner.assign_kept(run.folder, step)
        draw(step)
    if kept is not None:
        kept_log = writer(_KEPT)
        with kept_log.as_default():
            tf.summary.scalar(_LOSS, kept.loss, step=step)
        kept_log.close()
    for log in (train_log, picture_log, held_out_log):
        log.close()
    if writes:
        _tell_missing_pictures(run, last)
    return _Trained(history, seconds, evaluations, step, went_on_from)


def _beginning(run: _Run) -> tuple[Evaluations | None, StartingPoint | None, dict[str, Any]]:
    """The evaluations, the checkpoint to continue now, and the training that it began with.

    The chief decides, and writes a note for the other workers and for a later resume.
    """
    start = None
    if is_chief(run.strategy):
        began_with: dict[str, Any] = {}
        if checkpoint_steps(run.folder):
            own = run.line.own or Note(0, 0)
            evaluations, began_with = _evaluations(run, own.plan), own.start
        else:
            candidates = run.line.candidates(run.config)
            evaluations = _evaluations(run, candidates[0].note.plan if candidates else None)
            chosen = chosen_alike(candidates, evaluations)
            if chosen is not None:
                start = chosen.start
                began_with = {"training_id": os.path.basename(start.folder), "step": start.step}
        plan = None if evaluations is None else evaluations.plan
        assert run.config.steps is not None
        assert run.config.warmup_steps is not None
        run.line.note(Note(run.config.steps, run.config.warmup_steps, plan, began_with))
        wait_for_all(run.strategy)
    else:
        wait_for_all(run.strategy)
        noted = run.line.own
        assert noted is not None
        evaluations, began_with = _evaluations(run, noted.plan), noted.start
        if began_with and not checkpoint_steps(run.folder):
            folder = os.path.join(run.settings.checkpoint_dir, began_with["training_id"])
            start = StartingPoint(folder, began_with["step"])
    if start is not None:
        logger.info(
            "Continuing from step %d of training %s, which had the same settings.",
            start.step,
            os.path.basename(start.folder),
        )
    return evaluations, start, began_with


def _evaluations(run: _Run, former: Plan | None) -> Evaluations | None:
    """The evaluations of held-out pictures during training."""
    if run.config.evaluate_every_steps == 0:
        return None
    held_out = _held_out(run.latents_uri, run.start)
    return evaluations_for(
        run.config,
        held_out,
        run.base_model.preset,
        run.base_model.image_size,
        tuned=run.tuned,
        former=former,
    )


def _held_out(latents_uri: str, start: _Start | None) -> HeldOutPictures:
    """The held-out pictures that the starting model was not trained on."""
    records = _records(_held_out_files(latents_uri))
    if start is not None:
        records = unseen(records, start.trained_on)
    return held_out_pictures(records, read_choosing(latents_uri))


def _records(files: Sequence[str]) -> Iterator[bytes]:
    dataset = tf.data.TFRecordDataset(sorted(files), compression_type="GZIP")
    records: Iterator[bytes] = dataset.as_numpy_iterator()
    return records


def _pictures_of(run: _Run, step: int) -> str:
    return os.path.join(run.folder, _PICTURES, f"step_{step:06d}")


def _take_over_pictures(run: _Run, start: StartingPoint) -> None:
    """Copies pictures of the training that this one continues, for steps that it also draws."""
    every, source = run.settings.validation.every_steps, os.path.join(start.folder, _PICTURES)
    if not every or not tf.io.gfile.isdir(source):
        return
    target = os.path.join(run.folder, _PICTURES)
    _copy_tree(source, target)
    wanted = {_pictures_of(run, step) for step in range(0, start.step + 1, every)}
    for found in tf.io.gfile.listdir(target):
        path = os.path.join(target, found.rstrip("/"))
        if tf.io.gfile.isdir(path) and path not in wanted:
            tf.io.gfile.rmtree(path)


def _remove_other_pictures(run: _Run) -> None:
    """Removes pictures that this training drew from other prompts or with other settings."""
    folder = os.path.join(run.folder, _PICTURES)
    if not tf.io.gfile.isdir(folder):
        return
    drawn, wanted = None, dataclasses.asdict(run.settings.validation)
    path = os.path.join(folder, PROMPTS_NAME)
    if tf.io.gfile.exists(path):
        with tf.io.gfile.GFile(path) as f:
            drawn = json.loads(f.read())
        # The interval does not change the pictures.
        wanted["every_steps"] = drawn["every_steps"]
    if drawn != json.loads(json.dumps(wanted)):
        tf.io.gfile.rmtree(folder)


def _tell_missing_pictures(run: _Run, steps: int) -> None:
    every = run.settings.validation.every_steps
    between = range(every, steps, every) if every else range(0)
    missing = [step for step in between if not tf.io.gfile.isdir(_pictures_of(run, step))]
    if missing:
        logger.warning(
            "There are no pictures of step %s: they are drawn during training, and this model was "
            "already past that when they were requested.",
            ", ".join(map(str, missing)),
        )


def _export(run: _Run, trained: _Trained, folder: str) -> ComputeDtype:
    """Writes the SavedModels, and any adapters; returns the type that they compute in."""
    preset, image_size = run.base_model.preset, run.base_model.image_size
    weights, asked = run.settings.export_weights, run.settings.compute
    if asked == "auto":
        compute = fastest_compute(run.networks[1], preset, image_size, weights)
    else:
        compute = asked
    modules = run.modules
    if (weights, compute) != ("float32", "float32") or run.image_encoder is not None:
        modules = serving_modules(
            *run.networks,
            preset,
            image_size,
            weights,
            compute,
            image_encoder=run.image_encoder,
            word=run.word,
        )
    export_models(folder, modules, run.training_id)
    if run.word is not None:
        table = np.asarray(token_embedding(run.networks[0]).embeddings)
        write_learned_embeds(folder, run.word, table[FIRST_NEW_ID:], _word_header(run))
    if run.tuner.adapters:
        run.tuner.adapters.save(folder, _adapter_header(run, trained))
    return compute


def _made_by(run: _Run) -> dict[str, str]:
    made_by = {
        "training_id": run.training_id,
        "code_version": run.settings.code_version,
        "git_commit": git_commit(),
    }
    return {key: value for key, value in made_by.items() if value}


def _lies_on(run: _Run) -> str:
    """Name of the weights that the adapters or the word were trained on."""
    base_weights = public_name(run.settings.base_weights, run.settings.preset)
    if run.start is not None and not run.start.continues_adapters:
        return (
            f"{run.settings.preset} {run.start.model.manifest.training_id}, fine-tuned from "
            f"{base_weights}"
        )
    return base_weights


def _word_header(run: _Run) -> dict[str, str]:
    """The header of `learned_embeds.safetensors`."""
    assert run.word is not None
    return {
        **model_spec(
            run.base_model.preset,
            run.settings.image_size,
            title=f"{run.word.token} {run.training_id}",
            description=f"The word {run.word.token}; base weights: {_lies_on(run)}.",
            implementation=DIFFUSERS,
            adapter="textual-inversion",
        ),
        "modelspec.trigger_phrase": run.word.token,
        **_made_by(run),
    }


def _adapter_header(run: _Run, trained: _Trained) -> dict[str, str]:
    """The header of `lora.safetensors`."""
    base_weights = _lies_on(run)
    return {
        **model_spec(
            run.base_model.preset,
            run.settings.image_size,
            title=f"{run.settings.preset} {run.training_id}",
            description=f"Adapters; base weights: {base_weights}.",
            implementation=DIFFUSERS,
            adapter="lora",
        ),
        **adapter_keys(
            run.base_model.preset,
            {**dataclasses.asdict(run.config), "steps": trained.step},
            image_size=run.settings.image_size,
            num_images=run.latents.pictures or run.latents.counts["train"],
            num_views=run.latents.epoch_size,
            base_weights=base_weights,
            training_id=run.training_id,
            buckets=None
            if run.latents.trained_buckets is None
            else {(b.width, b.height): b.views for b in run.latents.trained_buckets},
        ),
        **_made_by(run),
    }


def _record(
    run: _Run, trained: _Trained, compute: ComputeDtype, fn_args: FnArgs, since: float
) -> None:
    """Writes the manifest and the losses, and copies logs and pictures."""
    settings, history = run.settings, trained.history
    ModelManifest(
        preset=run.base_model.preset.name,
        image_size=settings.image_size,
        size_multiple=run.base_model.preset.size_multiple,
        training_id=run.training_id,
        training=dataclasses.asdict(run.config),
        export_weights=settings.export_weights,
        compute=compute,
        text_encoder_trained=run.tuner.text_encoder is not None,
        word={} if run.word is None else dataclasses.asdict(run.word),
        numerics=run.base_model.preset.numerics,
        prediction=run.base_model.preset.prediction,
        zero_terminal_snr=run.base_model.preset.zero_terminal_snr,
        base_weights_source=settings.base_weights,
        base_weights={network: run.base_model.hash([network]) for network in NETWORKS},
        latents={"uri": run.latents_uri, **run.latents.fields},
        prior=_prior_facts(run),
        validation=dataclasses.asdict(settings.validation),
        prompts_are_captions=run.prompts_are_captions,
        defaults={
            "num_steps": settings.validation.num_steps,
            "guidance_scale": settings.validation.guidance_scale,
            "sampler": settings.validation.sampler,
        },
        parameters=run.parameters,
        trainable_parameters=run.trainable_parameters,
        replicas=run.strategy.num_replicas_in_sync if run.strategy else 1,
        final_loss=history[-1].loss,
        kept=_kept(trained),
        started_from={} if run.start is None else run.start.facts,
        went_on_from=trained.went_on_from,
        goes_on_from=_goes_on_from(run, trained),
        tuned=fn_args.hyperparameters.get(TUNED, {}),
        images_per_second=sorted(r.images_per_second for r in history)[len(history) // 2],
        training_seconds=round(trained.seconds, 1),
        wall_time_seconds=round(time.monotonic() - since, 1),
        estimated_memory_bytes=run.memory.total,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        peak_gpu_memory_bytes=peak_gpu_bytes(),
        code_version=settings.code_version,
        git_commit=git_commit(),
        git_changed=git_changed(),
        versions=versions(),
        processor=_processor(),
    ).write(fn_args.serving_model_dir)
    trained_on = [*tf.io.gfile.glob(list(run.train_files)), *(run.prior.files if run.prior else ())]
    TrainedOn(
        marks_of(_records(trained_on)),
        np.zeros(0, np.uint64) if run.start is None else run.start.trained_on,
    ).write(fn_args.serving_model_dir)
    write_history(history, fn_args.model_run_dir)
    if trained.evaluations is not None:
        trained.evaluations.write(fn_args.model_run_dir)
    for name in (*_CURVES, _PICTURES):
        _copy_tree(os.path.join(run.folder, name), os.path.join(fn_args.model_run_dir, name))


def _prior_facts(run: _Run) -> dict[str, Any]:
    """The entry of the class pictures in a manifest; empty if there are none."""
    if run.prior is None:
        return {}
    return {
        "uri": run.prior.uri,
        "weight": run.settings.prior_weight,
        **dataclasses.asdict(run.prior.manifest),
    }


def _goes_on_from(run: _Run, trained: _Trained) -> int | None:
    """The step from which a longer training would continue; `None` if it would start again."""
    longer = goes_on(run.config, run.base_model.preset, trained.evaluations)
    return trained.history[-1].step if longer else None


def _kept(trained: _Trained) -> dict[str, Any]:
    """The step that the weights are from, and why; empty if no step was evaluated."""
    evaluations = trained.evaluations
    if evaluations is None or evaluations.kept is None:
        return {}
    return {
        "step": trained.step,
        "steps_done": trained.history[-1].step,
        "chosen": evaluations.chooses,
        "why": evaluations.why(),
        "loss": evaluations.kept.loss,
        "pictures": evaluations.plan.pictures,
        "timesteps": evaluations.plan.strata,
        "seconds": round(evaluations.seconds, 1),
    }


def _check_inputs(
    latents: LatentsManifest,
    settings: TrainerSettings,
    base_model: BaseModel,
) -> None:
    base_model.check_unchanged(settings.base_weights_hash)
    hash_now = base_model.hash(ENCODERS)
    made_by = (latents.preset, latents.image_size, latents.encoders_hash)
    wanted = (settings.preset, settings.image_size, hash_now)
    if made_by != wanted:
        raise UserError(
            "the latents were made for another model: their preset, image size and hash of the "
            f"encoders' weights are {made_by}, but this run needs {wanted}; run LatentGen again"
        )
    word = None if settings.word is None else settings.word.word
    if latents.new_word != word:
        told, asked = (w.to_json() if w else "no new word" for w in (latents.new_word, word))
        raise UserError(
            f"the latents' captions have {told}, but this run needs {asked}: run LatentGen again"
        )


def _class_latents(
    uri: str | None, settings: TrainerSettings, base_model: BaseModel
) -> ClassLatents | None:
    """The latents of class pictures in a folder; `None` if none are used."""
    if settings.prior_weight is None:
        return None
    if uri is None:
        raise UserError(
            "there are no latents of class pictures, which prior.caption requires: give their "
            "folder with --class-latents, or set prior.caption to null"
        )
    prior = ClassLatents.read(uri)
    _check_inputs(prior.manifest, settings, base_model)
    return prior


def _config_for(
    config: ResolvedTrainingConfig,
    latents: LatentsManifest,
    base_model: BaseModel,
    strategy: tf.distribute.Strategy | None,
) -> ResolvedTrainingConfig:
    """The hyperparameters for this number of pictures on this machine."""
    num_examples = latents.epoch_size
    devices = strategy.num_replicas_in_sync if strategy else 1
    found = on_this_machine(config.for_examples(num_examples, base_model.preset, devices))
    if found.batch_size < config.batch_size:
        logger.warning(
            "The batch size is %d instead of %d: the train split has only %d pictures.",
            found.batch_size,
            config.batch_size,
            num_examples,
        )
    if found.batch_size > num_examples:
        raise UserError(
            f"the batch size is {found.batch_size} but the train split has only {num_examples} "
            "pictures: set --batch-size to that or less"
        )
    return found


def _with_prompts(validation: ValidationConfig, latents_uri: str) -> ValidationConfig:
    """With the prompts to draw: the configured ones, or held-out captions."""
    if validation.prompts is not None:
        return validation
    return dataclasses.replace(validation, prompts=held_out_prompts(_held_out_files(latents_uri)))


def _held_out_files(latents_uri: str) -> list[str]:
    files: list[str] = tf.io.gfile.glob(os.path.join(latents_uri, "Split-eval", "*"))
    return files


def _facts(
    settings: TrainerSettings,
    config: ResolvedTrainingConfig,
    base_model: BaseModel,
    latents: LatentsManifest,
    latents_uri: str,
    start: _Start | None,
    prior: ClassLatents | None = None,
) -> dict[str, Any]:
    """Everything that decides the weights of a training, and nothing else.

    Its hash names the checkpoints. It leaves out addresses, since folders may be moved, and what is
    drawn, logged or exported in another format, which a finished training repeats without a step.
    """
    return {
        "preset": settings.preset,
        "image_size": settings.image_size,
        "numerics": base_model.preset.numerics,
        "base_weights_hash": settings.base_weights_hash,
        "code_version": settings.code_version,
        "latents": latents.fields,
        "content": content_digest(latents_uri),
        "training": config.deciding,
        **{
            name: value
            for name in ("prediction", "zero_terminal_snr")
            if (value := getattr(settings, name)) is not None
        },
        **({} if settings.word is None else {"word": settings.word.deciding}),
        **({} if start is None else {"started_from": start.digest}),
        **(
            {}
            if prior is None
            else {
                "prior": {
                    "latents": prior.manifest.fields,
                    "content": content_digest(prior.uri),
                    "weight": settings.prior_weight,
                }
            }
        ),
    }


def _line(settings: TrainerSettings, facts: dict[str, Any]) -> Line:
    training = {name: v for name, v in facts["training"].items() if name not in OF_LENGTH}
    name = _name({**facts, "training": training})
    return Line(settings.checkpoint_dir, name, _name(facts))


def _name(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _processor() -> str:
    gpus = [
        str(tf.config.experimental.get_device_details(gpu).get("device_name", "a GPU"))
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    return ", ".join([processor(), *gpus])


def _copy_tree(source: str, target: str) -> None:
    for folder, _, names in tf.io.gfile.walk(source):
        here = os.path.join(target, os.path.relpath(folder, source))
        tf.io.gfile.makedirs(here)
        for name in names:
            tf.io.gfile.copy(os.path.join(folder, name), os.path.join(here, name), overwrite=True)
