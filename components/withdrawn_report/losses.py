"""Losses on withdrawn pictures beside held-out ones.

The pictures are read again if the dataset still has them, and encoded like LatentGen's held-out
pictures, in a local folder that is deleted afterwards.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from apache_beam.utils import shared
from tensorflow_model_analysis.utils.math_util import calculate_confidence_interval

from components.caption_example_gen.rows import example_of
from components.caption_example_gen.sources import DatasetSpec, Unit, open_dataset
from components.evaluator.metrics import relative_difference
from components.latent_gen.encoding import HELD_OUT, EncodeShard, Shard, Way
from components.loss_scorer.records import bytes_of
from components.loss_scorer.samples import SampleSettings
from components.loss_scorer.scorer import Scorer, ScoringTask
from components.measures import MeasureSettings
from components.progress import SharedProgress
from components.tfrecords import read_shard, write_shard
from storage.images import ImageError
from storage.withdrawn import WithdrawnRow
from trainer.diffusion.draws import num_draws
from trainer.weights.base_model import BaseModel


@dataclasses.dataclass(frozen=True)
class Gap:
    """How much lower a loss is than another, with the ends of its 95 % interval.

    Attributes:
        value: The gap as a fraction of the held-out loss; above zero if the withdrawn pictures have
            the lower loss.
        lower: Lower end of the interval; NaN for a single picture, which has no interval.
        upper: Upper end of the interval; likewise.
    """

    value: float
    lower: float
    upper: float

    @property
    def is_shown(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.lower > 0

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.lower) and math.isfinite(self.upper)


@dataclasses.dataclass(frozen=True)
class Losses:
    """Mean losses on some examples.

    Attributes:
        mean: Mean loss of the model, over all rows.
        base_weights: Mean loss of the base weights.
        examples: Number of examples.
        pictures: Number of their pictures; near duplicates count once.
    """

    mean: float
    base_weights: float
    examples: int
    pictures: int


@dataclasses.dataclass(frozen=True)
class Scores:
    """Losses of examples, row by row.

    Attributes:
        by_example: By id, float [rows, 2]: losses of the model and of the base weights.
        group: The picture of every example; near duplicates count as one picture.
    """

    by_example: Mapping[str, np.ndarray]
    group: Mapping[str, int]

    def only(self, ids: Iterable[str]) -> Scores:
        """The losses of some examples."""
        kept = {name: self.by_example[name] for name in ids if name in self.by_example}
        return Scores(kept, self.group)

    @property
    def losses(self) -> Losses:
        """The mean losses."""
        every = np.concatenate([*self.by_example.values()])
        model, base = every.mean(0)
        groups = {self.group[name] for name in self.by_example}
        return Losses(float(model), float(base), len(self.by_example), len(groups))

    def sums(self, of: Callable[[np.ndarray], np.ndarray]) -> dict[int, np.ndarray]:
        """Rows and totals of every picture, as `cluster_mean` takes them."""
        found: dict[int, np.ndarray] = collections.defaultdict(lambda: np.zeros(2))
        for name, losses in self.by_example.items():
            values = of(losses)
            found[self.group[name]] += (len(values), values.sum())
        return dict(found)


def gap(withdrawn: Scores, held_out: Scores) -> Gap:
    """How much lower the model's loss is on withdrawn pictures, like `memorization_gap`."""
    return _gap(withdrawn, held_out, _of_model)


def gap_added(withdrawn: Scores, held_out: Scores) -> Gap:
    """How much further the loss has fallen on withdrawn pictures, from that of the base weights.

    This does not depend on which pictures are harder.
    """
    return _gap(withdrawn, held_out, _change)


def score(
    rows: Sequence[WithdrawnRow],
    pictures: Mapping[str, bytes],
    held_out: Sequence[bytes],
    way: Way,
    settings: ScoringTask,
    min_draws: int,
) -> tuple[Scores, Scores]:
    """Losses of withdrawn rows, and of held-out ones.

    Args:
        rows: The withdrawn rows; some may not be in `pictures`.
        pictures: Pictures by their SHA-256 (hex).
        held_out: Records from LatentGen.
        way: How LatentGen encodes.
        settings: How rows are scored.
        min_draws: Minimum number of scores in each stratum, over all examples together.
    """
    with tempfile.TemporaryDirectory() as folder:
        captions = {row.id: row for row in rows if row.picture in pictures}
        made = [example_of(pictures[row.picture], row.caption) for row in captions.values()]
        source, target = (os.path.join(folder, name) for name in ("examples.gz", "latents.gz"))
        write_shard(source, (each.example for each in made), folder)
        encode = EncodeShard(way, folder, False, shared.Shared(), SharedProgress())
        encode.setup()
        for _ in encode.process((target, [Shard(HELD_OUT, 0, source, target)])):
            pass
        withdrawn = list(read_shard(target))
    scorer = Scorer(settings)
    first = {row.id: _number(row.near or row.picture) for row in captions.values()}
    return (
        Scores(_scored(scorer, withdrawn, min_draws), first),
        Scores(
            _scored(scorer, held_out, min_draws),
            {_id(record): _number(bytes_of(record, "latent/mean").hex()) for record in held_out},
        ),
    )


def task(
    base_model: BaseModel,
    candidate: str,
    way: Way,
    num_strata: int,
    seed: int,
    batch_size: int,
    in_buckets: bool,
) -> ScoringTask:
    """How pictures are scored: like LossScorer, beside the base weights, without drawing."""
    return ScoringTask(
        base_model=base_model,
        candidate=candidate,
        baseline=None,
        comparable=True,
        num_strata=num_strata,
        seed=seed,
        batch_size=batch_size,
        samples=SampleSettings("ddim", 1, 1.0, 1, MeasureSettings()),
        word=way.word,
        in_buckets=in_buckets,
    )


def read_again(spec: DatasetSpec, rows: Iterable[WithdrawnRow]) -> dict[str, bytes]:
    """The pictures of withdrawn rows that the dataset still has, by their SHA-256 (hex).

    Raises:
        DatasetError: The dataset cannot be read.
    """
    wanted = {row.picture for row in rows}
    origins = {row.origin for row in rows}
    source = open_dataset(spec)
    found: dict[str, bytes] = {}

    def is_likely(unit: Unit) -> bool:
        return unit.file in origins or any(not origins.isdisjoint(names) for names in unit.names)

    # First where the rows were; then, in case files were renamed, everywhere.
    for likely in (True, False):
        for unit in source.units():
            if wanted <= found.keys():
                return found
            if is_likely(unit) != likely:
                continue
            for row in source.read(unit):
                if row.image is None:
                    continue
                digest = hashlib.sha256(row.image).hexdigest()
                if digest in wanted and _can_be_read(row.image):
                    found[digest] = row.image
    return found


def _can_be_read(picture: bytes) -> bool:
    try:
        example_of(picture, "")
    except ImageError:
        return False
    return True


def _scored(scorer: Scorer, records: Sequence[bytes], min_draws: int) -> Mapping[str, np.ndarray]:
    found: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
    draws = num_draws(len(records), min_draws)
    for row in scorer.training_rows(lambda: records, draws):
        found[_id(row.record)].append((row.loss, row.loss_baseline))
    return {name: np.array(losses) for name, losses in found.items()}


def _gap(withdrawn: Scores, held_out: Scores, of: Callable[[np.ndarray], np.ndarray]) -> Gap:
    difference = relative_difference(
        held_out.sums(of), withdrawn.sums(of), held_out.sums(_of_model)
    )
    _, lower, upper = calculate_confidence_interval(difference)
    return Gap(difference.unsampled_value, float(lower), float(upper))


def _of_model(losses: np.ndarray) -> np.ndarray:
    return losses[:, 0]


def _change(losses: np.ndarray) -> np.ndarray:
    result: np.ndarray = losses[:, 0] - losses[:, 1]
    return result


def _number(digest: str) -> int:
    return int(hashlib.sha256(digest.encode()).hexdigest()[:15], 16)


def _id(record: bytes) -> str:
    return bytes_of(record, "id").decode()
