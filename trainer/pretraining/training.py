"""Trains the four networks of a preset in PyTorch, in diffusers' shapes.

First the KL autoencoder (Rombach et al. 2022, section 3.1), then the text encoder and the diffusion
model together on its latents, with Min-SNR weights (Hang et al. 2023).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from data.colours import COLOURS, with_article
from trainer.presets import BETA_END, BETA_START, LATENT_SCALE, NUM_TIMESTEPS, Preset
from trainer.pretraining.icons import Icons
from trainer.pretraining.parts import Parts, drawn_parts
from trainer.pretraining.pictures import (
    AUTOENCODER_STYLE,
    WITH_PARTS_STYLE,
    Scenery,
    Style,
    coloured_fraction,
)
from trainer.text.tokenizer import END_OF_TEXT, START_OF_TEXT, tokenize
from trainer.weights import diffusers_layout

_KL_WEIGHT = 1e-6
# With random weights and noise in the latents from the start, it learns blurs.
_NOISE_FROM_STEP = 600
_MIN_SNR_GAMMA = 5.0
_CAPTION_DROPOUT = 0.1
# Fraction of icons in a batch; the rest are shapes.
_ICONS_OF_AUTOENCODER, _ICONS_OF_DIFFUSION = 0.6, 0.76
# Smaller ones have no room for a face.
_LEAST_COVERAGE_FOR_PARTS = 0.25
_OPENINGS = ("a drawing of {}", "a drawing of {}", "a picture of {}", "a cartoon of {}", "{}", "{}")
_COLOUR_WORDS = re.compile(r"\b(" + "|".join([*COLOURS, "gray"]) + r")\b ?")
# Larger batches make a CPU four times as slow, because many pictures are in memory at once.
_ENCODING_BATCH = 32
_CHECKPOINT_SECONDS = 600

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Budget:
    """How one of the two trainings runs.

    Attributes:
        seconds: Its duration; the learning rate falls to 0 in this time, as a cosine.
        batch_size: Pictures per step.
        learning_rate: Learning rate of AdamW at the end of the warm-up.
        warmup_steps: Steps of the warm-up.
        ema_decay: Decay of the average of the weights, which is the result.
    """

    seconds: float
    batch_size: int
    learning_rate: float
    warmup_steps: int
    ema_decay: float


@dataclasses.dataclass(frozen=True)
class Captioned:
    """Latents and their captions.

    Attributes:
        latents: float16 [N, 4, 16, 16], scaled.
        tokens: int64 [N, 77].
        icons: Number of icons, which come first.
    """

    latents: torch.Tensor
    tokens: torch.Tensor
    icons: int


class Pretraining:
    """The networks of a preset and their two trainings."""

    def __init__(self, preset: Preset, icons: Icons, shapes: np.ndarray, device: str) -> None:
        """Builds networks with random weights.

        Args:
            preset: Their preset.
            icons: The icons to draw.
            shapes: Other pictures, uint8 [M, H, W, 3].
            device: The device, such as `"cuda"`.
        """
        self.device = device
        # A CPU without bfloat16 instructions takes eight times as long as in float32.
        self._computes_in_half = device == "cuda" or torch.cpu._is_avx512_bf16_supported()
        self.scenery = Scenery(device)
        self.names, self._named = icons.names, icons.named
        large = (icons.pictures[..., 3] > 127).mean((1, 2)) > _LEAST_COVERAGE_FOR_PARTS
        self._takes_parts = icons.named & icons.things & large
        self._icons = torch.tensor(icons.pictures).permute(0, 3, 1, 2).contiguous().to(device)
        self._shapes = torch.tensor(shapes).permute(0, 3, 1, 2).contiguous().to(device)
        text = diffusers_layout.text_encoder_config(preset)
        special = {"bos_token_id": START_OF_TEXT, "eos_token_id": END_OF_TEXT}
        self.configs = {
            "unet": diffusers_layout.unet_config(preset),
            "vae": diffusers_layout.vae_config(preset),
            "text_encoder": text,
        }
        channels_last = {"device": device, "memory_format": torch.channels_last}
        self.autoencoder = AutoencoderKL.from_config(self.configs["vae"]).to(**channels_last)
        self.unet = UNet2DConditionModel.from_config(self.configs["unet"]).to(**channels_last)
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(**text, **special, pad_token_id=END_OF_TEXT)
        ).to(device)
        betas = torch.linspace(
            BETA_START**0.5, BETA_END**0.5, NUM_TIMESTEPS, dtype=torch.float64, device=device
        )
        self._alphas_cumprod = torch.cumprod(1 - betas**2, 0).float()

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        """The networks by their folders in diffusers' layout."""
        return {
            "unet": self.unet,
            "vae": self.autoencoder,
            "text_encoder": self.text_encoder,
        }

    def load(self, folder: str) -> None:
        """Loads weights that `save` wrote."""
        for name, network in self.networks.items():
            tensors = load_file(Path(folder, name, f"{diffusers_layout.STEMS[name]}.safetensors"))
            network.load_state_dict({key: value.float() for key, value in tensors.items()})

    def save(self, folder: str) -> None:
        """Writes float16 weights in diffusers' layout."""
        for name, network in self.networks.items():
            place = Path(folder, name)
            place.mkdir(parents=True, exist_ok=True)
            config = json.dumps(self.configs[name], indent=2)
            (place / diffusers_layout.CONFIG_NAME).write_text(f"{config}\n", encoding="utf-8")
            tensors = {
                key: value.half().contiguous()
                for key, value in network.state_dict().items()
                if value.is_floating_point()
            }
            path = place / f"{diffusers_layout.STEMS[name]}.safetensors"
            save_file(tensors, path, {"format": "pt"})

    def train_autoencoder(self, budget: Budget, *, goes_on: bool) -> int:
        """Trains image encoder and decoder on fresh scenes; returns the number of steps.

        Errors count per pixel, per edge and over areas of 5 and of 8 pixels: errors that cancel
        within a cell of the latent are slightly displaced lines, others are a wrong colour.

        Args:
            budget: The budget.
            goes_on: Whether it was trained before: then latents have noise from the start.
        """
        network = self.autoencoder.train()
        areas = [
            (torch.ones(3, 1, k, k, device=self.device) / k**2, s) for k, s in ((5, 1), (8, 4))
        ]

        def loss(step: int) -> torch.Tensor:
            pictures = self._autoencoder_batch(budget.batch_size)
            with self._half():
                posterior = network.encode(pictures).latent_dist
                is_noisy = step > _NOISE_FROM_STEP or goes_on
                latent = posterior.sample() if is_noisy else posterior.mode()
                decoded = network.decode(latent).sample.float()
            error = decoded - pictures
            total = error.abs().mean() + error.square().mean()
            for edges in (error.diff(dim=-1), error.diff(dim=-2)):
                total = total + 0.5 * edges.abs().mean()
            for kernel, stride in areas:
                area = F.conv2d(error, kernel, stride=stride, groups=3)
                total = total + 0.5 * area.abs().mean()
            return total + _KL_WEIGHT * is_noisy * posterior.kl().float().mean()

        parameters = list(network.parameters())
        steps = self._train("autoencoder", parameters, loss, budget, (0.9, 0.99), 1e-4)
        network.eval()
        return steps

    def captioned_latents(
        self, shape_captions: Sequence[str], variants: int, variants_with_parts: int
    ) -> Captioned:
        """Latents of scenes with icons, and of all shapes.

        Args:
            shape_captions: Captions of the shapes.
            variants: Number of scenes of each named icon.
            variants_with_parts: Number of additional scenes of each named thing, with parts on it.
        """
        rng = np.random.default_rng(0)
        fractions = torch.cat([coloured_fraction(part) for part in self._icons.split(512)])
        has_colour = fractions.cpu().numpy() > 0.25
        sided = np.array([bool(re.search("left|right", name)) for name in self.names])
        latents, captions = [], []
        every = (self._named, Style(), variants)
        things = (self._takes_parts, WITH_PARTS_STYLE, variants_with_parts)
        for which, style, number in (every, things):
            chosen = np.tile(np.flatnonzero(which), number)
            for rows in np.array_split(chosen, math.ceil(len(chosen) / _ENCODING_BATCH) or 1):
                coloured = has_colour[rows] & (rng.random(len(rows)) < 0.55)
                colours = rng.integers(len(COLOURS), size=len(rows))
                mirrored = ~sided[rows] & (rng.random(len(rows)) < 0.5)
                has_parts = style is WITH_PARTS_STYLE
                parts = drawn_parts(np.full(len(rows), has_parts), rng)
                # Painting no parts would take as long as painting some.
                painted = parts if has_parts else None
                scenes = self._scenes(rows, style, colours, coloured, mirrored, painted)
                latents.append(self._encode(scenes))
                for index, row in enumerate(rows):
                    opening = _OPENINGS[rng.integers(len(_OPENINGS))]
                    words = list(COLOURS)[colours[index]] if coloured[index] else ""
                    thing = f"{_named_thing(self.names[row], words)} {parts.words(index)}"
                    captions.append(opening.format(thing.strip()))
        icons = len(captions)
        latents += [self._encode(part / 255) for part in self._shapes.split(_ENCODING_BATCH)]
        tokens = torch.tensor(tokenize([*captions, *shape_captions]).astype(np.int64))
        return Captioned(torch.cat(latents), tokens.to(self.device), icons)

    def train_diffusion(
        self, data: Captioned, budget: Budget, checkpoint: Callable[[], None]
    ) -> int:
        """Trains text encoder and diffusion model together; returns the number of steps.

        Args:
            data: The training data.
            budget: The budget.
            checkpoint: Called now and then, while the networks hold the averaged weights.
        """
        empty = torch.tensor(tokenize([""])[0].astype(np.int64), device=self.device)

        def loss(step: int) -> torch.Tensor:
            rows = self._rows(data, budget.batch_size)
            dropped = torch.rand(len(rows), device=self.device) < _CAPTION_DROPOUT
            tokens = torch.where(dropped[:, None], empty, data.tokens[rows])
            timesteps = torch.randint(NUM_TIMESTEPS, (len(rows),), device=self.device)
            alpha = self._alphas_cumprod[timesteps]
            weights = (_MIN_SNR_GAMMA * (1 - alpha) / alpha).clamp(max=1)
            return (weights * self._errors(data.latents[rows], tokens, timesteps)).mean()

        parameters = [*self.unet.parameters(), *self.text_encoder.parameters()]
        steps = self._train("diffusion", parameters, loss, budget, (0.9, 0.999), 1e-2, checkpoint)
        self.name_unseen_words(data.tokens)
        return steps

    @torch.no_grad()
    def name_unseen_words(self, tokens: torch.Tensor) -> None:
        """Gives words that no caption had their own vectors, distributed like the other vectors.

        They mean nothing yet, but fine-tuning can distinguish them without training the text
        encoder: with one vector for all, `spiky` and `fluffy` would remain the same word.

        Args:
            tokens: int64 [N, 77], all tokens of the captions.
        """
        vectors = self.text_encoder.get_input_embeddings().weight
        unseen = torch.ones(len(vectors), dtype=torch.bool, device=vectors.device)
        unseen[tokens.unique()] = False
        seen = vectors[~unseen]
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(len(vectors), vectors.shape[1], generator=generator).to(vectors.device)
        vectors[unseen] = (seen.mean(0) + seen.std(0) * drawn)[unseen]

    @torch.no_grad()
    def loss_of(self, data: Captioned) -> float:
        """Noise-prediction loss of 5,120 scenes, with evenly spread timesteps."""
        torch.manual_seed(9)
        losses = []
        for stratum in range(10):
            rows = self._rows(data, 512)
            low = stratum * NUM_TIMESTEPS // 10
            timesteps = torch.randint(low, low + NUM_TIMESTEPS // 10, (512,), device=self.device)
            losses.append(self._errors(data.latents[rows], data.tokens[rows], timesteps).mean())
        return float(torch.stack(losses).mean())

    @torch.no_grad()
    def psnr(self, pictures: torch.Tensor) -> float:
        """Mean peak signal-to-noise ratio (dB) of reconstructions of pictures in [0, 1]."""
        ratios = []
        for part in (2 * pictures - 1).split(64):
            with self._half():
                latent = self.autoencoder.encode(part).latent_dist.mode()
                decoded = self.autoencoder.decode(latent).sample.float()
            error = (decoded.clamp(-1, 1) - part).square().mean((1, 2, 3))
            ratios.append(10 * torch.log10(4 / error))
        return float(torch.cat(ratios).mean())

    def held_scenes(self) -> torch.Tensor:
        """Scenes of every fiftieth icon, [N, 3, 128, 128]."""
        torch.manual_seed(5)
        rows = np.arange(0, len(self.names), 50)
        nothing = np.zeros(len(rows), bool)
        return self._scenes(rows, Style(), np.zeros(len(rows), int), nothing, nothing)

    def _scenes(
        self,
        rows: np.ndarray,
        style: Style,
        colours: np.ndarray,
        coloured: np.ndarray,
        mirrored: np.ndarray,
        parts: Parts | None = None,
    ) -> torch.Tensor:
        def here(values: np.ndarray) -> torch.Tensor:
            return torch.tensor(values, device=self.device)

        return self.scenery.scenes(
            self._icons[here(rows)],
            style,
            colour=self.scenery.palette[here(colours)],
            coloured=here(coloured),
            mirrored=here(mirrored),
            parts=parts,
        )

    def _autoencoder_batch(self, size: int) -> torch.Tensor:
        """Scenes and shapes in [-1, 1]."""
        count, device = int(_ICONS_OF_AUTOENCODER * size), self.device
        icons = self._icons[torch.randint(len(self._icons), (count,), device=device)]
        named = self.scenery.palette[torch.randint(len(COLOURS), (count,), device=device)]
        any_colour = torch.rand(count, 3, device=device)
        scenes = self.scenery.scenes(
            icons,
            AUTOENCODER_STYLE,
            colour=torch.where(torch.rand(count, 1, device=device) < 0.5, named, any_colour),
            coloured=torch.rand(count, device=device) < 0.5,
            mirrored=torch.rand(count, device=device) < 0.5,
        )
        shapes = self._shapes[torch.randint(len(self._shapes), (size - count,), device=device)]
        pictures = torch.cat([scenes, self.scenery.with_eyes(shapes / 255, 0.35)])
        swapped = torch.rand(size, 1, 1, 1, device=device) < 0.15
        pictures = torch.where(swapped, pictures[:, torch.randperm(3, device=device)], pictures)
        return (2 * pictures - 1).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def standardize_latents(self) -> None:
        """Brings scaled latents to mean 0 and variance 1 in each channel.

        The layers on both sides of the latent are 1 x 1 convolutions, so this does not change the
        results of the autoencoder. It makes the scale that was measured for Stable Diffusion's own
        autoencoder right for this one. A diffusion model trained on the previous latents has to
        learn the new ones.
        """
        means = []
        for _ in range(8):
            with self._half():
                encoded = self.autoencoder.encode(self._autoencoder_batch(128))
            means.append(encoded.latent_dist.mode().float())
        latents = torch.cat(means)
        centre = latents.mean((0, 2, 3))
        factor = 1 / (LATENT_SCALE * latents.std((0, 2, 3)))
        count = len(factor)
        last, first = self.autoencoder.quant_conv, self.autoencoder.post_quant_conv
        last.weight[:count] *= factor[:, None, None, None]
        last.bias[:count] = (last.bias[:count] - centre) * factor
        last.bias[count:] += 2 * torch.log(factor)
        first.bias += first.weight[:, :, 0, 0] @ centre
        first.weight /= factor[None, :, None, None]

    @torch.no_grad()
    def _encode(self, pictures: torch.Tensor) -> torch.Tensor:
        with self._half():
            moments = self.autoencoder.encode(2 * pictures - 1)
            return (moments.latent_dist.sample() * LATENT_SCALE).half()

    def _rows(self, data: Captioned, size: int) -> torch.Tensor:
        count = int(_ICONS_OF_DIFFUSION * size)
        others = len(data.latents) - data.icons
        icons = torch.randint(data.icons, (count,), device=self.device)
        shapes = data.icons + torch.randint(others, (size - count,), device=self.device)
        return torch.cat([icons, shapes])

    def _errors(
        self, latents: torch.Tensor, tokens: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Squared error of the predicted noise (Ho et al. 2020, equation 14), [B]."""
        noise = torch.randn(latents.shape, device=self.device)
        alpha = self._alphas_cumprod[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * latents.float() + (1 - alpha).sqrt() * noise
        with self._half():
            context = self.text_encoder(tokens).last_hidden_state
            noisy = noisy.contiguous(memory_format=torch.channels_last)
            predicted = self.unet(noisy, timesteps, context).sample.float()
        return (predicted - noise).square().mean((1, 2, 3))

    def _train(
        self,
        name: str,
        parameters: list[torch.nn.Parameter],
        loss: Callable[[int], torch.Tensor],
        budget: Budget,
        betas: tuple[float, float],
        weight_decay: float,
        checkpoint: Callable[[], None] = lambda: None,
    ) -> int:
        """Runs AdamW, then replaces the weights with their average; returns the number of steps."""
        optimizer = torch.optim.AdamW(
            parameters, betas=betas, weight_decay=weight_decay, fused=self.device == "cuda"
        )
        average = [parameter.detach().clone() for parameter in parameters]
        since, step, progress, report = time.monotonic(), 0, 0.0, 20
        saved = since
        while progress < 1 and budget.seconds:
            rate = budget.learning_rate * min(1.0, (step + 1) / budget.warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * progress))
            value = loss(step)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            step += 1
            decay = min(budget.ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1 - decay)
            if step % 20 == 0:
                progress = (time.monotonic() - since) / budget.seconds
            if step == report:
                report *= 2
                rate_seen = step * budget.batch_size / (time.monotonic() - since)
                logger.info("%s step %d: loss %.4f, %.0f/s", name, step, float(value), rate_seen)
            if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                with self._exchanged(parameters, average):
                    checkpoint()
                saved = time.monotonic()
        with torch.no_grad():
            for parameter, mean in zip(parameters, average, strict=True):
                parameter.copy_(mean)
        return step

    @contextlib.contextmanager
    def _exchanged(
        self, parameters: list[torch.nn.Parameter], others: list[torch.Tensor]
    ) -> Iterator[None]:
        own = [parameter.detach().clone() for parameter in parameters]
        try:
            with torch.no_grad():
                torch._foreach_copy_(parameters, others)
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, own)

    @contextlib.contextmanager
    def _half(self) -> Iterator[None]:
        with torch.autocast(self.device, torch.bfloat16, enabled=self._computes_in_half):
            yield


def _named_thing(name: str, colour: str) -> str:
    if not colour:
        return with_article(name)
    return with_article(f"{colour} {_COLOUR_WORDS.sub('', name).strip()}")


def facts_of(settings: dict[str, Any], **measured: Any) -> str:
    """`training.json`: settings and measurements."""
    return json.dumps({**settings, **measured}, indent=2) + "\n"
