"""The dimensions of each model. A preset is data: every builder reads all of its fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

NETWORKS = ("text_encoder", "image_encoder", "diffusion_model", "decoder")
"""The four networks of a Stable Diffusion."""

ENCODERS = ("text_encoder", "image_encoder")
"""The networks that compute contexts and latents."""

Numerics = Literal["keras_cv", "diffusers"]
"""How the layers compute where KerasCV's and diffusers' implementations differ.

The published Keras files and the PyTorch ones hold the same numbers, but the layers around them
differ: like the original code, diffusers uses 1e-6 instead of 1e-5 for the epsilon of the group
normalizations in the autoencoder and in the spatial transformers, and the exact Gaussian error
linear unit instead of its tanh approximation. `docs/weights.md` says how much that matters.
"""

Sampler = Literal["ddim", "dpmpp_2m", "euler_a"]
"""How pictures are drawn; `trainer.diffusion.samplers` has the arithmetic."""

Prediction = Literal["epsilon", "v_prediction"]
"""What a diffusion model predicts, in diffusers' terms: the noise or the velocity.

Only `trainer.diffusion.noise_schedule.NoiseSchedule` has the arithmetic.
"""

Activation = Literal["quick_gelu", "gelu"]
"""Activation in the perceptrons of a text transformer, in diffusers' terms."""

ImageSize = int | tuple[int, int]
"""Size of a picture in pixels: the side of a square, or height and width."""

LATENT_CHANNELS = 4
"""Channels of a latent."""

LATENT_SCALE = 0.18215
"""Factor that brings Stable Diffusion's latents to about unit variance."""

NUM_TIMESTEPS = 1000
"""Timesteps of the noise schedule."""

BETA_START, BETA_END = 0.00085, 0.012
"""Beta at the first and at the last timestep of the noise schedule."""

LATENT_DOWNSAMPLING = 8
"""Pixels of the picture for each position of the latent, along each side."""


@dataclass(frozen=True)
class TextEncoderDimensions:
    """CLIP's text transformer (Radford et al. 2021, section 2.4).

    Attributes:
        width: Channels.
        num_layers: Layers that are computed; Stable Diffusion 2 leaves out OpenCLIP's last one.
        num_heads: Attention heads.
        vocabulary_size: Tokens in the vocabulary.
        max_length: Tokens in a row.
        activation: `quick_gelu` for OpenAI's CLIP, `gelu` for OpenCLIP.
        padding: The token that fills a row after the end of the text. The default is the
            end-of-text token itself.
    """

    width: int
    num_layers: int
    num_heads: int
    vocabulary_size: int = 49408
    max_length: int = 77
    activation: Activation = "quick_gelu"
    padding: int = 49407


@dataclass(frozen=True)
class DiffusionModelDimensions:
    """The conditional U-Net (Rombach et al. 2022, appendix E).

    Attributes:
        widths: Channels of each level, from the latent's full size down; each level halves it.
        cross_attention: For each level, whether its blocks attend to the text context.
        num_blocks: Residual blocks per level on the way down; the way up has one more.
        num_heads: Attention heads, for all levels or for each; the size of a head is the width of
            the level divided by it.
        timestep_width: Width of the sinusoidal timestep embedding.
        embedding_width: Width of the learned timestep embedding.
        norm_groups: Groups of every group normalization.
        linear_projections: Whether the first and the last layer of a transformer are matrices
            instead of 1x1 convolutions, which compute the same.
    """

    widths: tuple[int, ...]
    cross_attention: tuple[bool, ...]
    num_blocks: int
    num_heads: int | tuple[int, ...]
    timestep_width: int
    embedding_width: int
    norm_groups: int
    linear_projections: bool = False

    def heads(self, level: int) -> int:
        """Attention heads of a level; the middle blocks have as many as the last level."""
        return self.num_heads if isinstance(self.num_heads, int) else self.num_heads[level]


@dataclass(frozen=True)
class AutoencoderDimensions:
    """One half of the KL autoencoder (Rombach et al. 2022, appendix E.1).

    Attributes:
        widths: Channels of each level, from full image size down to the latent's.
        num_blocks: Residual blocks per level.
        norm_groups: Groups of every group normalization.
    """

    widths: tuple[int, int, int, int]
    num_blocks: int
    norm_groups: int


@dataclass(frozen=True)
class RecommendedTraining:
    """Training settings that suit the preset; any of them can be overridden."""

    steps: int
    batch_size: int
    learning_rate: float
    learning_rate_schedule: Literal["constant", "linear", "cosine"]
    warmup_steps: int
    ema_decay: float
    train_text_encoder: bool = False
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "float32"


@dataclass(frozen=True)
class WeightFile:
    """One network's base weights.

    Attributes:
        name: File name in the weights' folder.
        sha256: Published hash; `None` if the folder's own `SHA256SUMS` is the authority.
        published_at: Where the file comes from if the folder lacks it; `None` if it must be there.
    """

    name: str
    sha256: str | None
    published_at: str | None = None


@dataclass(frozen=True)
class RecommendedSampling:
    """How pictures are drawn by default.

    Attributes:
        sampler: One of `trainer.diffusion.samplers.SAMPLERS`.
        num_steps: Sampling steps.
        guidance_scale: Classifier-free guidance scale.
    """

    sampler: Sampler
    num_steps: int
    guidance_scale: float


@dataclass(frozen=True)
class Preset:
    """The four networks of a Stable Diffusion model, its image size and how to train it.

    Attributes:
        name: Its name for `get_preset`.
        image_size: Default side of its pictures in pixels.
        image_size_multiple: Image sizes must be multiples of this.
        text_encoder: Dimensions.
        diffusion_model: Dimensions.
        image_encoder: Dimensions.
        decoder: Dimensions.
        training: Recommended settings.
        sampling: Recommended settings.
        weight_files: For each network, the file of its base weights.
        ships_weights: Whether the base weights come with this package.
        published_at: Where the base weights are published; `None` if they are not.
        parameters: Number of parameters of each network, from which the needs of a run are
            estimated before a network is built.
        numerics: How the layers compute; `trainer.weights.base_model.BaseModel` sets it to what
            the base weights were made for.
        prediction: What the diffusion model predicts.
        zero_terminal_snr: Whether the last timestep is pure noise.
        generation: The generation of Stable Diffusion whose structure this is; other tools need it.
        architecture: Its name in ModelSpec. Only a model of Stable Diffusion's own size has Stable
            Diffusion's name, because tools load by it.
        single_file: Whether it can be read and written as one file in the original layout.
    """

    name: str
    image_size: int
    image_size_multiple: int
    text_encoder: TextEncoderDimensions
    diffusion_model: DiffusionModelDimensions
    image_encoder: AutoencoderDimensions
    decoder: AutoencoderDimensions
    training: RecommendedTraining
    sampling: RecommendedSampling
    weight_files: Mapping[str, WeightFile]
    ships_weights: bool
    parameters: Mapping[str, int]
    published_at: str | None = None
    numerics: Numerics = "keras_cv"
    prediction: Prediction = "epsilon"
    zero_terminal_snr: bool = False
    generation: int = 1
    architecture: str = "stable-diffusion-v1"
    single_file: bool = True

    @property
    def size_multiple(self) -> int:
        """A model draws heights and widths that are multiples of this: each level halves them.

        Sizes of training pictures are multiples of `image_size_multiple`.
        """
        return LATENT_DOWNSAMPLING * 2 ** (len(self.diffusion_model.widths) - 1)

    def trained_as(
        self, prediction: Prediction | None = None, zero_terminal_snr: bool | None = None
    ) -> Preset:
        """The preset of a model that is trained from a model of this preset.

        Args:
            prediction: What it will predict; `None` for the same.
            zero_terminal_snr: Whether its last timestep will be pure noise; `None` for the same.

        Raises:
            ValueError: The two cannot be combined.
        """
        trained = dataclasses.replace(
            self,
            prediction=self.prediction if prediction is None else prediction,
            zero_terminal_snr=(
                self.zero_terminal_snr if zero_terminal_snr is None else zero_terminal_snr
            ),
        )
        check_zero_terminal_snr(trained.prediction, trained.zero_terminal_snr)
        return trained

    def check_image_size(self, image_size: int) -> None:
        """Raises a `ValueError` if the networks cannot take `image_size` (pixels per side)."""
        if image_size < self.image_size_multiple or image_size % self.image_size_multiple:
            multiple = self.image_size_multiple
            nearest = max(1, round(image_size / multiple)) * multiple
            raise ValueError(
                f"image size {image_size} is impossible with preset {self.name!r}: it must be a "
                f"positive multiple of {multiple}, for example {nearest}"
            )

    def latent_shape(self, image_size: ImageSize) -> tuple[int, int, int]:
        """Height, width and channels of the latent of a picture of `image_size`."""
        height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
        return height // LATENT_DOWNSAMPLING, width // LATENT_DOWNSAMPLING, LATENT_CHANNELS


_TINY = Preset(
    name="tiny",
    architecture="stable-diffusion-v1-tiny",
    image_size=128,
    image_size_multiple=64,
    text_encoder=TextEncoderDimensions(width=64, num_layers=2, num_heads=4),
    diffusion_model=DiffusionModelDimensions(
        widths=(64, 96, 160),
        cross_attention=(False, True, True),
        num_blocks=1,
        num_heads=4,
        timestep_width=64,
        embedding_width=256,
        norm_groups=16,
    ),
    image_encoder=AutoencoderDimensions(widths=(16, 32, 64, 96), num_blocks=1, norm_groups=8),
    decoder=AutoencoderDimensions(widths=(16, 32, 64, 96), num_blocks=2, norm_groups=8),
    training=RecommendedTraining(
        steps=350,
        batch_size=32,
        learning_rate=1e-3,
        learning_rate_schedule="cosine",
        warmup_steps=20,
        ema_decay=0.99,
        # docs/training.md has the measurements for both.
        train_text_encoder=True,
        precision="auto",
    ),
    # docs/serving.md has the measurements.
    sampling=RecommendedSampling(sampler="dpmpp_2m", num_steps=10, guidance_scale=4.0),
    weight_files=MappingProxyType(
        {network: WeightFile(f"{network}.safetensors", None) for network in NETWORKS}
    ),
    ships_weights=True,
    parameters=MappingProxyType(
        {
            "text_encoder": 3_267_136,
            "image_encoder": 648_448,
            "diffusion_model": 7_328_068,
            "decoder": 1_070_359,
        }
    ),
)

_IMAGE_ENCODER = WeightFile(
    "vae_encoder.h5", "c60fb220a40d090e0f86a6ab4c312d113e115c87c40ff75d11ffcf380aab7ebb"
)
_DECODER = WeightFile(
    "kcv_decoder.h5", "ad350a65cc8bc4a80c8103367e039a3329b4231c2469a1093869a345f55b1962"
)

_SD_V1_4 = Preset(
    name="sd-v1-4",
    image_size=512,
    image_size_multiple=128,
    text_encoder=TextEncoderDimensions(width=768, num_layers=12, num_heads=12),
    diffusion_model=DiffusionModelDimensions(
        widths=(320, 640, 1280, 1280),
        cross_attention=(True, True, True, False),
        num_blocks=2,
        num_heads=8,
        timestep_width=320,
        embedding_width=1280,
        norm_groups=32,
    ),
    image_encoder=AutoencoderDimensions(widths=(128, 256, 512, 512), num_blocks=2, norm_groups=32),
    decoder=AutoencoderDimensions(widths=(128, 256, 512, 512), num_blocks=3, norm_groups=32),
    # The published recipe for 833 pictures (diffusers' text-to-image README): 15,000 steps of
    # effective batch 4 at a constant 1e-5.
    training=RecommendedTraining(
        steps=15_000,
        batch_size=4,
        learning_rate=1e-5,
        learning_rate_schedule="constant",
        warmup_steps=500,
        ema_decay=0.9999,
    ),
    # The defaults of KerasCV.
    sampling=RecommendedSampling(sampler="ddim", num_steps=25, guidance_scale=7.5),
    # The files and hashes that KerasCV downloads.
    weight_files=MappingProxyType(
        {
            "text_encoder": WeightFile(
                "kcv_encoder.h5",
                "4789e63e07c0e54d6a34a29b45ce81ece27060c499a709d556c7755b42bb0dc4",
            ),
            "image_encoder": _IMAGE_ENCODER,
            "diffusion_model": WeightFile(
                "kcv_diffusion_model.h5",
                "8799ff9763de13d7f30a683d653018e114ed24a6a819667da4f5ee10f9e805fe",
            ),
            "decoder": _DECODER,
        }
    ),
    ships_weights=False,
    parameters=MappingProxyType(
        {
            "text_encoder": 123_060_480,
            "image_encoder": 34_163_664,
            "diffusion_model": 859_520_964,
            "decoder": 49_490_199,
        }
    ),
    published_at="hf://fchollet/stable-diffusion",
)

# Stable Diffusion 2 uses OpenCLIP's text encoder unchanged and the autoencoder of the first
# generation, so the files of the base model serve both.
_SD_V2_1_BASE = dataclasses.replace(
    _SD_V1_4,
    name="sd-v2-1-base",
    generation=2,
    architecture="stable-diffusion-v2-512",
    single_file=False,
    text_encoder=TextEncoderDimensions(
        width=1024, num_layers=23, num_heads=16, activation="gelu", padding=0
    ),
    diffusion_model=dataclasses.replace(
        _SD_V1_4.diffusion_model, num_heads=(5, 10, 20, 20), linear_projections=True
    ),
    weight_files=MappingProxyType(
        {
            "text_encoder": WeightFile(
                "text_encoder_v2_1.h5",
                "985002e68704e1c5c3549de332218e99c5b9b745db7171d5f31fcd9a6089f25b",
            ),
            "image_encoder": dataclasses.replace(
                _IMAGE_ENCODER, published_at=_SD_V1_4.published_at
            ),
            "diffusion_model": WeightFile(
                "diffusion_model_v2_1.h5",
                "c31730e91111f98fe0e2dbde4475d381b5287ebb9672b1821796146a25c5132d",
            ),
            "decoder": dataclasses.replace(_DECODER, published_at=_SD_V1_4.published_at),
        }
    ),
    parameters=MappingProxyType(
        {
            **_SD_V1_4.parameters,
            "text_encoder": 340_387_840,
            "diffusion_model": 865_910_724,
        }
    ),
    published_at="hf://ianstenbit/keras-sd2.1",
)

_SD_V2_1 = dataclasses.replace(
    _SD_V2_1_BASE,
    name="sd-v2-1",
    architecture="stable-diffusion-v2-768-v",
    image_size=768,
    prediction="v_prediction",
    weight_files=MappingProxyType(
        {
            **_SD_V2_1_BASE.weight_files,
            # KerasCV does not publish this one.
            "diffusion_model": WeightFile("diffusion_model_v2_1_768.h5", None),
        }
    ),
    published_at=None,
)

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {p.name: p for p in (_TINY, _SD_V1_4, _SD_V2_1_BASE, _SD_V2_1)}
)


def prediction_signature(prediction: Prediction) -> str:
    """The signature of an exported diffusion model, named after its prediction."""
    return f"predict_{prediction}"


def check_zero_terminal_snr(prediction: Prediction, zero_terminal_snr: bool) -> None:
    """Raises a `ValueError` if a model would have to predict noise from pure noise."""
    if zero_terminal_snr and prediction == "epsilon":
        raise ValueError(
            "zero terminal SNR is impossible with epsilon prediction: the last timestep is pure "
            "noise, and predicting it says nothing about the picture; use v_prediction"
        )


def preset_names() -> tuple[str, ...]:
    """The names that `get_preset` takes."""
    return tuple(PRESETS)


def get_preset(name: str) -> Preset:
    """The preset called `name`; otherwise raises a `ValueError` that lists all names."""
    try:
        return PRESETS[name]
    except KeyError:
        raise ValueError(
            f"there is no preset {name!r}: choose one of {', '.join(preset_names())}"
        ) from None
