"""The SavedModels and their signatures: three, or four if drawing can also begin with pictures.

Nothing is baked in: prompts, negative prompts, number of steps, guidance scale, sampler, seed,
height, width and batch size are inputs. On TensorFlow Serving a signature has no optional inputs,
so signatures that take the sampler and the size exist next to those of earlier versions, which
clients of earlier versions use and which draw at the training size. The network of each module is a
separate `tf.function` that its signatures call, so that it is traced, stored and loaded once
instead of once per signature. A module keeps the variables of the network instead of the Keras
model, whose hundreds of layer objects would also be saved and loaded.

The fourth, the image encoder, turns a picture into a latent. The diffusion model begins with that
latent through separate signatures, which only exist if there is an image encoder. Their mask is in
pixels, so that clients need not know what a position of a latent is.

TensorFlow Serving batches requests by concatenating their inputs, for all signatures of a model or
for none. It then refuses an input without a row for each picture, and one request of another shape
fails those that it is batched with. `rows` and the signatures named after it therefore have a row
for each picture in every input: each picture has its own numbers, sampler, seed and size. A latent
of any size is a string there, as `tf.io.serialize_tensor` writes it. A row with an impossible
request gets a problem as its answer, and the others are drawn.

The REST interface of TensorFlow Serving writes a string output as text, unless its name ends in
`_bytes`. PNG bytes are not text, which is why there is a `png_bytes` next to `png`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import keras
import tensorflow as tf

from storage.user_errors import UserError
from trainer.diffusion.noise_schedule import LATENT_SCALE, NoiseSchedule, timestep_embedding
from trainer.diffusion.sampler import (
    Original,
    in_one_call,
    in_two_calls,
    initial_noise,
    initial_noise_of_rows,
    sample,
    step_noise,
    step_noise_of_rows,
    to_image,
    to_pixels,
)
from trainer.diffusion.samplers import DEFAULT_SAMPLER, SAMPLERS, is_sampler
from trainer.export.drawing_memory import (
    DECODER,
    DIFFUSION_MODEL,
    IMAGE_ENCODER,
    DrawingMemory,
)
from trainer.export.rows import (
    Latents,
    in_groups,
    picture_sides,
    problem_where,
    texts_of,
)
from trainer.networks.inference_layers import has_form_for_cpu, inference_layers
from trainer.networks.seam import reading
from trainer.presets import (
    LATENT_CHANNELS,
    LATENT_DOWNSAMPLING,
    NUM_TIMESTEPS,
    Preset,
    prediction_signature,
)
from trainer.text.graph_tokenizer import GraphTokenizer
from trainer.text.new_word import NewWord
from trainer.training_config import ComputeDtype, WeightsDtype

_LATENTS = (None, None, None, LATENT_CHANNELS)
_PICTURES = (None, None, None, 3)


class TextEncoderModule(tf.Module):
    """Prompts or tokens in, contexts out."""

    def __init__(
        self,
        model: keras.Model,
        preset: Preset,
        weights_dtype: WeightsDtype = "float32",
        *,
        word: NewWord | None = None,
    ) -> None:
        super().__init__()
        self._variables, self._call = _network(model, weights_dtype)
        text = preset.text_encoder
        self.tokenizer = GraphTokenizer(text.max_length, text.padding, word)
        tokens = tf.TensorSpec([None, text.max_length], tf.int32, name="tokens")
        strings = tf.TensorSpec([None], tf.string)
        self.encode = tf.function(self._encode, input_signature=[tokens], autograph=False)
        self.serve = tf.function(self._from_tokens, input_signature=[tokens], autograph=False)
        self.text = tf.function(
            self._from_text, input_signature=[strings, strings], autograph=False
        )
        self.cut = tf.function(self._cut, input_signature=[strings], autograph=False)
        self._strings = strings

    def training(self, training_id: str) -> tf.types.experimental.GenericFunction:
        """A signature that returns the id of the training for each prompt: `training_id_bytes`."""

        def training(prompt: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"training_id_bytes": tf.fill(tf.shape(prompt), training_id)}

        return tf.function(training, input_signature=[self._strings], autograph=False)

    def _encode(self, tokens: tf.Tensor) -> tf.Tensor:
        """From tokens int32 [B, 77] to the context float32 [B, 77, D]."""
        return tf.cast(self._call(tokens), tf.float32)

    def _from_tokens(self, tokens: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"context": self.encode(tokens)}

    def _from_text(self, prompt: tf.Tensor, negative_prompt: tf.Tensor) -> dict[str, tf.Tensor]:
        tokens = self.tokenizer(tf.concat([prompt, negative_prompt], axis=0))
        contexts = self.encode(tokens)
        count = tf.shape(prompt)[0]
        return {"context": contexts[:count], "unconditional_context": contexts[count:]}

    def _cut(self, prompt: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"cut_bytes": self.tokenizer.cut_words(prompt)}


class DiffusionModelModule(tf.Module):
    """The whole sampling loop, a single prediction, and the possible sizes."""

    def __init__(
        self,
        model: keras.Model,
        preset: Preset,
        image_size: int,
        weights_dtype: WeightsDtype = "float32",
        compute: ComputeDtype = "float32",
        *,
        image_to_image: bool = False,
    ) -> None:
        super().__init__()
        self._variables, self._call = _network(model, weights_dtype, compute)
        self._schedule = NoiseSchedule.of(preset)
        self.prediction_signature = prediction_signature(preset.prediction)
        self._width = preset.diffusion_model.timestep_width
        self._image_size, self._size_multiple = image_size, preset.size_multiple
        self._latent_shape = preset.latent_shape(image_size)
        self._memory = DrawingMemory.of(preset, image_to_image=image_to_image)
        self._latent_multiple = preset.size_multiple // LATENT_DOWNSAMPLING
        text = preset.text_encoder
        context = tf.TensorSpec([None, text.max_length, text.width], tf.float32, name="context")
        latent = tf.TensorSpec(_LATENTS, tf.float32, name="latent")
        prediction, at_any_time = (
            [latent, tf.TensorSpec([None], dtype, name="timesteps"), context]
            for dtype in (tf.int32, tf.float32)
        )

        def prediction_function(for_cpu: bool) -> tf.types.experimental.PolymorphicFunction:
            return tf.function(
                functools.partial(self._predict_with, for_cpu),
                input_signature=at_any_time,
                autograph=False,
                # It is called in several places and need not be optimized separately for each.
                experimental_attributes={"_noinline": True},
            )

        self.predict_on_gpu = self.predict_on_cpu = prediction_function(for_cpu=False)
        if has_form_for_cpu(model):
            self.predict_on_cpu = prediction_function(for_cpu=True)
        self.predict = tf.function(self._predict, input_signature=prediction, autograph=False)
        guided = [
            context,
            tf.TensorSpec(context.shape, tf.float32, name="unconditional_context"),
            tf.TensorSpec([], tf.int32, name="num_steps"),
            tf.TensorSpec([], tf.float32, name="guidance_scale"),
        ]
        noise = tf.TensorSpec(_LATENTS, tf.float32, name="noise")
        seed = tf.TensorSpec([2], tf.int32, name="seed")
        sampler = tf.TensorSpec([], tf.string, name="sampler")
        size = [tf.TensorSpec([], tf.int32, name=name) for name in ("height", "width")]
        self.sample = tf.function(
            self._sample, input_signature=[*guided, noise, seed, sampler], autograph=False
        )
        self.serve = tf.function(self._from_seed, input_signature=[*guided, seed], autograph=False)
        self.from_noise = tf.function(
            self._from_noise, input_signature=[*guided, noise], autograph=False
        )
        self.sampled = tf.function(
            self._sampled, input_signature=[*guided, seed, sampler], autograph=False
        )
        self.sampled_from_noise = tf.function(
            self._sampled_from_noise,
            input_signature=[*guided, noise, seed, sampler],
            autograph=False,
        )
        self.sampled_at_size = tf.function(
            self._sampled_at_size,
            input_signature=[*guided, seed, sampler, *size],
            autograph=False,
        )
        self.size = tf.function(self._size, input_signature=size, autograph=False)
        rows = [
            *guided[:2],
            tf.TensorSpec([None], tf.int32, name="num_steps"),
            tf.TensorSpec([None], tf.float32, name="guidance_scale"),
            tf.TensorSpec([None, 2], tf.int32, name="seed"),
            tf.TensorSpec([None], tf.string, name="sampler"),
        ]
        size_of_rows = [tf.TensorSpec([None], tf.int32, name=name) for name in ("height", "width")]
        # Every function that exists is traced and saved.
        self.image_to_image = image_to_image
        if not image_to_image:
            self.sample_rows = tf.function(
                self._sample_rows, input_signature=[*rows, noise], autograph=False
            )
        self.rows = tf.function(self._rows, input_signature=[*rows, *size_of_rows], autograph=False)
        self.size_of_rows = tf.function(
            self._size_of_rows, input_signature=size_of_rows, autograph=False
        )
        self.serve_prediction = tf.function(
            self._serve_prediction, input_signature=prediction, autograph=False
        )
        if image_to_image:
            strength = tf.TensorSpec([], tf.float32, name="strength")
            drawn = tf.TensorSpec([*_LATENTS[:3], 1], tf.bool)
            mask = tf.TensorSpec(_PICTURES[:3], tf.uint8, name="mask")
            self.sample_original = tf.function(
                self._sample_original,
                input_signature=[*guided, seed, sampler, latent, strength, drawn],
                autograph=False,
            )
            self.from_image = tf.function(
                self._from_image,
                input_signature=[*guided, seed, sampler, latent, strength],
                autograph=False,
            )
            self.inpaint = tf.function(
                self._inpaint,
                input_signature=[*guided, seed, sampler, latent, strength, mask],
                autograph=False,
            )
            strengths = tf.TensorSpec([None], tf.float32, name="strength")
            self.sample_rows_of_original = tf.function(
                self._sample_rows_of_original,
                input_signature=[*rows, noise, latent, strengths, drawn],
                autograph=False,
            )
            texts = [
                tf.TensorSpec([None], tf.string, name=n) for n in ("latent_bytes", "mask_bytes")
            ]
            self.rows_from_image = tf.function(
                self._rows_from_image, input_signature=[*rows, strengths, *texts], autograph=False
            )

    def _predict_with(
        self, for_cpu: bool, latent: tf.Tensor, timesteps: tf.Tensor, context: tf.Tensor
    ) -> tf.Tensor:
        embedding = timestep_embedding(timesteps, self._width)
        return tf.cast(self._call([latent, embedding, context], for_cpu), tf.float32)

    def _predict(self, latent: tf.Tensor, timesteps: tf.Tensor, context: tf.Tensor) -> tf.Tensor:
        """The prediction, float32 [B, h, w, 4], of noisy latents at `timesteps`, int32 [B]."""
        timesteps = tf.cast(timesteps, tf.float32)
        predicted = _by_device(
            functools.partial(predict, latent, timesteps, context)
            for predict in (self.predict_on_cpu, self.predict_on_gpu)
        )
        return tf.ensure_shape(predicted, latent.shape)

    def _sample(
        self,
        context: tf.Tensor,
        unconditional_context: tf.Tensor,
        num_steps: tf.Tensor,
        guidance_scale: tf.Tensor,
        noise: tf.Tensor,
        seed: tf.Tensor,
        sampler: tf.Tensor,
        original: Original | None = None,
    ) -> tf.Tensor:
        """Latents, float32 [B, h, w, 4]; `seed` is for the noise that is added in between."""
        shape, multiple = tf.shape(noise), self._latent_multiple
        valid = [
            tf.debugging.Assert(
                tf.reduce_all((shape[1:3] > 0) & (shape[1:3] % multiple == 0)),
                [f"height and width of noise must be multiples of {multiple}; its shape is", shape],
            ),
            tf.debugging.Assert(
                (num_steps >= 1) & (num_steps <= NUM_TIMESTEPS),
                [f"num_steps must be 1 to {NUM_TIMESTEPS}, and is", num_steps],
            ),
            tf.debugging.Assert(
                tf.math.is_finite(guidance_scale),
                ["guidance_scale must be finite, and is", guidance_scale],
            ),
            tf.debugging.Assert(
                is_sampler(sampler),
                [f"sampler must be one of {', '.join(SAMPLERS)}, and is", sampler],
            ),
        ]
        with tf.control_dependencies(valid):
            num_steps = tf.identity(num_steps)
        return self._by_sampler(
            context,
            unconditional_context,
            num_steps,
            guidance_scale,
            sampler,
            noise,
            lambda index: step_noise(seed, index, shape),
            original,
        )

    def _by_sampler(
        self,
        context: tf.Tensor,
        unconditional_context: tf.Tensor,
        num_steps: tf.Tensor,
        guidance_scale: tf.Tensor,
        sampler: tf.Tensor,
        noise: tf.Tensor,
        fresh_noise: Callable[[tf.Tensor], tf.Tensor],
        original: Original | None,
    ) -> tf.Tensor:
        contexts = (context, unconditional_context)
        on_cpu = in_two_calls(self.predict_on_cpu, *contexts)
        on_gpu = in_one_call(self.predict_on_gpu, *contexts)
        # Within the loop: two loops would double the time to optimize every signature.
        latent = sample(
            lambda *noisy: _by_device(functools.partial(f, *noisy) for f in (on_cpu, on_gpu)),
            self._schedule,
            noise=noise,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            fresh_noise=fresh_noise,
            original=original,
        )
        return tf.ensure_shape(latent, noise.shape)

    def _sample_original(
        self,
        context: tf.Tensor,
        unconditional_context: tf.Tensor,
        num_steps: tf.Tensor,
        guidance_scale: tf.Tensor,
        seed: tf.Tensor,
        sampler: tf.Tensor,
        latent: tf.Tensor,
        strength: tf.Tensor,
        drawn: tf.Tensor,
    ) -> tf.Tensor:
        """Latents, float32 [B, h, w, 4], drawn from pictures; see `trainer.diffusion.sampler`."""
        valid = tf.debugging.Assert(
            (strength >= 0.0) & (strength <= 1.0), ["strength must be 0 to 1, and is", strength]
        )
        with tf.control_dependencies([valid]):
            strength = tf.identity(strength)
        shape = tf.shape(latent)
        noise = initial_noise(seed, shape[0], (shape[1], shape[2], LATENT_CHANNELS))
        return self._sample(
            context,
            unconditional_context,
            num_steps,
            guidance_scale,
            tf.ensure_shape(noise, latent.shape),
            seed,
            sampler,
            Original(latent, strength, drawn),
        )

    def _from_image(
        self,
        context: tf.Tensor,
        unconditional_context: tf.Tensor,
        num_steps: tf.Tensor,
        guidance_scale: tf.Tensor,
        seed: tf.Tensor,
        sampler: tf.Tensor,
        latent: tf.Tensor,
        strength: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        guided = (context, unconditional_context, num_steps, guidance_scale)
        everywhere = tf.ones_like(latent[..., :1], tf.bool)
        drawn = self.sample_original(*guided, seed, sampler, latent, strength, everywhere)
        return {"latent": drawn}

    def _inpaint(
        self,
        context: tf.Tensor,
        unconditional_context: tf.Tensor,
        num_steps: tf.Tensor,
        guidance_scale: tf.Tensor,
        seed: tf.Tensor,
        sampler: tf.Tensor,
        latent: tf.Tensor,
        strength: tf.Tensor,
        mask: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        guided = (context, unconditional_context, num_steps, guidance_scale)
        pixels, positions = tf.shape(mask), tf.shape(latent)[:3]
        valid = tf.debugging.Assert(
            tf.reduce_all(pixels == positions * [1, LATENT_DOWNSAMPLING, LATENT_DOWNSAMPLING]),
            ["mask must have the pixels of latent's picture; shapes are", pixels, positions],
        )
        with tf.control_dependencies([valid]):
            drawn = _drawn_by(tf.identity(mask))
        return {"latent": self.sample_original(*guided, seed, sampler, latent, strength, drawn)}

    def _from_seed(
        self,
        context: tf.Tensor,
        unconditional_context: tf.Tensor,
        num_steps: tf.Tensor,
        guidance_scale: tf.Tensor,
        seed: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        guided = (context, unconditional_context, num_steps, guidance_scale)
        return self._sampled(*guided, seed, tf.constant(DEFAULT_SAMPLER))

    def _from_noise(
        self,
        context: tf.Tensor,
        unconditional_context: tf.Tensor,
        num_steps: tf.Tensor,
        guidance_scale: tf.Tensor,
        noise: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        guided = (context, unconditional_context, num_steps, guidance_scale)
        # The default sampler does not use a seed.
        seed, sampler = tf.constant([0, 0]), tf.constant(DEFAULT_SAMPLER)
        return self._sampled_from_noise(*guided, noise, seed, sampler)

    def _sampled(
        self,
        context: tf.Tensor,
        unconditional_context: tf.Tensor,
        num_steps: tf.Tensor,
        guidance_scale: tf.Tensor,
        seed: tf.Tensor,
        sampler: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        guided = (context, unconditional_context, num_steps, guidance_scale)
        noise = initial_noise(seed, tf.shape(context)[0], self._latent_shape)
        return {"latent": self.sample(*guided, noise, seed, sampler)}

    def _sampled_from_noise(
        self,
        context: tf.Tensor,
        unconditional_context: tf.Tensor,
        num_steps: tf.Tensor,
        guidance_scale: tf.Tensor,
        noise: tf.Tensor,
        seed: tf.Tensor,
        sampler: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        guided = (context, unconditional_context, num_steps, guidance_scale)
        return {"latent": self.sample(*guided, noise, seed, sampler)}

    def _sampled_at_size(
        self,
        context: tf.Tensor,
        unconditional_context: tf.Tensor,
        num_steps: tf.Tensor,
        guidance_scale: tf.Tensor,
        seed: tf.Tensor,
        sampler: tf.Tensor,
        height: tf.Tensor,
        width: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        guided = (context, unconditional_context, num_steps, guidance_scale)
        sides = [
            self._side_of_latent(name, side)
            for name, side in (("height", height), ("width", width))
        ]
        noise = initial_noise(seed, tf.shape(context)[0], (*sides, LATENT_CHANNELS))
        return {"latent": self.sample(*guided, noise, seed, sampler)}

    def _side_of_latent(self, name: str, pixels: tf.Tensor) -> tf.Tensor:
        """int32 [], from a height or width in pixels, int32 []; 0 is the training size."""
        multiple = self._size_multiple
        valid = tf.debugging.Assert(
            (pixels >= 0) & (pixels % multiple == 0),
            [f"{name} must be a multiple of {multiple}, 0 for {self._image_size}, and is", pixels],
        )
        with tf.control_dependencies([valid]):
            return self._side(pixels) // LATENT_DOWNSAMPLING

    def _side(self, pixels: tf.Tensor) -> tf.Tensor:
        return tf.where(pixels == 0, self._image_size, pixels)

    def _size(self, height: tf.Tensor, width: tf.Tensor) -> dict[str, tf.Tensor]:
        """Size and peak memory of a picture with a height and width, int32 []; each is [1]."""
        height, width = self._side(height), self._side(width)
        rows, columns = (
            tf.cast(side, tf.float64) / LATENT_DOWNSAMPLING for side in (height, width)
        )
        peak = functools.reduce(tf.maximum, self._memory.of_networks(rows * columns))
        return {
            "height": height[None],
            "width": width[None],
            "multiple": tf.constant([self._size_multiple]),
            "peak_memory": tf.cast(peak, tf.float32)[None],
        }

    def _sample_rows(
        self,
        context: tf.Tensor,
        unconditional_context: tf.Tensor,
        num_steps: tf.Tensor,
        guidance_scale: tf.Tensor,
        seed: tf.Tensor,
        sampler: tf.Tensor,
        noise: tf.Tensor,
        original: Original | None = None,
    ) -> tf.Tensor:
        """Latents, float32 [B, h, w, 4], for rows that are known to be valid."""
        shape = tf.shape(noise)
        latent = self._by_sampler(
            context,
            unconditional_context,
            num_steps,
            guidance_scale,
            sampler,
            noise,
            lambda index: step_noise_of_rows(seed, index, shape),
            original,
        )
        return tf.ensure_shape(latent, _LATENTS)

    def _sample_rows_of_original(
        self,
        context: tf.Tensor,
        unconditional_context: tf.Tensor,
        num_steps: tf.Tensor,
        guidance_scale: tf.Tensor,
        seed: tf.Tensor,
        sampler: tf.Tensor,
        noise: tf.Tensor,
        latent: tf.Tensor,
        strength: tf.Tensor,
        drawn: tf.Tensor,
    ) -> tf.Tensor:
        rows = (context, unconditional_context, num_steps, guidance_scale, seed, sampler)
        return self._sample_rows(*rows, noise, Original(latent, strength, drawn))

    def _rows(
        self,
        context: tf.Tensor,
        unconditional_context: tf.Tensor,
        num_steps: tf.Tensor,
        guidance_scale: tf.Tensor,
        seed: tf.Tensor,
        sampler: tf.Tensor,
        height: tf.Tensor,
        width: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """A latent, or a problem, for each row; see the module's docstring."""
        rows = (context, unconditional_context, num_steps, guidance_scale, seed, sampler)
        problem = self._problem(num_steps, guidance_scale, sampler)
        for name, side in (("height", height), ("width", width)):
            problem = problem_where(
                (side < 0) | (side % self._size_multiple != 0),
                f"{name} must be a multiple of {self._size_multiple}, 0 for {self._image_size}",
                side,
                problem,
            )
        sides = self._side(tf.stack([height, width], axis=-1)) // LATENT_DOWNSAMPLING

        def draw(places: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
            some = [tf.gather(values, places) for values in rows]
            noise = initial_noise_of_rows(some[4], (side[0], side[1], LATENT_CHANNELS))
            if not self.image_to_image:
                return texts_of(self.sample_rows(*some, noise))
            # At full strength nothing is left of a picture, so no second loop needs to be traced.
            nothing, everywhere = tf.zeros_like(noise), tf.ones_like(noise[..., :1], tf.bool)
            strength = tf.ones_like(some[3])
            return texts_of(
                self.sample_rows_of_original(*some, noise, nothing, strength, everywhere)
            )

        drawn = in_groups(sides, problem == "", self._together, draw)
        return {"latent_bytes": drawn, "problem_bytes": problem}

    def _rows_from_image(
        self,
        context: tf.Tensor,
        unconditional_context: tf.Tensor,
        num_steps: tf.Tensor,
        guidance_scale: tf.Tensor,
        seed: tf.Tensor,
        sampler: tf.Tensor,
        strength: tf.Tensor,
        latent_bytes: tf.Tensor,
        mask_bytes: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """The same from latents of pictures; a mask is a PNG file, or empty for none."""
        rows = (context, unconditional_context, num_steps, guidance_scale, seed, sampler)
        problem = problem_where(
            ~((strength >= 0.0) & (strength <= 1.0)),
            "strength must be 0 to 1",
            strength,
            self._problem(num_steps, guidance_scale, sampler),
        )
        latents = Latents.of(latent_bytes)
        problem = problem_where(
            tf.reduce_any(latents.sides % self._latent_multiple != 0, axis=-1),
            f"height and width of latent must be multiples of {self._latent_multiple}",
            latents.sides[:, 0],
            problem,
        )
        masked = mask_bytes != ""
        sides = latents.sides * LATENT_DOWNSAMPLING
        of_masks = picture_sides(mask_bytes, masked)
        problem = problem_where(
            masked & tf.reduce_any(of_masks != sides, axis=-1),
            "mask must have the pixels of latent's picture; its height",
            of_masks[:, 0],
            problem,
        )

        def draw(places: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
            some = [tf.gather(values, places) for values in rows]
            noise = initial_noise_of_rows(some[4], (side[0], side[1], LATENT_CHANNELS))
            pixels = side * LATENT_DOWNSAMPLING

            def mask_of(file: tf.Tensor) -> tf.Tensor:
                return tf.cond(
                    file == "",
                    lambda: tf.ones([pixels[0], pixels[1], 1], tf.uint8),
                    lambda: tf.io.decode_png(file, channels=1),
                )

            masks = tf.map_fn(
                mask_of,
                tf.gather(mask_bytes, places),
                fn_output_signature=tf.TensorSpec([None, None, 1], tf.uint8),
            )
            return texts_of(
                self.sample_rows_of_original(
                    *some,
                    noise,
                    latents.gathered(places),
                    tf.gather(strength, places),
                    _drawn_by(masks[..., 0]),
                )
            )

        drawn = in_groups(latents.sides, problem == "", self._together, draw)
        return {"latent_bytes": drawn, "problem_bytes": problem}

    def _problem(
        self, num_steps: tf.Tensor, guidance_scale: tf.Tensor, sampler: tf.Tensor
    ) -> tf.Tensor:
        """The problem of each row, string [B]; empty for none."""
        problem = tf.zeros_like(sampler)
        for wrong, what, given in (
            (
                (num_steps < 1) | (num_steps > NUM_TIMESTEPS),
                f"num_steps must be 1 to {NUM_TIMESTEPS}",
                num_steps,
            ),
            (
                ~tf.math.is_finite(guidance_scale),
                "guidance_scale must be finite",
                guidance_scale,
            ),
            (~is_sampler(sampler), f"sampler must be one of {', '.join(SAMPLERS)}", sampler),
        ):
            problem = problem_where(wrong, what, given, problem)
        return problem

    def _together(self, side: tf.Tensor) -> tf.Tensor:
        return _together(self._memory, DIFFUSION_MODEL, side)

    def _size_of_rows(self, height: tf.Tensor, width: tf.Tensor) -> dict[str, tf.Tensor]:
        """The result of `_size` for each height and width, int32 [B]."""
        found = tf.map_fn(
            lambda sides: self._size(*sides),
            (height, width),
            fn_output_signature={
                "height": tf.TensorSpec([1], tf.int32),
                "width": tf.TensorSpec([1], tf.int32),
                "multiple": tf.TensorSpec([1], tf.int32),
                "peak_memory": tf.TensorSpec([1], tf.float32),
            },
        )
        return {name: values[:, 0] for name, values in found.items()}

    def _serve_prediction(
        self, latent: tf.Tensor, timesteps: tf.Tensor, context: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        return {self._schedule.prediction: self.predict(latent, timesteps, context)}


class ImageEncoderModule(tf.Module):
    """Pictures in, latents out."""

    def __init__(
        self,
        model: keras.Model,
        weights_dtype: WeightsDtype = "float32",
        *,
        memory: DrawingMemory | None = None,
    ) -> None:
        super().__init__()
        self._variables, self._call = _network(model, weights_dtype)
        self._memory = memory
        images = tf.TensorSpec(_PICTURES, tf.uint8, name="images")
        files = tf.TensorSpec([None], tf.string, name="image")
        self.encode = tf.function(self._encode, input_signature=[images], autograph=False)
        self.serve = tf.function(self._from_pixels, input_signature=[images], autograph=False)
        self.png = tf.function(self._from_png, input_signature=[files], autograph=False)
        texts = tf.TensorSpec([None], tf.string, name="image_bytes")
        self.rows = tf.function(self._rows, input_signature=[texts], autograph=False)

    def _encode(self, images: tf.Tensor) -> tf.Tensor:
        """Latents, float32 [B, h, w, 4], from pictures uint8 [B, H, W, 3]: the means, scaled.

        Training samples around the mean; here, the same picture must give the same latent.
        """
        shape = tf.shape(images)
        valid = tf.debugging.Assert(
            tf.reduce_all((shape[1:3] > 0) & (shape[1:3] % LATENT_DOWNSAMPLING == 0)),
            [
                f"sides of images must be multiples of {LATENT_DOWNSAMPLING}; shape",
                shape,
            ],
        )
        with tf.control_dependencies([valid]):
            moments = self._call(to_image(images))
        mean = tf.cast(moments[..., :LATENT_CHANNELS], tf.float32)
        return tf.ensure_shape(LATENT_SCALE * mean, _LATENTS)

    def _from_pixels(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"latent": self.encode(images)}

    def _from_png(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        decode = functools.partial(tf.io.decode_png, channels=3)
        pixels = tf.map_fn(decode, image, fn_output_signature=tf.uint8)
        return {"latent": self.encode(tf.ensure_shape(pixels, _PICTURES))}

    def _rows(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Latents from PNG files of any sizes; see the module's docstring."""

        def draw(places: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
            return texts_of(self._from_png(tf.gather(image_bytes, places))["latent"])

        def together(side: tf.Tensor) -> tf.Tensor:
            return _together(self._memory, IMAGE_ENCODER, side // LATENT_DOWNSAMPLING)

        given = image_bytes != ""
        sides = picture_sides(image_bytes, given)
        return {"latent_bytes": in_groups(sides, given, together, draw)}


class DecoderModule(tf.Module):
    """Latents in, pictures out."""

    def __init__(
        self,
        model: keras.Model,
        weights_dtype: WeightsDtype = "float32",
        compute: ComputeDtype = "float32",
        *,
        memory: DrawingMemory | None = None,
    ) -> None:
        super().__init__()
        self._memory = memory
        # Its residual sums are large: published decoders overflow in float16.
        computed = "float32" if compute == "float16" else compute
        self._variables, self._call = _network(model, weights_dtype, computed)
        latent = tf.TensorSpec(_LATENTS, tf.float32, name="latent")
        self.pixels = tf.function(self._pixels, input_signature=[latent], autograph=False)
        self.serve = tf.function(self._decode, input_signature=[latent], autograph=False)
        self.png = tf.function(self._decode_to_png, input_signature=[latent], autograph=False)
        self.png_bytes = tf.function(
            self._decode_to_png_bytes, input_signature=[latent], autograph=False
        )
        texts = tf.TensorSpec([None], tf.string, name="latent_bytes")
        self.rows = tf.function(self._rows, input_signature=[texts], autograph=False)

    def _pixels(self, latent: tf.Tensor) -> tf.Tensor:
        """Pictures, uint8 [B, H, W, 3], from latents float32 [B, h, w, 4]."""
        return to_pixels(tf.cast(self._call(latent), tf.float32))

    def _decode(self, latent: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"generated_images": self.pixels(latent)}

    def _decode_to_png(self, latent: tf.Tensor) -> dict[str, tf.Tensor]:
        encoded = tf.map_fn(tf.io.encode_png, self.pixels(latent), fn_output_signature=tf.string)
        return {"image": encoded}

    def _decode_to_png_bytes(self, latent: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"image_bytes": self.png(latent)["image"]}

    def _rows(self, latent_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """PNG files from latents of any sizes; see the module's docstring."""
        latents = Latents.of(latent_bytes)

        def draw(places: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
            return self.png(latents.gathered(places))["image"]

        def together(side: tf.Tensor) -> tf.Tensor:
            return _together(self._memory, DECODER, side)

        return {"image_bytes": in_groups(latents.sides, latent_bytes != "", together, draw)}


@dataclasses.dataclass(frozen=True)
class ServingModules:
    """The modules that are served together; `None` if they cannot draw from pictures."""

    text_encoder: TextEncoderModule
    diffusion_model: DiffusionModelModule
    decoder: DecoderModule
    image_encoder: ImageEncoderModule | None = None


def export_models(folder: str, modules: ServingModules, training_id: str | None = None) -> None:
    """Writes `<folder>/{text_encoder,diffusion_model,decoder}/`, and `image_encoder/` if any.

    Args:
        folder: Folder to write to.
        modules: Modules to write.
        training_id: Names the training that made the weights, so that a server can tell whose
            pictures it draws; `None` for weights that were not trained.
    """
    text_encoder, diffusion_model, decoder = (
        modules.text_encoder,
        modules.diffusion_model,
        modules.decoder,
    )
    from_pictures: dict[str, Any] = {}
    if diffusion_model.image_to_image:
        from_pictures = {
            "from_image": diffusion_model.from_image,
            "inpaint": diffusion_model.inpaint,
            "rows_from_image": diffusion_model.rows_from_image,
        }
    exported: list[tuple[str, tf.Module, dict[str, Any]]] = [
        (
            "text_encoder",
            text_encoder,
            {
                "serving_default": text_encoder.serve,
                "text": text_encoder.text,
                "cut": text_encoder.cut,
                **({} if training_id is None else {"training": text_encoder.training(training_id)}),
            },
        ),
        (
            "diffusion_model",
            diffusion_model,
            {
                "serving_default": diffusion_model.serve,
                "from_noise": diffusion_model.from_noise,
                "sample": diffusion_model.sampled,
                "sample_from_noise": diffusion_model.sampled_from_noise,
                "sample_at_size": diffusion_model.sampled_at_size,
                "size": diffusion_model.size,
                "rows": diffusion_model.rows,
                "size_of_rows": diffusion_model.size_of_rows,
                **from_pictures,
                diffusion_model.prediction_signature: diffusion_model.serve_prediction,
            },
        ),
        (
            "decoder",
            decoder,
            {
                "serving_default": decoder.serve,
                "png": decoder.png,
                "png_bytes": decoder.png_bytes,
                "rows": decoder.rows,
            },
        ),
    ]
    if (image_encoder := modules.image_encoder) is not None:
        signatures = {
            "serving_default": image_encoder.serve,
            "png": image_encoder.png,
            "rows": image_encoder.rows,
        }
        exported.append(("image_encoder", image_encoder, signatures))
    for name, module, signatures in exported:
        # `ExportArchive` is not used because it stores every weight twice.
        tf.saved_model.save(module, os.path.join(folder, name), signatures=signatures)


def serving_modules(
    text_encoder: keras.Model,
    diffusion_model: keras.Model,
    decoder: keras.Model,
    preset: Preset,
    image_size: int,
    weights_dtype: WeightsDtype = "float32",
    compute: ComputeDtype = "float32",
    *,
    image_encoder: keras.Model | None = None,
    word: NewWord | None = None,
) -> ServingModules:
    """The modules of three networks, or of four, which can also begin drawing with pictures.

    With weights in float32 they share the variables of the networks, and follow their training.
    With weights in 16 bits they own copies of the current weights, half as large. Layers that
    compute in the same type read these directly; otherwise each call casts them to float32. In
    float16 a weight is rounded by up to 2^-11 of its value, or lost if it is below 3e-8; in
    bfloat16 it is rounded by up to 2^-8.

    Args:
        text_encoder: Always computes in float32, as it runs only once per picture.
        diffusion_model: Computes in `compute`.
        decoder: Computes in `compute`, but in float32 instead of float16.
        preset: Their preset.
        image_size: The side in pixels that they were trained at.
        weights_dtype: Type in which the weights are stored.
        compute: See `trainer.networks.inference_layers` for what stays float32.
        image_encoder: Computes in float32, like the text encoder.
        word: A word that the vocabulary lacks but the text encoder has vectors for.

    Raises:
        UserError: A weight is too large for float16, or not a number.
    """
    memory = DrawingMemory.of(preset, image_to_image=image_encoder is not None)
    return ServingModules(
        TextEncoderModule(text_encoder, preset, weights_dtype, word=word),
        DiffusionModelModule(
            diffusion_model,
            preset,
            image_size,
            weights_dtype,
            compute,
            image_to_image=image_encoder is not None,
        ),
        DecoderModule(decoder, weights_dtype, compute, memory=memory),
        None
        if image_encoder is None
        else ImageEncoderModule(image_encoder, weights_dtype, memory=memory),
    )


def _drawn_by(mask: tf.Tensor) -> tf.Tensor:
    """The positions of a latent to draw, bool [B, h, w, 1], from masks uint8 [B, H, W].

    A position is drawn if any of its pixels is masked. diffusers only looks at the nearest pixel,
    so a mask of one pixel would have no effect.
    """
    cell, painted = LATENT_DOWNSAMPLING, tf.cast(mask > 0, tf.float32)[..., None]
    return tf.nn.max_pool2d(painted, cell, cell, "VALID") > 0


def _together(memory: DrawingMemory | None, network: int, side: tf.Tensor) -> tf.Tensor:
    """How many rows whose latent has a height and width, int32 [2], are drawn at once: int32 []."""
    if memory is None:
        return tf.constant(tf.int32.max)
    return memory.together(network, tf.reduce_prod(tf.cast(side, tf.float64)))


def _by_device(branches: Iterable[Callable[[], tf.Tensor]]) -> tf.Tensor:
    """The result of the first branch on a CPU and of the second on a GPU.

    Only the serving machine knows which one it is.
    """
    device = tf.raw_ops.DeviceIndex(device_names=["CPU", "GPU"])
    return tf.switch_case(device, list(branches))


class _Network(Protocol):
    def __call__(self, inputs: Any, for_cpu: bool = False) -> tf.Tensor: ...


def _network(
    model: keras.Model, weights_dtype: WeightsDtype, compute: ComputeDtype = "float32"
) -> tuple[list[tf.Variable], _Network]:
    """The variables to save, and the network as a function that reads them."""
    if weights_dtype == "float32":

        def call_as_is(inputs: Any, for_cpu: bool = False) -> tf.Tensor:
            with inference_layers(model, for_cpu, compute):
                return model(inputs, training=False)

        return [v.value for v in model.weights], call_as_is
    halves = [_halved(v, weights_dtype) for v in model.weights]
    read_as = weights_dtype if compute == weights_dtype else "float32"

    def call(inputs: Any, for_cpu: bool = False) -> tf.Tensor:
        # Normalization multiplies in float32 with vectors that it does not cast.
        values = [tf.cast(v, read_as if len(v.shape) > 1 else "float32") for v in halves]
        with inference_layers(model, for_cpu, compute), reading(model, values):
            return model(inputs, training=False)

    return halves, call


def _halved(variable: keras.Variable, dtype: WeightsDtype) -> tf.Variable:
    half = tf.cast(variable.value, dtype)
    if not bool(tf.reduce_all(tf.math.is_finite(half))):
        raise UserError(
            f"a weight of {variable.path} is too large for {dtype} or not a number: set "
            "model.export_weights to float32"
        )
    return tf.Variable(half, trainable=False)
