"""LatentGen's encoders, built once for all tests of a module that share a base model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from components.latent_gen import encoding
from components.latent_gen.encoders import Encoders
from trainer.weights.base_model import BaseModel


def build_once(patch: pytest.MonkeyPatch) -> Callable[[BaseModel, bool], Encoders]:
    """Has LatentGen use the encoders that this returns, real ones, without building them anew."""
    built: dict[tuple[str, int, bool], Encoders] = {}

    def once(base_model: BaseModel, flip: bool) -> Encoders:
        key = (base_model.hash(), base_model.image_size, flip)
        if key not in built:
            built[key] = Encoders(base_model, flip)
        return built[key]

    patch.setattr(encoding, "Encoders", once)
    return once
