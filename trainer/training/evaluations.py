"""Held-out losses during training, and the step that they choose.

The same pictures, timesteps and noise are scored every time, so the losses of two steps are paired
and their difference is known far more precisely than either loss.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf
from scipy import special

from trainer.data.held_out import HeldOutPictures
from trainer.data.latents import parse_latents, size_of
from trainer.data.whole_files import write_whole
from trainer.diffusion.draws import draw_noise
from trainer.presets import ImageSize, Preset
from trainer.training_config import ResolvedTrainingConfig

EVALUATIONS_NAME = "evaluations.jsonl"

# The work of a step: a forward pass, and a backward pass that costs at least twice as much.
_FORWARD_PASSES_OF_A_STEP = 3
_SHARE_OF_TRAINING = 0.05
_EVALUATIONS = 20
# If evaluations would score fewer pictures, there are fewer evaluations.
_FEWEST_SCORED = 16
# If requested evaluations would score fewer pictures, they cost more instead.
_FEWEST_OF_CHOICE = 8
# A longer training continues the held-out curve of a shorter one up to this multiple of its length.
_MOST_TIMES_LONGER = 4
_MOST_STRATA = 50
# Seed of the noise in every training, so that losses can be compared; the other pictures, which
# LossScorer scores, have noise of their own.
_SEED = 0
_CONFIDENCE = 0.95

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The held-out losses of the averaged weights.

    Attributes:
        step: Optimizer steps done.
        losses: Mean over the timesteps for each picture, always in the same order of pictures.
        scored: Names the pictures, timesteps and noise.
    """

    step: int
    losses: tuple[float, ...]
    scored: str

    @property
    def loss(self) -> float:
        """The mean of the losses."""
        return float(np.mean(self.losses))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is evaluated, and when.

    Attributes:
        every: Steps between evaluations; the last step is evaluated in any case.
        pictures: Held-out pictures that are scored.
        strata: Equal parts of the timesteps; each picture is scored at one timestep of each.
        cost: Forward passes of all evaluations, as a fraction of the work of the training.
    """

    every: int
    pictures: int
    strata: int
    cost: float

    def __str__(self) -> str:
        timesteps = "timestep" if self.strata == 1 else "timesteps"
        return f"every {self.every} steps {self.pictures} at {self.strata} {timesteps} each"

    def is_like(self, other: Plan | None) -> bool:
        """Whether the evaluations are the same for as long as both trainings last."""
        return other is not None and dataclasses.replace(other, cost=self.cost) == self

    def for_config(self, config: ResolvedTrainingConfig) -> Plan:
        """The same plan for a training with another number of steps."""
        rows = _number_of_evaluations(config, self.every) * self.pictures * self.strata
        return dataclasses.replace(self, cost=rows / _work(config))


def _work(config: ResolvedTrainingConfig) -> int:
    """Work of a training, in forward passes of one picture."""
    assert config.steps is not None
    return _FORWARD_PASSES_OF_A_STEP * config.steps * config.batch_size


def _number_of_evaluations(config: ResolvedTrainingConfig, every: int) -> int:
    """Number of evaluations, including the one of the base weights."""
    assert config.steps is not None
    return 1 + math.ceil(config.steps / every)


def plan_for(config: ResolvedTrainingConfig, pictures: int, chooses: bool) -> Plan | None:
    """The evaluations that a twentieth of the work of the training pays for.

    Work is counted in forward passes of one picture, not in seconds, so that every run with the
    same settings evaluates the same.

    Args:
        config: Hyperparameters; the number of steps must be known.
        pictures: Number of pictures that can be scored.
        chooses: Whether a choice depends on the evaluations, which may then cost more.

    Returns:
        `None` if nothing is to be evaluated, or there is too little work to spare.
    """
    assert config.steps is not None
    if not pictures or config.evaluate_every_steps == 0:
        return None
    asked_for = chooses or config.evaluate_every_steps is not None
    work = _work(config)
    affordable = math.floor(_SHARE_OF_TRAINING * work)
    if config.evaluate_every_steps is None:
        number = min(_EVALUATIONS, affordable // min(pictures, _FEWEST_SCORED))
        if number < 2 and not asked_for:
            return None
        every = math.ceil(config.steps / max(2, number))
    else:
        every = min(config.evaluate_every_steps, config.steps)
    evaluations = _number_of_evaluations(config, every)
    # From twenty evaluations on, as many rows as in longer trainings, which then choose alike.
    of_longer = dataclasses.replace(config, steps=_EVALUATIONS * every)
    enough = math.floor(_SHARE_OF_TRAINING * _work(of_longer)) // (1 + _EVALUATIONS)
    rows = min(affordable // evaluations, enough)
    if asked_for:
        rows = max(rows, min(pictures, _FEWEST_OF_CHOICE))
    if not rows:
        return None
    scored, strata = _shared_out(rows, pictures)
    return Plan(every, scored, strata, evaluations * scored * strata / work)


def trial_rows(steps: int, batch_size: int, scores: int, pictures: int) -> tuple[int, int]:
    """The numbers of pictures, and strata of each, on which every trial of a search is scored.

    Args:
        steps: Steps of all trials together.
        batch_size: Pictures per step.
        scores: How often a trial is scored.
        pictures: Number of pictures, at least one.
    """
    affordable = _SHARE_OF_TRAINING * _FORWARD_PASSES_OF_A_STEP * steps * batch_size
    rows = max(math.floor(affordable / scores), min(pictures, _FEWEST_OF_CHOICE))
    return _shared_out(rows, pictures)


def _shared_out(rows: int, pictures: int) -> tuple[int, int]:
    """The numbers of pictures, and strata of each, that make up this number of rows."""
    strata = min(_MOST_STRATA, max(1, rows // pictures))
    return min(pictures, rows // strata), strata


def paired_interval(differences: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of independent differences, float64 [N], by Student's t."""
    count = len(differences)
    if count < 2:
        return -math.inf, math.inf
    mean, error = np.mean(differences), np.std(differences, ddof=1) / math.sqrt(count)
    reach = special.stdtrit(count - 1, (1 + _CONFIDENCE) / 2) * error
    return float(mean - reach), float(mean + reach)


def surely_lower(one: Evaluation, other: Evaluation) -> bool:
    """Whether the loss of `one` is lower, by a paired interval that excludes 0."""
    _, upper = paired_interval(np.subtract(one.losses, other.losses))
    return upper < 0


def best_of(evaluations: Iterable[Evaluation]) -> Evaluation | None:
    """The evaluation that is kept when they arrive one after the other.

    A later one replaces the one that is kept if its loss is surely lower. The base weights (step 0)
    and losses that are not finite are never kept.
    """
    kept: Evaluation | None = None
    for evaluation in evaluations:
        if not evaluation.step or not math.isfinite(evaluation.loss):
            continue
        if kept is None or surely_lower(evaluation, kept):
            kept = evaluation
    return kept


class ScoredPictures:
    """Held-out pictures, each with its own fixed timesteps and noise."""

    def __init__(
        self, records: Sequence[bytes], strata: int, preset: Preset, image_size: int
    ) -> None:
        """Reads the ids of the pictures.

        Args:
            records: The latents of one example each.
            strata: Equal parts of the timesteps.
            preset: The preset that made the latents.
            image_size: Side of the pictures in pixels, if the records do not have it.
        """
        self._records = records
        self._strata = strata
        self._preset = preset
        self._sizes = [size_of(record, image_size) for record in records]
        self._ids = [
            tf.train.Example.FromString(record).features.feature["id"].bytes_list.value[0].decode()
            for record in records
        ]
        self.name = hashlib.sha256(f"{strata}/{','.join(self._ids)}".encode()).hexdigest()[:16]

    @property
    def num_rows(self) -> int:
        """Pictures times timesteps."""
        return len(self._records) * self._strata

    def rows_by_size(self) -> list[list[int]]:
        """All rows, grouped by the size of their pictures."""
        rows: dict[ImageSize, list[int]] = {}
        for row in range(self.num_rows):
            rows.setdefault(self._sizes[row // self._strata], []).append(row)
        return list(rows.values())

    def batches(self, rows: Sequence[int], size: int) -> Iterator[dict[str, tf.Tensor]]:
        """Rows in batches of equal length; the last one is padded with its last row.

        Args:
            rows: Rows whose pictures have the same size.
            size: Rows in a batch.

        Yields:
            What `parse_latents` returns, and `timesteps` int32 [B], `noise` and `posterior`
            float32 [B, h, w, 4].
        """
        image_size = self._sizes[rows[0] // self._strata]
        shape = self._preset.latent_shape(image_size)
        for first in range(0, len(rows), size):
            some = [rows[min(place, len(rows) - 1)] for place in range(first, first + size)]
            pictures = [row // self._strata for row in some]
            draws = [
                draw_noise(self._ids[picture], row % self._strata, self._strata, _SEED, shape)
                for picture, row in zip(pictures, some, strict=True)
            ]
            records = tf.constant([self._records[picture] for picture in pictures])
            yield {
                **parse_latents(records, self._preset, image_size),
                "timesteps": tf.constant([draw.timestep for draw in draws], tf.int32),
                "noise": tf.constant(np.stack([draw.epsilon for draw in draws])),
                "posterior": tf.constant(np.stack([draw.posterior_noise for draw in draws])),
            }

    def means(self, losses: np.ndarray) -> tuple[float, ...]:
        """Mean loss of each picture, from the losses of all rows, float32 [pictures * strata]."""
        each = losses.astype(np.float64).reshape(-1, self._strata).mean(axis=1)
        return tuple(each.tolist())


class Evaluations:
    """The evaluations of a run: when they are due, their losses, and what they chose.

    Only the losses are written down; the choice follows from them.

    Attributes:
        plan: What is evaluated, and when.
        pictures: What is scored.
        seconds: Seconds that evaluations have taken in this process.
    """

    def __init__(
        self,
        plan: Plan,
        pictures: ScoredPictures,
        config: ResolvedTrainingConfig,
        available: int,
    ) -> None:
        """Evaluates nothing yet.

        Args:
            plan: What is evaluated, and when.
            pictures: What is scored.
            config: Hyperparameters; its `keep` and `stop_early` apply.
            available: Number of pictures that could be scored.
        """
        self.plan = plan
        self.pictures = pictures
        self.seconds = 0.0
        self._config = config
        self._available = available
        self._done: list[Evaluation] = []

    @property
    def done(self) -> Sequence[Evaluation]:
        """The evaluations so far, in the order of their steps."""
        return self._done

    @property
    def best(self) -> Evaluation | None:
        """The evaluation that is chosen so far."""
        return best_of(self._done)

    @property
    def chooses(self) -> bool:
        """Whether they decide anything: then other pictures have to judge."""
        return self._config.chooses

    @property
    def keeps_best(self) -> bool:
        """Whether the weights of the best one are exported."""
        return self._config.keep == "best"

    @property
    def stops(self) -> bool:
        """Whether training should stop here."""
        best = self.best
        if not self._config.stop_early or best is None:
            return False
        return len(self._done) - 1 - self._done.index(best) >= self._config.stop_early

    @property
    def kept(self) -> Evaluation | None:
        """The one whose weights are exported; `None` if there is none, or none that is finite."""
        if self.keeps_best:
            return self.best
        return self._done[-1] if self._done else None

    def why(self) -> str:
        """Why the weights of that one are exported, in words."""
        best, number = self.best, self.plan.pictures
        if best is not None and self.keeps_best:
            return (
                f"it has the lowest loss on the {number} held-out pictures that choose, "
                f"{best.loss:.4f}, and no later step has a surely lower one (training.keep)"
            )
        if best is not None and self.stops:
            return (
                f"training stopped there: on {number} held-out pictures no later loss was surely "
                f"lower than at step {best.step} (training.stop_early)"
            )
        return "it is the last step (training.keep)"

    def same_if_longer(self, config: ResolvedTrainingConfig) -> bool:
        """Whether a longer training would have chosen the same by now, without stopping.

        Args:
            config: Hyperparameters of the longer training.
        """
        if self.stops or not self.plan.is_like(plan_for(config, self._available, self.chooses)):
            return False
        of_both = best_of(e for e in self._done if e.step % self.plan.every == 0)
        return not self.keeps_best or of_both is self.best

    def due(self, step: int) -> bool:
        """Whether the weights of a step are still to be evaluated."""
        if any(evaluation.step == step for evaluation in self._done):
            return False
        return step % self.plan.every == 0 or step == self._config.steps

    def add(self, step: int, losses: np.ndarray) -> bool:
        """Adds the losses of all rows after a step; returns whether that step is now the best."""
        evaluation = Evaluation(step, self.pictures.means(losses), self.pictures.name)
        self._done.append(evaluation)
        return self.best is evaluation

    def restore(self, folder: str, last_step: int, *, of_another: bool = False) -> None:
        """Reads what `write` wrote for the same pictures, up to a step.

        Args:
            folder: Folder of the file.
            last_step: Later steps are left out.
            of_another: Whether it belongs to another training: then steps that this one does not
                evaluate are left out, such as the last step of a shorter training.
        """
        self._done = []
        for found in read_evaluations(folder):
            wanted = found.step <= last_step and found.scored == self.pictures.name
            if wanted and (not of_another or self.due(found.step)):
                self._done.append(found)

    def write(self, folder: str) -> None:
        """Writes `<folder>/evaluations.jsonl`, whole or not at all."""
        lines = (json.dumps(dataclasses.asdict(e)) + "\n" for e in self._done)
        write_whole(os.path.join(folder, EVALUATIONS_NAME), "".join(lines))


def read_evaluations(folder: str) -> list[Evaluation]:
    """The evaluations in `<folder>/evaluations.jsonl`; none if there is no such file."""
    path = os.path.join(folder, EVALUATIONS_NAME)
    if not tf.io.gfile.exists(path):
        return []
    with tf.io.gfile.GFile(path, "r") as f:
        lines = [json.loads(line) for line in f if line.strip()]
    return [Evaluation(e["step"], tuple(e["losses"]), e["scored"]) for e in lines]


def evaluations_for(
    config: ResolvedTrainingConfig,
    held_out: HeldOutPictures,
    preset: Preset,
    image_size: int,
    *,
    former: Plan | None = None,
    tuned: bool = False,
) -> Evaluations | None:
    """Makes the evaluations of a run, and logs what they are.

    If held-out pictures choose, only the half that LossScorer does not use is scored. If there are
    too few of them, nothing is chosen and all are scored.

    Args:
        config: Hyperparameters; the number of steps must be known.
        held_out: The held-out pictures.
        preset: The preset that made their latents.
        image_size: Side of the pictures in pixels.
        former: Plan of the training that this one continues. If nothing is chosen, this one uses
            it too, so that both share one curve, unless it requests another or is far longer.
        tuned: Whether held-out pictures choose hyperparameters in any case.

    Returns:
        `None` if nothing is evaluated.
    """
    chooses = config.chooses
    if chooses and (problem := too_few_to_choose(config, held_out)):
        logger.warning("Held-out pictures choose nothing: %s. The last step is kept.", problem)
        config, chooses = dataclasses.replace(config, keep="last", stop_early=0), False
    half = chooses or tuned
    scored = held_out.choosing if half else held_out.all
    plan = plan_for(config, len(scored.records), chooses)
    if plan is not None and former is not None and not chooses:
        plan = _as_before(former, plan, config)
    if plan is None:
        return None
    logger.info(
        "Every %d steps, %d of %d held-out pictures are scored%s, at %d timestep%s each, which is "
        "%.1f %% of the training's work.",
        plan.every,
        plan.pictures,
        held_out.all.count,
        f" ({scored.count:,} may choose, {held_out.judging.count:,} judge)" if half else "",
        plan.strata,
        "" if plan.strata == 1 else "s",
        100 * plan.cost,
    )
    pictures = ScoredPictures(scored.records[: plan.pictures], plan.strata, preset, image_size)
    return Evaluations(plan, pictures, config, len(scored.records))


def _as_before(former: Plan, plan: Plan, config: ResolvedTrainingConfig) -> Plan:
    former = former.for_config(config)
    fits = former.every == plan.every or (
        config.evaluate_every_steps is None
        and former.every < plan.every <= _MOST_TIMES_LONGER * former.every
    )
    return former if fits and former.cost <= max(_SHARE_OF_TRAINING, plan.cost) else plan


def too_few_to_choose(config: ResolvedTrainingConfig, held_out: HeldOutPictures) -> str | None:
    """Why these pictures cannot choose, in words; `None` if they can."""
    count, least = held_out.all.count, config.choose_from_pictures
    if count < least:
        return (
            f"there are {count}, but at least {least} are required (training.choose_from_pictures)"
        )
    choosing, judging = held_out.choosing.count, held_out.judging.count
    if choosing < 2 or not judging:
        return (
            f"by their hashes {choosing} of {count} would choose and {judging} would judge, but at "
            "least two must choose and one must judge: hold out more (dataset.eval_fraction)"
        )
    return None
