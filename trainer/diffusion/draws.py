"""The random values of a held-out loss, drawn only from the id of the example and the seed.

So a loss does not depend on the order of the examples, on batches or on workers, and two models are
compared on equal noise.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from trainer.diffusion.noise_schedule import NUM_TIMESTEPS


@dataclasses.dataclass(frozen=True)
class NoiseDraw:
    """The draws of one row.

    Attributes:
        timestep: A timestep in the stratum of the row.
        posterior_noise: float32 [h, w, 4], standard normal; picks the latent from its posterior.
        epsilon: float32 [h, w, 4], standard normal; the noise that is added.
    """

    timestep: int
    posterior_noise: np.ndarray
    epsilon: np.ndarray


def stratum_bounds(stratum: int, num_strata: int) -> tuple[int, int]:
    """The first timestep of a stratum, and the first one after it."""
    first = stratum * NUM_TIMESTEPS // num_strata
    return first, (stratum + 1) * NUM_TIMESTEPS // num_strata


def stratum_name(stratum: int, num_strata: int) -> str:
    """The timesteps of the stratum, such as `000-099`."""
    first, end = stratum_bounds(stratum, num_strata)
    return f"{first:03d}-{end - 1:03d}"


def num_draws(num_examples: int, min_draws: int) -> int:
    """Draws per example in a stratum, so that all examples together have at least `min_draws`."""
    return max(1, -(-min_draws // num_examples)) if num_examples else 1


def draw_noise(
    example_id: str,
    stratum: int,
    num_strata: int,
    seed: int,
    latent_shape: tuple[int, ...],
    draw: int = 0,
) -> NoiseDraw:
    """Draws one row.

    Args:
        example_id: The example's content hash.
        stratum: From 0 to `num_strata` - 1.
        num_strata: Number of parts that the timesteps are divided into.
        seed: Another seed gives other draws for the same example.
        latent_shape: Height, width and channels.
        draw: Index of the draw of this example in this stratum. Each draw is always the same,
            however many there are.
    """
    # The first draw keeps its key from when there was only one, so that earlier losses stay valid.
    rng = _generator(f"{seed}/{stratum}/{example_id}" + (f"/{draw}" if draw else ""))
    return NoiseDraw(
        timestep=int(rng.integers(*stratum_bounds(stratum, num_strata))),
        posterior_noise=rng.standard_normal(latent_shape, dtype=np.float32),
        epsilon=rng.standard_normal(latent_shape, dtype=np.float32),
    )


def initial_noise(example_id: str, seed: int, latent_shape: tuple[int, ...]) -> np.ndarray:
    """The noise that the sample of an example starts from: float32 [h, w, 4], standard normal."""
    return _generator(f"{seed}/sample/{example_id}").standard_normal(latent_shape, np.float32)


def rank(example_id: str, seed: int) -> bytes:
    """A place in an order that is random, but depends only on the id and the seed."""
    return hashlib.sha256(f"{seed}/rank/{example_id}".encode()).digest()


def _generator(key: str) -> np.random.Generator:
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
