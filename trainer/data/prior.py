"""Class pictures in a batch, next to the same number of training pictures.

To keep drawing the class of a subject as before, a fine-tuned model learns from pictures of it that
the base weights drew: prior preservation (Ruiz et al. 2023, section 3.3).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from trainer.data.latents import LatentsManifest, batch_spec, training_batches
from trainer.presets import Preset

PRIOR = "prior/"
"""Prefix of the features of a batch that belong to class pictures."""


def own_features(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The features of a batch that do not belong to class pictures."""
    return {name: value for name, value in batch.items() if not name.startswith(PRIOR)}


def prior_features(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The features of the class pictures in a batch, by their usual names."""
    return {
        name.removeprefix(PRIOR): value for name, value in batch.items() if name.startswith(PRIOR)
    }


@dataclasses.dataclass(frozen=True)
class ClassLatents:
    """Latents of class pictures. All their splits are trained on: they judge nothing.

    Attributes:
        uri: Their folder.
        manifest: Their manifest.
    """

    uri: str
    manifest: LatentsManifest

    @classmethod
    def read(cls, uri: str) -> ClassLatents:
        """Reads the latents in a folder that LatentGen wrote."""
        return cls(uri, LatentsManifest.read(uri))

    @property
    def files(self) -> list[str]:
        """Their files, sorted."""
        found: list[str] = tf.io.gfile.glob(os.path.join(self.uri, "Split-*", "*"))
        return sorted(found)

    def spec(self, preset: Preset, image_size: int, batch_size: int) -> dict[str, tf.TensorSpec]:
        """The features that `with_prior` adds to a batch."""
        manifest = self.manifest
        spec = batch_spec(preset, image_size, manifest.flip, batch_size, manifest.caption_variants)
        return {f"{PRIOR}{name}": value for name, value in spec.items()}

    def with_prior(
        self,
        batches: Iterator[dict[str, tf.Tensor]],
        preset: Preset,
        image_size: int,
        *,
        batch_size: int,
        seed: int,
        first_step: int,
    ) -> Iterator[dict[str, tf.Tensor]]:
        """Adds as many class pictures to each batch, in an order that only `seed` decides.

        Args:
            batches: From `first_step` on.
            preset: The preset that made the latents.
            image_size: Side of the pictures in pixels.
            batch_size: Examples per batch.
            seed: Seed of the batches.
            first_step: Batches to skip, also for class pictures.

        Yields:
            The batches with all features of class pictures, whose names begin with `PRIOR`.
        """
        manifest = self.manifest
        number = sum(manifest.counts.values())
        repeated = None if manifest.views is None else manifest.views - manifest.counts["train"]
        others = training_batches(
            self.files,
            preset,
            image_size,
            flip=manifest.flip,
            batch_size=batch_size,
            # With equal numbers of pictures, the same two would otherwise meet in every epoch.
            seed=seed + 1,
            first_step=first_step,
            num_examples=number,
            num_views=None if repeated is None else number + repeated,
            caption_variants=manifest.caption_variants,
        )
        for batch, other in zip(batches, others, strict=False):
            yield {**batch, **{f"{PRIOR}{name}": value for name, value in other.items()}}
