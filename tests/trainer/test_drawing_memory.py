"""What a picture is said to take, against the tensors of the graphs that draw it."""

from __future__ import annotations

import dataclasses

import keras
import pytest
import small_runs
import tensorflow as tf

from trainer.export.drawing_memory import DrawingMemory
from trainer.networks import build_network
from trainer.networks.inference_layers import inference_layers
from trainer.presets import AutoencoderDimensions, Preset, get_preset
from trainer.training.memory import activation_bytes

PRESET = dataclasses.replace(
    small_runs.preset(),
    diffusion_model=dataclasses.replace(
        small_runs.preset().diffusion_model,
        widths=(16, 24),
        cross_attention=(True, False),
        num_blocks=1,
    ),
    decoder=AutoencoderDimensions(widths=(8, 12, 16, 16), num_blocks=1, norm_groups=4),
    image_encoder=AutoencoderDimensions(widths=(8, 12, 16, 16), num_blocks=1, norm_groups=4),
)


class AnySizePreset(Preset):
    """Builds networks that take every size."""

    def latent_shape(self, image_size: int) -> tuple[int | None, int | None, int]:
        return None, None, 4


def walked(model: keras.Model, side: int) -> int:
    """The most bytes of tensors at once, where operations follow one another and copy all."""
    unit = 1 if model.name == "image_encoder" else 8
    with inference_layers(model):
        function = tf.function(
            lambda *inputs: model(keras.tree.pack_sequence_as(model.input, inputs), training=False),
            autograph=False,
        )
        specs = [
            tf.TensorSpec([1, *(side // unit if dim is None else dim for dim in tensor.shape[1:])])
            for tensor in model.inputs
        ]
        return activation_bytes(function.get_concrete_function(*specs).outputs)


@pytest.mark.parametrize("network", ["diffusion_model", "decoder", "image_encoder"])
def test_no_graph_holds_more(network: str) -> None:
    model = build_network(network, AnySizePreset(**vars(PRESET)), 0)
    for side in (64, 512):
        # Two predictions a step.
        found = walked(model, side) * (2 if network == "diffusion_model" else 1)
        memory = DrawingMemory.of(PRESET, image_to_image=True).of_networks((side / 8) ** 2)
        said = dict(zip(("diffusion_model", "decoder", "image_encoder"), memory, strict=True))
        assert found < said[network] < 5 * found


def test_numbers_that_the_documentation_has() -> None:
    tiny, full = (DrawingMemory.of(get_preset(name)) for name in ("tiny", "sd-v1-4"))
    assert tiny == DrawingMemory(per_position=(28_304, 53_248), per_pair=(4, 8))
    # Of 2 predictions, 8 heads' scores and weights.
    assert full == DrawingMemory(per_position=(219_936, 425_984), per_pair=(4 * 2 * 8 * 2, 8))
    for name, of_text, per_position in (("tiny", tiny, 32_768), ("sd-v1-4", full, 262_144)):
        with_pictures = DrawingMemory.of(get_preset(name), image_to_image=True)
        assert with_pictures.per_position == (*of_text.per_position, per_position)
        assert with_pictures.per_pair == (*of_text.per_pair, 8)
    sides = (512, 768, 1024)
    found = [round(max(full.of_networks((side / 8) ** 2)) / 1e9, 1) for side in sides]
    assert found == [3.0, 12.9, 38.0]
