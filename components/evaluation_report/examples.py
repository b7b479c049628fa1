"""The held-out examples with the highest and lowest loss, and the model's reconstructions."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from components.loss_scorer.models import exported_decoder, exported_model
from components.tfrecords import read_shard
from trainer.diffusion.draws import NoiseDraw
from trainer.presets import ImageSize
from trainer.weights.base_model import BaseModel


@dataclasses.dataclass(frozen=True)
class Scored:
    """An example and its mean losses over the timesteps."""

    example_id: str
    loss: float
    loss_baseline: float


@dataclasses.dataclass(frozen=True)
class Extremes:
    """The examples with the highest and the lowest loss, the most extreme first."""

    worst: list[Scored]
    best: list[Scored]


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A model's reconstruction of a picture after noise was added.

    Attributes:
        timestep: The amount of noise, from 0 to 999.
        noisy: The noisy latent, decoded: uint8 [H, W, 3].
        restored: The latent without the noise that the model predicts, decoded: uint8 [H, W, 3].
    """

    timestep: int
    noisy: np.ndarray
    restored: np.ndarray


def extremes(files: Sequence[str], number: int) -> Extremes:
    """Finds the extremes in files of scores; examples whose loss is not finite are left out."""
    worst: list[tuple[float, str, Scored]] = []
    best: list[tuple[float, str, Scored]] = []
    for scored in _by_example(files):
        if math.isfinite(scored.loss):
            # Equal losses are ordered by id, so that the order of the files does not matter.
            for heap, key in ((worst, scored.loss), (best, -scored.loss)):
                item = (key, scored.example_id, scored)
                (heapq.heappush if len(heap) < number else heapq.heappushpop)(heap, item)
    return Extremes(*([item[2] for item in sorted(heap, reverse=True)] for heap in (worst, best)))


def records_of(files: Iterable[str], example_ids: frozenset[str]) -> dict[str, bytes]:
    """Finds records by their `id`; files are read only until all are found."""
    found: dict[str, bytes] = {}
    for record in itertools.chain.from_iterable(map(read_shard, files)):
        if len(found) == len(example_ids):
            break
        features = tf.train.Example.FromString(record).features.feature
        example_id = features["id"].bytes_list.value[0].decode()
        if example_id in example_ids:
            found[example_id] = record
    return found


def reconstruct(
    serving: str,
    base_model: BaseModel,
    latents: Sequence[bytes],
    draws: Sequence[NoiseDraw],
) -> list[Reconstruction]:
    """Adds noise to held-out pictures and lets an exported model remove it in one step.

    Args:
        serving: Folder of the SavedModels.
        base_model: The model whose image encoder made the latents.
        latents: Records from LatentGen.
        draws: The noise and the timestep for each of them.
    """
    # Import Keras.
    from trainer.data.latents import parse_latents, sample_posterior, size_of

    if not latents:
        return []
    preset = base_model.preset
    model, decode = exported_model(serving), exported_decoder(serving)
    found: dict[int, Reconstruction] = {}
    places: dict[ImageSize, list[int]] = {}
    for place, record in enumerate(latents):
        places.setdefault(size_of(record, base_model.image_size), []).append(place)
    for size, alike in places.items():
        records, drawn = [latents[place] for place in alike], [draws[place] for place in alike]
        parsed = parse_latents(tf.constant(records), preset, size)
        contexts = model.contexts(parsed["tokens"].numpy(), parsed["context"].numpy())
        timesteps = np.array([one.timestep for one in drawn], np.int32)
        epsilon = np.stack([one.epsilon for one in drawn])
        noise = np.stack([one.posterior_noise for one in drawn])
        clean = sample_posterior(parsed["latent/mean"], parsed["latent/log_variance"], noise)
        schedule = model.schedule
        noisy = schedule.add_noise(clean, epsilon, timesteps)
        predicted = model.predict(noisy, timesteps, contexts)
        restored = schedule.clean_latent(noisy, predicted, schedule.alpha_bar(timesteps))
        pictures = [decode(tf.cast(latent, tf.float32)).numpy() for latent in (noisy, restored)]
        for place, timestep, *pair in zip(alike, timesteps, *pictures, strict=True):
            found[place] = Reconstruction(int(timestep), *pair)
    return [found[place] for place in range(len(latents))]


def _by_example(files: Sequence[str]) -> Iterator[Scored]:
    # The rows of an example are together in one file.
    for path in files:
        rows = (tf.train.Example.FromString(record).features.feature for record in read_shard(path))
        for example_id, group in itertools.groupby(rows, lambda row: _bytes(row, "id")):
            losses = np.array([[_float(row, name) for name in _LOSSES] for row in group])
            yield Scored(example_id.decode(), *map(float, losses.mean(axis=0)))


_LOSSES = ("loss", "loss_baseline")


def _bytes(row: Mapping[str, tf.train.Feature], name: str) -> bytes:
    value: bytes = row[name].bytes_list.value[0]
    return value


def _float(row: Mapping[str, tf.train.Feature], name: str) -> float:
    value: float = row[name].float_list.value[0]
    return value
