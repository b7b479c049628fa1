"""What a model remembers: training pictures are scored beside held-out ones, drawn and compared.

The results are in a separate split, `remembering`, so that the rows of held-out pictures are the
same with and without this check.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from components.loss_scorer.latent_examples import read_examples
from components.loss_scorer.models import exported_decoder
from components.loss_scorer.nearest import (
    ClipFeatures,
    Features,
    LatentFeatures,
    Nearest,
    nearest,
    nearest_hundredth,
)
from components.loss_scorer.records import (
    bytes_feature,
    bytes_of,
    float_feature,
    int_feature,
    record_of,
)
from components.loss_scorer.samples import DrawnPicture
from components.loss_scorer.scorer import GROUP, ScoringTask, group_of
from components.measures.clip import Clip
from components.tfrecords import read_shard, shard_name, write_shard
from serving import png
from trainer.data.held_out import different_pictures
from trainer.diffusion.draws import num_draws
from trainer.presets import LATENT_SCALE

SPLIT = "remembering"
NEARNESS, NEARNESS_HELD_OUT = "nearness", "nearness_held_out"
"""Features of its rows: the `Nearest.nearness` of drawn pictures, and of held-out pictures."""

PAIRS_NAME = "nearest.json"
"""The file, beside the splits, with the drawn pictures that are nearest to training pictures."""

_PICTURES_NAME = "nearest"
_KINDS = ("drawn", "trained_on")
_MEAN = "latent/mean"
_MOST_PAIRS = 10
# A hundredth of these is ten.
_MOST_HELD_OUT = 1000


@dataclasses.dataclass(frozen=True)
class Pair:
    """A drawn picture and the training picture that is nearest to it.

    Attributes:
        caption: Caption that it was drawn for.
        drawn: Its file, beside the list of pairs.
        id: Id of the training example with the nearest picture.
        picture: File of the nearest picture, decoded from its latent.
        mirrored: Whether the mirror image of that picture is the nearest.
        nearness: See `Nearest`.
        own: Whether the nearest picture is the one that the caption belongs to.
        suspect: Whether it is nearer than the nearest hundredth of the held-out pictures.
        compared_by: The features that are compared, `clip` or `latents`.
    """

    caption: str
    drawn: str
    id: str
    picture: str
    mirrored: bool
    nearness: float
    own: bool
    suspect: bool
    compared_by: str


@dataclasses.dataclass(frozen=True)
class Remembering:
    """What is examined beside the held-out rows.

    Attributes:
        training: Files of the train split's latents.
        flip: Whether mirror images were also trained on.
        scored: Records of the training pictures that are scored.
        drawn: Records of the training pictures whose captions are drawn.
        held_out: Records of held-out pictures that judge, each picture once.
        wanted: Number of training pictures that should be scored.
    """

    training: Sequence[str]
    flip: bool
    scored: Sequence[bytes]
    drawn: Sequence[bytes]
    held_out: Sequence[bytes]
    wanted: int

    @classmethod
    def planned(
        cls,
        training: Sequence[str],
        flip: bool,
        held_out: Iterable[bytes],
        num_scored: int,
        num_drawn: int,
    ) -> Remembering:
        """Chooses pictures by their hashes.

        Args:
            training: Files of the train split's latents.
            flip: Whether they also have the mirror images.
            held_out: Records of the held-out examples that judge.
            num_scored: Number of training pictures to score, at most the number of held-out ones.
            num_drawn: Number of training captions to draw.
        """
        judging = different_pictures(held_out, _MOST_HELD_OUT)
        records = itertools.chain.from_iterable(map(read_shard, training))
        wanted = min(num_scored, judging.count)
        # A distance means nothing without held-out pictures to compare it with.
        num_drawn = num_drawn if judging.count else 0
        chosen = different_pictures(records, max(wanted, num_drawn)).records
        return cls(training, flip, chosen[:wanted], chosen[:num_drawn], judging.records, wanted)

    @property
    def num_draws(self) -> int:
        """Rows of each scored picture in a stratum: more if there are few, as for held-out ones."""
        return num_draws(len(self.scored), self.wanted)

    @property
    def text_parts(self) -> Sequence[bytes]:
        """As many of the held-out records as there are scored training pictures."""
        return self.held_out[: len(self.scored)]

    def training_records(self) -> Iterator[bytes]:
        """All records of the train split."""
        return itertools.chain.from_iterable(map(read_shard, self.training))


def write_drawn(path: str, drawn: Iterable[DrawnPicture], temporary_folder: str) -> None:
    """Writes drawn pictures for `held_against`, on the machine that drew them."""

    def records() -> Iterator[bytes]:
        for one in drawn:
            values = {
                "id": one.example.id.encode(),
                "tokens": one.example.tokens.astype("<i8").tobytes(),
                "mean": one.mean.astype("<f4").tobytes(),
                "picture": one.picture.tobytes(),
                "shape": np.array(one.picture.shape, "<i8").tobytes(),
            }
            yield record_of({name: bytes_feature(value) for name, value in values.items()})

    write_shard(path, records(), temporary_folder)


def held_against(
    path: str, remembering: Remembering, task: ScoringTask, folder: str, uri: str
) -> None:
    """Compares drawn and held-out pictures with all training pictures.

    Args:
        path: File that `write_drawn` wrote.
        remembering: The other pictures.
        task: The scoring task, with the settings of the pictures and the decoder.
        folder: Folder to write the rows of the split to.
        uri: Folder to write the nearest pairs to.
    """
    # Imports Keras.
    from trainer.text.tokenizer import caption_of

    base_model = task.base_model
    size = base_model.image_size
    drawn = list(read_shard(path))
    rows = range(len(drawn))
    shapes = [tuple(np.frombuffer(bytes_of(record, "shape"), "<i8")) for record in drawn]
    means = [
        np.frombuffer(bytes_of(record, "mean"), "<f4").reshape(
            base_model.preset.latent_shape(shape[:2])
        )
        for record, shape in zip(drawn, shapes, strict=True)
    ]
    held_out = [
        example.mean for example in read_examples(remembering.held_out, base_model.preset, size)
    ]
    pictures = [
        np.frombuffer(bytes_of(record, "picture"), np.uint8).reshape(shape)
        for record, shape in zip(drawn, shapes, strict=True)
    ]
    decode = exported_decoder(task.candidate)
    features = _features(remembering, task, decode)
    wanted = [features.of(means, pictures), features.of_means(held_out)]
    found = nearest(np.concatenate(wanted), remembering.training_records(), features)

    def records() -> Iterator[bytes]:
        for number, (mean, one) in enumerate(zip([*means, *held_out], found, strict=True)):
            if math.isfinite(one.nearness):
                yield _row(NEARNESS if number < len(means) else NEARNESS_HELD_OUT, one, mean)

    write_shard(os.path.join(folder, shard_name("nearness", 0, 1)), records(), uri)
    order = sorted(
        (row for row in rows if math.isfinite(found[row].nearness)),
        key=lambda row: (found[row].nearness, bytes_of(drawn[row], "id")),
    )[:_MOST_PAIRS]
    tf.io.gfile.makedirs(os.path.join(uri, _PICTURES_NAME))
    limit = nearest_hundredth(
        [one.nearness for one in found[len(drawn) :] if math.isfinite(one.nearness)]
    )
    own = {bytes_of(record, "id"): bytes_of(record, _MEAN) for record in remembering.drawn}
    pairs = []
    for number, row in enumerate(order):
        one = found[row]
        [trained_on] = read_examples([one.record], base_model.preset, size, task.caption_variants)
        mean = trained_on.mean
        if one.mirrored:
            mirror = bytes_of(one.record, "latent/mirror_mean")
            mean = np.frombuffer(mirror, "<f2").astype(np.float32).reshape(mean.shape)
        names = [os.path.join(_PICTURES_NAME, f"{number:02d}_{kind}.png") for kind in _KINDS]
        original = decode(tf.constant(LATENT_SCALE * mean[None], tf.float32)).numpy()[0]
        for name, pixels in zip(names, (pictures[row], original), strict=True):
            with tf.io.gfile.GFile(os.path.join(uri, name), "wb") as f:
                f.write(png.encode(pixels))
        tokens = np.frombuffer(bytes_of(drawn[row], "tokens"), "<i8")
        pairs.append(
            Pair(
                caption=caption_of(tokens, task.word),
                drawn=names[0],
                id=trained_on.id,
                picture=names[1],
                mirrored=one.mirrored,
                nearness=one.nearness,
                # The picture may have several captions, so the record may be another example's.
                own=bytes_of(one.record, _MEAN) == own[bytes_of(drawn[row], "id")],
                suspect=one.nearness < limit,
                compared_by=features.name,
            )
        )
    with tf.io.gfile.GFile(os.path.join(uri, PAIRS_NAME), "w") as f:
        f.write(json.dumps([dataclasses.asdict(pair) for pair in pairs], indent=2))


def _features(
    remembering: Remembering, task: ScoringTask, decode: Callable[[tf.Tensor], tf.Tensor]
) -> Features:
    shape, flip = task.base_model.latent_shape, remembering.flip
    if address := task.samples.measures.clip_model:
        return ClipFeatures(Clip(address), decode, shape, flip, task.batch_size)
    return LatentFeatures(shape, flip)


def _row(name: str, found: Nearest, mean: np.ndarray) -> bytes:
    return record_of(
        {
            name: float_feature(found.nearness),
            GROUP: int_feature(group_of(mean)),
            "label": float_feature(0.0),
        }
    )
