"""What a model remembers of its training pictures, in words and side by side."""

from __future__ import annotations

import collections
import dataclasses
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image
from tfx import types
from tfx.dsl.io import fileio

from components.caption_example_gen.groups_file import GROUPS_NAME, read_groups
from components.evaluator.executor import (
    COPIES,
    COPIES_SHOWN,
    GAP,
    GAP_ADDED,
    GAP_BASELINE,
    GAP_SHOWN,
    NUM_TRAINING_PICTURES,
    NUM_TRAINING_SAMPLES,
    TEXT_EXCESS,
)
from components.evaluator.results import Metric, Metrics
from components.loss_scorer.executor import MILLISECONDS
from components.loss_scorer.remembering import NEARNESS, NEARNESS_HELD_OUT, PAIRS_NAME, Pair
from components.loss_scorer.scorer import TEXT_PART, TRAINING_LOSSES, TRAINING_TEXT_PART
from storage import filesystem, row_index
from storage.model_manifest import ModelManifest

_TRAINED_ON = "train"
_PARTS = ("the gap", "the text's part", "copies")
_NOTHING = Metric(math.nan)
_TRAINING_LOSS, _TRAINING_LOSS_BASELINE, _ = TRAINING_LOSSES
# Seen so often, and learned so well, pictures are known better than others; less than this much
# better would be a surprise.
_MANY_VIEWS = 50
_LEARNED = 0.5
_NO_GAP = 0.1
_BY = {"": "", "latents": " in latents", "clip": " by CLIP"}


@dataclasses.dataclass(frozen=True)
class Shown:
    """A drawn picture beside the training picture that is nearest to it.

    Attributes:
        pair: What is known of both.
        drawn: The picture.
        trained_on: The training picture, as the decoder sees its latent.
        captions: How many training examples have that very picture.
        near_duplicates: How many others of the training pictures are nearly the same.
    """

    pair: Pair
    drawn: Image.Image
    trained_on: Image.Image
    captions: int
    near_duplicates: int

    @property
    def duplicates(self) -> str:
        """What is the usual cause of copies, in words; empty where there is nothing of it."""
        several = []
        if self.captions > 1:
            several.append(f"{self.captions} times in the training set")
        if self.near_duplicates:
            count = self.near_duplicates
            several.append(f"{count} near duplicate{'' if count == 1 else 's'}")
        return ", ".join(several)


@dataclasses.dataclass(frozen=True)
class Remembered:
    """What is told of it.

    Attributes:
        said: Sentences, what is surely so first in each.
        bad: Whether one of them is against the model.
        table: What was measured, the model's and what it is held against, in words.
        pairs: The nearest, the nearest first.
        seconds: What each part took.
        num_pictures: Training pictures that were scored.
        num_drawn: Pictures that were drawn for captions of training pictures.
    """

    said: Sequence[str]
    bad: bool
    table: Sequence[tuple[str, str, str]]
    pairs: Sequence[Shown]
    seconds: Mapping[str, float]
    num_pictures: int
    num_drawn: int

    def summary(self) -> dict[str, Any]:
        """For `summary.json`, beside the metrics."""
        return {
            "said": list(self.said),
            NUM_TRAINING_PICTURES: self.num_pictures,
            NUM_TRAINING_SAMPLES: self.num_drawn,
            "seconds": dict(self.seconds),
            "nearest": [
                {
                    **{
                        name: value
                        for name, value in dataclasses.asdict(shown.pair).items()
                        if name not in ("drawn", "picture")
                    },
                    "captions_of_it": shown.captions,
                    "near_duplicates_of_it": shown.near_duplicates,
                }
                for shown in self.pairs
            ],
        }


def remembered(
    scores: types.Artifact, dataset: types.Artifact, metrics: Metrics, manifest: ModelManifest
) -> Remembered | None:
    """What a model remembers; `None` where nobody looked.

    Args:
        scores: LossScorer's output.
        dataset: What CaptionExampleGen made.
        metrics: Over all rows.
        manifest: What the model says of itself.
    """
    num_pictures = scores.get_int_custom_property(NUM_TRAINING_PICTURES)
    num_drawn = scores.get_int_custom_property(NUM_TRAINING_SAMPLES)
    if not (num_pictures or num_drawn):
        return None
    pairs = list(_shown(scores.uri, dataset.uri))
    said = [
        (sentence, bad)
        for sentence, bad in (
            _gap(metrics, num_pictures),
            _no_gap(metrics, manifest),
            _copies(metrics, num_drawn),
            _cause(pairs),
            _text_part(metrics),
        )
        if sentence
    ]
    return Remembered(
        said=[sentence for sentence, _ in said],
        bad=any(bad for _, bad in said),
        table=list(_table(metrics, pairs[0].pair.compared_by if pairs else "")),
        pairs=pairs,
        seconds={
            part: scores.get_int_custom_property(name) / 1000
            for part, name in zip(_PARTS, MILLISECONDS, strict=True)
        },
        num_pictures=num_pictures,
        num_drawn=num_drawn,
    )


def _gap(metrics: Metrics, count: int) -> tuple[str, bool]:
    gap = metrics.get(GAP, _NOTHING)
    if not math.isfinite(gap.value):
        return "", False
    measured = f"on {count:,} training pictures its loss is {_below(gap)}"
    if metrics[GAP_SHOWN].value > 0:
        return f"It knows what it was trained on better than other pictures: {measured}.", True
    return f"Its loss does not show that it remembers: {measured}.", False


def _no_gap(metrics: Metrics, manifest: ModelManifest) -> tuple[str, bool]:
    """What a model is suspected of that knows held-out pictures as well as those it has seen."""
    gap = metrics.get(GAP, _NOTHING)
    before = metrics.get(_TRAINING_LOSS_BASELINE, _NOTHING).value
    after = metrics.get(_TRAINING_LOSS, _NOTHING).value
    views = _views(manifest)
    known = views >= _MANY_VIEWS and after <= _LEARNED * before
    if not (known and gap.value < _NO_GAP and metrics[GAP_SHOWN].value == 0):
        return "", False
    return (
        f"It has seen each training picture {views:,.0f} times, and its loss on them fell by "
        f"{1 - after / before:.0%}; yet it knows the held-out ones as well. Were they, or nearly "
        "the same pictures, among those that it was trained on?",
        True,
    )


def _views(manifest: ModelManifest) -> float:
    """How often training has seen each picture; NaN of a model that does not say."""
    steps, batch_size = (manifest.training.get(name) for name in ("steps", "batch_size"))
    size = manifest.latents.get("views") or manifest.latents.get("counts", {}).get(_TRAINED_ON)
    return steps * batch_size / size if steps and batch_size and size else math.nan


def _copies(metrics: Metrics, count: int) -> tuple[str, bool]:
    share = metrics.get(COPIES, _NOTHING).value
    if not math.isfinite(share):
        return "", False
    suspects = round(share * count)
    near = "nearer to a training picture than the nearest hundredth of the held-out ones"
    measured = f"{suspects:,} of {count:,} pictures drawn for training captions are {near}"
    if metrics[COPIES_SHOWN].value > 0:
        return f"It draws copies: {measured}, which chance does not explain.", True
    chance = ", no more than chance explains" if suspects else ""
    return f"It is not shown to draw copies: {measured}{chance}.", False


def _cause(pairs: Sequence[Shown]) -> tuple[str, bool]:
    suspects = [shown for shown in pairs if shown.pair.suspect]
    count = sum(1 for shown in suspects if shown.duplicates)
    if not count:
        return "", False
    return (
        f"Of {len(suspects)} suspects shown, {count} are near a picture that is in the training "
        "set several times or has near duplicates there, which is the usual cause "
        "(dataset.near_duplicates: keep_one).",
        False,
    )


def _text_part(metrics: Metrics) -> tuple[str, bool]:
    excess = metrics.get(TEXT_EXCESS, _NOTHING)
    if not (math.isfinite(excess.value) and excess.lower > 0):
        return "", False
    return (
        "Captions of training pictures decide more of what it predicts than other captions do, by "
        f"{excess.value:.0%} ({excess.lower:+.0%} to {excess.upper:+.0%}): a sign that they stand "
        "for pictures that it remembers.",
        True,
    )


def _below(gap: Metric) -> str:
    side = "below" if gap.value >= 0 else "above"
    return f"{abs(gap.value):.1%} {side} the held-out one (95 % interval {_percents(gap)})"


def _percents(metric: Metric) -> str:
    if not (math.isfinite(metric.lower) and math.isfinite(metric.upper)):
        return "none"
    return f"{metric.lower:+.1%} to {metric.upper:+.1%}"


def _table(metrics: Metrics, compared_by: str) -> Iterator[tuple[str, str, str]]:
    """What was measured, its value, and its interval or what it is held against."""
    for what, name in (
        ("Gap: loss on training pictures below the held-out one", GAP),
        ("The same of the model that it is compared with", GAP_BASELINE),
        ("Gap that training has added to that", GAP_ADDED),
        ("Text's part of a prediction: training captions above held-out ones", TEXT_EXCESS),
    ):
        metric = metrics.get(name, _NOTHING)
        if math.isfinite(metric.value):
            yield what, f"{metric.value:+.1%}", _percents(metric)
    for what, mine, other in (
        ("Loss on training pictures", _TRAINING_LOSS, "loss"),
        ("Text's part of a prediction, training captions", TRAINING_TEXT_PART, TEXT_PART),
        (
            f"Distance to the nearest training picture{_BY[compared_by]}, drawn pictures",
            NEARNESS,
            NEARNESS_HELD_OUT,
        ),
    ):
        if mine in metrics and math.isfinite(metrics[mine].value):
            yield what, f"{metrics[mine].value:.4f}", f"held out: {metrics[other].value:.4f}"


def _shown(scores_uri: str, examples_uri: str) -> Iterator[Shown]:
    path = os.path.join(scores_uri, PAIRS_NAME)
    if not fileio.exists(path):
        return
    with fileio.open(path, "rb") as f:
        pairs = [Pair(**pair) for pair in json.loads(f.read())]
    picture_of, captions = _training_pictures(examples_uri, frozenset(pair.id for pair in pairs))
    near = _near_duplicates(examples_uri)
    for pair in pairs:
        picture = picture_of.get(pair.id, "")
        yield Shown(
            pair,
            _opened(os.path.join(scores_uri, pair.drawn)),
            _opened(os.path.join(scores_uri, pair.picture)),
            captions.get(picture, 1),
            near.get(picture, 0),
        )


def _training_pictures(
    examples_uri: str, ids: frozenset[str]
) -> tuple[dict[str, str], dict[str, int]]:
    """Pictures of some examples, and how many training examples have each picture."""
    folder = os.path.join(examples_uri, row_index.FOLDER_NAME)
    if not ids or not filesystem.is_folder(folder):
        return {}, {}
    picture_of: dict[str, str] = {}
    counts: collections.Counter[str] = collections.Counter()
    for row in row_index.read_rows(folder, _TRAINED_ON):
        counts[row.picture] += 1
        if row.id in ids:
            picture_of[row.id] = row.picture
    return picture_of, {picture: counts[picture] for picture in picture_of.values()}


def _near_duplicates(examples_uri: str) -> dict[str, int]:
    """Of training pictures, how many others are nearly the same."""
    path = os.path.join(examples_uri, GROUPS_NAME)
    if not fileio.exists(path):
        return {}
    found: dict[str, int] = {}
    for members in read_groups(path):
        trained_on = [p.picture for p in members if p.split == _TRAINED_ON]
        found |= dict.fromkeys(trained_on, len(trained_on) - 1)
    return found


def _opened(path: str) -> Image.Image:
    with fileio.open(path, "rb") as f:
        return Image.open(io.BytesIO(f.read())).convert("RGB")
