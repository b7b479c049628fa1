"""Held-out losses while a model is trained, and the step that they choose.

The same pictures, timesteps and noise are scored every time, so that the losses of two steps are
paired and their difference is known far better than either.
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

# Of a step's work: a forward pass, and a backward pass that costs twice as much at least.
_FORWARD_PASSES_OF_A_STEP = 3
_SHARE_OF_TRAINING = 0.05
_EVALUATIONS = 20
# Evaluations are fewer where they would have less.
_FEWEST_SCORED = 16
# And cost more where they were asked for and would have less.
_FEWEST_OF_CHOICE = 8
# A longer training goes on with a shorter one's held-out curve up to so many times its length.
_MOST_TIMES_LONGER = 4
_MOST_STRATA = 50
# The noise of every training, so that their losses can be compared; LossScorer's other pictures
# have noise of their own.
_SEED = 0
_CONFIDENCE = 0.95

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The held-out losses of the averaged weights.

    Attributes:
        step: Optimizer steps done.
        losses: Of each picture, mean over its timesteps; of equal pictures in equal places.
        scored: Names the pictures, timesteps and noise.
    """

    step: int
    losses: tuple[float, ...]
    scored: str

    @property
    def loss(self) -> float:
        """Their mean."""
        return float(np.mean(self.losses))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is evaluated, and when.

    Attributes:
        every: Steps between evaluations; the last step is evaluated in any case.
        pictures: Held-out pictures that are scored.
        strata: Equal parts of the timesteps; each picture is scored at a timestep of each.
        cost: Forward passes of all evaluations, as a fraction of the training's work.
    """

    every: int
    pictures: int
    strata: int
    cost: float

    def __str__(self) -> str:
        timesteps = "timestep" if self.strata == 1 else "timesteps"
        return f"every {self.every} steps {self.pictures} at {self.strata} {timesteps} each"

    def is_like(self, other: Plan | None) -> bool:
        """Whether the same is evaluated, as far as both trainings go."""
        return other is not None and dataclasses.replace(other, cost=self.cost) == self

    def for_config(self, config: ResolvedTrainingConfig) -> Plan:
        """The same for a training of other steps."""
        rows = _number_of_evaluations(config, self.every) * self.pictures * self.strata
        return dataclasses.replace(self, cost=rows / _work(config))


def _work(config: ResolvedTrainingConfig) -> int:
    """Of a training, in forward passes of a picture."""
    assert config.steps is not None
    return _FORWARD_PASSES_OF_A_STEP * config.steps * config.batch_size


def _number_of_evaluations(config: ResolvedTrainingConfig, every: int) -> int:
    """That of the base weights, too."""
    assert config.steps is not None
    return 1 + math.ceil(config.steps / every)


def plan_for(config: ResolvedTrainingConfig, pictures: int, chooses: bool) -> Plan | None:
    """What is evaluated for a twentieth of the training's work.

    Work is counted in forward passes of a picture, not in seconds, so that every run of the same
    settings evaluates the same.

    Args:
        config: Hyperparameters; the number of steps must be known.
        pictures: How many there are to be scored.
        chooses: Whether something depends on it: then it may cost more.

    Returns:
        `None` where nothing is to be evaluated, or there is too little work to spare.
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
    # From the twentieth evaluation on as many as in longer trainings, which so choose alike.
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
    """Pictures, and strata of each, that every trial of a search is scored on.

    Args:
        steps: Of all trials together.
        batch_size: Pictures a step.
        scores: How often a trial is scored.
        pictures: How many there are, at least one.
    """
    affordable = _SHARE_OF_TRAINING * _FORWARD_PASSES_OF_A_STEP * steps * batch_size
    rows = max(math.floor(affordable / scores), min(pictures, _FEWEST_OF_CHOICE))
    return _shared_out(rows, pictures)


def _shared_out(rows: int, pictures: int) -> tuple[int, int]:
    """How many pictures, and strata of each, so many rows are."""
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
    """Whether one's loss is lower, by a paired interval that does not include 0."""
    _, upper = paired_interval(np.subtract(one.losses, other.losses))
    return upper < 0


def best_of(evaluations: Iterable[Evaluation]) -> Evaluation | None:
    """The one that is kept when they come one after the other.

    A later one takes the place of the one that is kept if its loss is surely lower. The base
    weights (step 0), and losses that are no finite numbers, are never kept.
    """
    kept: Evaluation | None = None
    for evaluation in evaluations:
        if not evaluation.step or not math.isfinite(evaluation.loss):
            continue
        if kept is None or surely_lower(evaluation, kept):
            kept = evaluation
    return kept


class ScoredPictures:
    """Held-out pictures, each at timesteps and with noise of its own that are always the same."""

    def __init__(
        self, records: Sequence[bytes], strata: int, preset: Preset, image_size: int
    ) -> None:
        """Reads their ids.

        Args:
            records: The latents of an example each.
            strata: Equal parts of the timesteps.
            preset: The preset that made the latents.
            image_size: Side of the pictures in pixels, where the records do not say what it is.
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
        """All rows, those together whose pictures are of one size."""
        rows: dict[ImageSize, list[int]] = {}
        for row in range(self.num_rows):
            rows.setdefault(self._sizes[row // self._strata], []).append(row)
        return list(rows.values())

    def batches(self, rows: Sequence[int], size: int) -> Iterator[dict[str, tf.Tensor]]:
        """Rows in batches of one size; the last one is filled up by its last row.

        Args:
            rows: Whose pictures are of one size.
            size: Rows of a batch.

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
        """Each picture's mean of the losses of all rows, float32 [pictures * strata]."""
        each = losses.astype(np.float64).reshape(-1, self._strata).mean(axis=1)
        return tuple(each.tolist())


class Evaluations:
    """The evaluations of a run: when they are due, what they found, and what they chose.

    What was chosen follows from the losses alone, which are all that is written down.

    Attributes:
        plan: What is evaluated, and when.
        pictures: What is scored.
        seconds: What evaluations have taken in this process.
    """

    def __init__(
        self,
        plan: Plan,
        pictures: ScoredPictures,
        config: ResolvedTrainingConfig,
        available: int,
    ) -> None:
        """Nothing is evaluated yet.

        Args:
            plan: What is evaluated, and when.
            pictures: What is scored.
            config: Hyperparameters; `keep` and `stop_early` are those that hold.
            available: Pictures that could be scored.
        """
        self.plan = plan
        self.pictures = pictures
        self.seconds = 0.0
        self._config = config
        self._available = available
        self._done: list[Evaluation] = []

    @property
    def done(self) -> Sequence[Evaluation]:
        """In the order of their steps."""
        return self._done

    @property
    def best(self) -> Evaluation | None:
        """The one that was chosen so far."""
        return best_of(self._done)

    @property
    def chooses(self) -> bool:
        """Whether anything was decided by them: then others have to judge."""
        return self._config.chooses

    @property
    def keeps_best(self) -> bool:
        """Whether that one's weights are exported."""
        return self._config.keep == "best"

    @property
    def stops(self) -> bool:
        """Whether training is to stop here."""
        best = self.best
        if not self._config.stop_early or best is None:
            return False
        return len(self._done) - 1 - self._done.index(best) >= self._config.stop_early

    @property
    def kept(self) -> Evaluation | None:
        """The one whose weights are exported; `None` where nothing was evaluated, or no number."""
        if self.keeps_best:
            return self.best
        return self._done[-1] if self._done else None

    def why(self) -> str:
        """Why that one's weights are exported, in words for people."""
        best, number = self.best, self.plan.pictures
        if best is not None and self.keeps_best:
            return (
                f"on the {number} held-out pictures that choose it has the lowest loss, "
                f"{best.loss:.4f}, and no later step has one that is surely lower (training.keep)"
            )
        if best is not None and self.stops:
            return (
                f"training stopped there: on {number} held-out pictures no loss was surely lower "
                f"than that of step {best.step} (training.stop_early)"
            )
        return "it is the last one (training.keep)"

    def same_if_longer(self, config: ResolvedTrainingConfig) -> bool:
        """Whether a longer training would have chosen the same by now, and have it yet to stop.

        Args:
            config: Its hyperparameters.
        """
        if self.stops or not self.plan.is_like(plan_for(config, self._available, self.chooses)):
            return False
        of_both = best_of(e for e in self._done if e.step % self.plan.every == 0)
        return not self.keeps_best or of_both is self.best

    def due(self, step: int) -> bool:
        """Whether the weights of a step are evaluated."""
        if any(evaluation.step == step for evaluation in self._done):
            return False
        return step % self.plan.every == 0 or step == self._config.steps

    def add(self, step: int, losses: np.ndarray) -> bool:
        """Adds the losses of all rows after a step; returns whether that step is now the best."""
        evaluation = Evaluation(step, self.pictures.means(losses), self.pictures.name)
        self._done.append(evaluation)
        return self.best is evaluation

    def restore(self, folder: str, last_step: int, *, of_another: bool = False) -> None:
        """Reads what `write` wrote, of the same pictures and up to a step.

        Args:
            folder: Where it is.
            last_step: Later ones are left out.
            of_another: Whether it is of another training: then steps at which this one evaluates
                nothing are left out, such as the last one of a shorter training.
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
    """The evaluations in `<folder>/evaluations.jsonl`; none where there is no such file."""
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
    """The evaluations of a run, and says what they are.

    Where held-out pictures choose, only that half of them is scored that LossScorer does not look
    at. Where there are too few of them, nothing is chosen, and all are scored.

    Args:
        config: Hyperparameters; the number of steps must be known.
        held_out: The held-out pictures.
        preset: The preset that made their latents.
        image_size: Side of the pictures in pixels.
        former: Of the training that this one goes on from. Where nothing is chosen it holds for
            this one, too, so that both have one curve, unless it asks for another or is far longer.
        tuned: Whether they choose hyperparameters in any case.

    Returns:
        `None` where nothing is evaluated.
    """
    chooses = config.chooses
    if chooses and (problem := too_few_to_choose(config, held_out)):
        logger.warning(
            "Nothing is chosen by held-out pictures: %s. The last step is kept.", problem
        )
        config, chooses = dataclasses.replace(config, keep="last", stop_early=0), False
    half = chooses or tuned
    scored = held_out.choosing if half else held_out.all
    plan = plan_for(config, len(scored.records), chooses)
    if plan is not None and former is not None and not chooses:
        plan = _as_before(former, plan, config)
    if plan is None:
        return None
    logger.info(
        "Every %d steps %d of %d held-out pictures are scored%s, at %d timestep%s each, for %.1f "
        "%% of the training's work.",
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
    """Why nothing can be chosen by these pictures, in words; `None` where it can."""
    count, least = held_out.all.count, config.choose_from_pictures
    if count < least:
        return (
            f"there are {count}, and at least {least} are asked for (training.choose_from_pictures)"
        )
    choosing, judging = held_out.choosing.count, held_out.judging.count
    if choosing < 2 or not judging:
        return (
            f"by their hashes {choosing} of {count} would choose and {judging} judge, and at least "
            "two and one have to: hold out more (dataset.eval_fraction)"
        )
    return None
