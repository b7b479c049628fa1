"""The SavedModels and their signatures: three, or four where drawing begins with pictures, too.

Nothing is baked in: prompts, negative prompts, number of steps, guidance scale, sampler, seed,
height, width and batch size are inputs. A signature has no optional inputs on TensorFlow Serving,
so those that take the sampler and the size stand beside those of former versions, which clients of
former versions ask for, and which draw the size of the training. Each module's network is a
`tf.function` of its own that its signatures call, so that it is traced, stored and loaded once and
not once a signature. A module keeps the network's variables and not the Keras model, whose hundreds
of layer objects would be saved and loaded, too.

A picture becomes a latent in the fourth, the image encoder. The diffusion model begins with that
latent, by signatures of their own, which it has where there is an image encoder alone; a mask is in
pixels there, so that nobody need know what a position of a latent is.

TensorFlow Serving's REST interface writes a text output as it is, unless its name ends in
`_bytes`; PNG bytes are no text, which is why there is a `png_bytes` beside `png`.
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
    initial_noise,
    sample,
    step_noise,
    to_image,
    to_pixels,
)
from trainer.diffusion.samplers import DEFAULT_SAMPLER, SAMPLERS, is_sampler
from trainer.export.drawing_memory import DrawingMemory
from trainer.networks.inference_layers import has_form_for_cpu, inference_layers
from trainer.networks.seam import reading
from trainer.presets import LATENT_CHANNELS, LATENT_DOWNSAMPLING, NUM_TIMESTEPS, Preset
from trainer.text.graph_tokenizer import GraphTokenizer
from trainer.training_config import ComputeDtype, WeightsDtype

_LATENTS = (None, None, None, LATENT_CHANNELS)
_PICTURES = (None, None, None, 3)


class TextEncoderModule(tf.Module):
    """Prompts or tokens in, contexts out."""

    def __init__(
        self, model: keras.Model, preset: Preset, weights_dtype: WeightsDtype = "float32"
    ) -> None:
        super().__init__()
        self._variables, self._call = _network(model, weights_dtype)
        self.tokenizer = GraphTokenizer()
        tokens = tf.TensorSpec([None, preset.text_encoder.max_length], tf.int32, name="tokens")
        strings = tf.TensorSpec([None], tf.string)
        self.encode = tf.function(self._encode, input_signature=[tokens], autograph=False)
        self.serve = tf.function(self._from_tokens, input_signature=[tokens], autograph=False)
        self.text = tf.function(
            self._from_text, input_signature=[strings, strings], autograph=False
        )
        self.cut = tf.function(self._cut, input_signature=[strings], autograph=False)

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
    """The whole sampling loop, a single prediction, and what sizes there are."""

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
        self._schedule = NoiseSchedule(preset.prediction)
        self.prediction_signature = preset.prediction_signature
        self._width = preset.diffusion_model.timestep_width
        self._image_size, self._size_multiple = image_size, preset.size_multiple
        self._latent_shape = preset.latent_shape(image_size)
        self._memory = DrawingMemory.of(preset, image_to_image=image_to_image)
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
                # It is called in several places, and need not be optimized for each.
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
        self.serve_prediction = tf.function(
            self._serve_prediction, input_signature=prediction, autograph=False
        )
        # A function that is there is traced and saved.
        self.image_to_image = image_to_image
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
        """Latents, float32 [B, h, w, 4]; `seed` is of the noise that comes in between."""
        shape, multiple = tf.shape(noise), self._size_multiple // LATENT_DOWNSAMPLING
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
        # One call on a doubled batch fills a GPU better; two at once keep a CPU's cores busier.
        latent = _by_device(
            functools.partial(
                sample,
                predict,
                self._schedule,
                noise=noise,
                context=context,
                unconditional_context=unconditional_context,
                num_steps=num_steps,
                guidance_scale=guidance_scale,
                sampler=sampler,
                fresh_noise=lambda index: step_noise(seed, index, shape),
                guided_together=guided_together,
                original=original,
            )
            for predict, guided_together in (
                (self.predict_on_cpu, False),
                (self.predict_on_gpu, True),
            )
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
        """Latents, float32 [B, h, w, 4], of those of pictures; see `trainer.diffusion.sampler`."""
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
            mask = tf.identity(mask)
        # A position is drawn for the sake of any of its pixels: the nearest one's, which diffusers
        # takes, would leave a mask of one pixel without effect.
        cell, painted = LATENT_DOWNSAMPLING, tf.cast(mask > 0, tf.float32)[..., None]
        drawn = tf.nn.max_pool2d(painted, cell, cell, "VALID") > 0
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
        # The sampler has no use for a seed.
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
        """int32 [], of a height or width in pixels, int32 []; 0 is what it was trained at."""
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
        """What a picture of a height and width, int32 [], would be, each [1]."""
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

    def _serve_prediction(
        self, latent: tf.Tensor, timesteps: tf.Tensor, context: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        return {self._schedule.prediction: self.predict(latent, timesteps, context)}


class ImageEncoderModule(tf.Module):
    """Pictures in, latents out."""

    def __init__(self, model: keras.Model, weights_dtype: WeightsDtype = "float32") -> None:
        super().__init__()
        self._variables, self._call = _network(model, weights_dtype)
        images = tf.TensorSpec(_PICTURES, tf.uint8, name="images")
        files = tf.TensorSpec([None], tf.string, name="image")
        self.encode = tf.function(self._encode, input_signature=[images], autograph=False)
        self.serve = tf.function(self._from_pixels, input_signature=[images], autograph=False)
        self.png = tf.function(self._from_png, input_signature=[files], autograph=False)

    def _encode(self, images: tf.Tensor) -> tf.Tensor:
        """Latents, float32 [B, h, w, 4], of pictures uint8 [B, H, W, 3]: the means, scaled.

        Training draws from around the mean; the same picture is to give the same latent.
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


class DecoderModule(tf.Module):
    """Latents in, pictures out."""

    def __init__(
        self,
        model: keras.Model,
        weights_dtype: WeightsDtype = "float32",
        compute: ComputeDtype = "float32",
    ) -> None:
        super().__init__()
        # Its residual sums are large: published decoders reach infinity in float16.
        computed = "float32" if compute == "float16" else compute
        self._variables, self._call = _network(model, weights_dtype, computed)
        latent = tf.TensorSpec(_LATENTS, tf.float32, name="latent")
        self.pixels = tf.function(self._pixels, input_signature=[latent], autograph=False)
        self.serve = tf.function(self._decode, input_signature=[latent], autograph=False)
        self.png = tf.function(self._decode_to_png, input_signature=[latent], autograph=False)
        self.png_bytes = tf.function(
            self._decode_to_png_bytes, input_signature=[latent], autograph=False
        )

    def _pixels(self, latent: tf.Tensor) -> tf.Tensor:
        """Pictures, uint8 [B, H, W, 3], of latents float32 [B, h, w, 4]."""
        return to_pixels(tf.cast(self._call(latent), tf.float32))

    def _decode(self, latent: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"generated_images": self.pixels(latent)}

    def _decode_to_png(self, latent: tf.Tensor) -> dict[str, tf.Tensor]:
        encoded = tf.map_fn(tf.io.encode_png, self.pixels(latent), fn_output_signature=tf.string)
        return {"image": encoded}

    def _decode_to_png_bytes(self, latent: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"image_bytes": self.png(latent)["image"]}


@dataclasses.dataclass(frozen=True)
class ServingModules:
    """The modules that are served together; `None` is where none draws from pictures."""

    text_encoder: TextEncoderModule
    diffusion_model: DiffusionModelModule
    decoder: DecoderModule
    image_encoder: ImageEncoderModule | None = None


def export_models(folder: str, modules: ServingModules) -> None:
    """Writes `<folder>/{text_encoder,diffusion_model,decoder}/`, and `image_encoder/` if any."""
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
        }
    exported: list[tuple[str, tf.Module, dict[str, Any]]] = [
        (
            "text_encoder",
            text_encoder,
            {
                "serving_default": text_encoder.serve,
                "text": text_encoder.text,
                "cut": text_encoder.cut,
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
            },
        ),
    ]
    if (image_encoder := modules.image_encoder) is not None:
        signatures = {"serving_default": image_encoder.serve, "png": image_encoder.png}
        exported.append(("image_encoder", image_encoder, signatures))
    for name, module, signatures in exported:
        # Not ExportArchive, which stores every weight twice.
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
) -> ServingModules:
    """The modules of three networks, or of four, with which drawing begins with pictures, too.

    With weights in float32 they share the networks' variables, and follow their training. With
    weights in 16 bits they own copies of what the weights are now, half as large, which are read as
    they are by what computes in the same, and otherwise turned into float32 in each call. In
    float16 a weight is rounded by up to 2^-11 of itself, or lost where it is below 3e-8; in
    bfloat16 by up to 2^-8.

    Args:
        text_encoder: Computes in float32 in any case: once a picture.
        diffusion_model: Computes in `compute`.
        decoder: Computes in `compute`, and in float32 instead of float16.
        preset: Theirs.
        image_size: What they were trained at, in pixels.
        weights_dtype: What weights are stored as.
        compute: See `trainer.networks.inference_layers` for what stays float32.
        image_encoder: Computes in float32, as the text encoder does.

    Raises:
        UserError: A weight is too large for float16, or no number.
    """
    return ServingModules(
        TextEncoderModule(text_encoder, preset, weights_dtype),
        DiffusionModelModule(
            diffusion_model,
            preset,
            image_size,
            weights_dtype,
            compute,
            image_to_image=image_encoder is not None,
        ),
        DecoderModule(decoder, weights_dtype, compute),
        None if image_encoder is None else ImageEncoderModule(image_encoder, weights_dtype),
    )


def _by_device(branches: Iterable[Callable[[], tf.Tensor]]) -> tf.Tensor:
    """The result of the first branch on a CPU and of the second on a GPU.

    Which of them it is, is known where this is served.
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
        # Normalization multiplies in float32, by vectors that it does not cast.
        values = [tf.cast(v, read_as if len(v.shape) > 1 else "float32") for v in halves]
        with inference_layers(model, for_cpu, compute), reading(model, values):
            return model(inputs, training=False)

    return halves, call


def _halved(variable: keras.Variable, dtype: WeightsDtype) -> tf.Variable:
    half = tf.cast(variable.value, dtype)
    if not bool(tf.reduce_all(tf.math.is_finite(half))):
        raise UserError(
            f"a weight of {variable.path} is too large for {dtype}, or no number: set "
            "model.export_weights to float32"
        )
    return tf.Variable(half, trainable=False)
