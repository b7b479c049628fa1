"""The work of ClassPictures."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils

from components.caption_example_gen.rows import LEFT_RIGHT, Unchecked, example_of
from components.tfrecords import describe_examples, shard_name, write_shard
from storage import row_index
from storage.progress import Work, WorkProgress
from trainer.presets import get_preset

SPLIT = "train"
DRAWING = ("text_encoder", "diffusion_model", "decoder")
"""The networks that draw."""

_SHARD_PICTURES = 256
_SETTINGS = ("caption", "seed", "sampler", "num_steps", "guidance_scale")

logger = logging.getLogger(__name__)


class Executor(base_executor.BaseExecutor):
    """Draws one picture after another, each as a client of the served model would get it."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See `ClassPictures`.

        Raises:
            WeightsError: The weights have changed since the component was made.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        examples = artifact_utils.get_single_instance(output_dict["examples"])
        describe_examples(examples, [SPLIT])
        number = exec_properties["pictures"]
        drawn = _drawn(exec_properties)
        count = -(-number // _SHARD_PICTURES)
        folder = artifact_utils.get_split_uri([examples], SPLIT)
        rows_uri = os.path.join(examples.uri, row_index.FOLDER_NAME)
        unfinished = os.path.join(examples.uri, f".unfinished-{uuid.uuid4().hex}")
        for path in (folder, rows_uri, unfinished):
            tf.io.gfile.makedirs(path)
        left_right, begun = 0, time.monotonic()
        for shard in range(count):
            own = range(shard, number, count)
            rows = [next(drawn) for _ in own]
            left_right += sum(row.left_right for row in rows)
            name = shard_name("examples", shard, count)
            write_shard(os.path.join(folder, name), (row.example for row in rows), unfinished)
            path = os.path.join(rows_uri, row_index.file_name(SPLIT, shard))
            with tf.io.gfile.GFile(path, "wb") as f:
                f.write(b"".join(row.indexed.line() for row in rows))
        tf.io.gfile.rmtree(unfinished)
        logger.info(
            "The base weights drew %s pictures of %r in %.0f s.",
            f"{number:,}",
            exec_properties["caption"],
            time.monotonic() - begun,
        )
        examples.set_int_custom_property(f"num_{SPLIT}", number)
        examples.set_int_custom_property(LEFT_RIGHT, left_right)
        for name in _SETTINGS:
            value = exec_properties[name]
            if isinstance(value, str):
                examples.set_string_custom_property(name, value)
            elif isinstance(value, int):
                examples.set_int_custom_property(name, value)
            else:
                examples.set_float_custom_property(name, value)


def _drawn(exec_properties: dict[str, Any]) -> Iterator[Unchecked]:
    """The pictures, each with its caption, as rows of a dataset."""
    # Import Keras.
    from trainer.export.saved_models import serving_modules
    from trainer.weights.base_model import BaseModel

    preset, image_size = get_preset(exec_properties["preset"]), exec_properties["image_size"]
    base_model = BaseModel.locate(preset, image_size, exec_properties["base_weights"])
    base_model.check_unchanged(exec_properties["base_weights_hash"], DRAWING)
    text_encoder, diffusion_model, decoder = (base_model.build(network) for network in DRAWING)
    modules = serving_modules(text_encoder, diffusion_model, decoder, base_model.preset, image_size)
    caption, number = exec_properties["caption"], exec_properties["pictures"]
    contexts = modules.text_encoder.text([caption], [""])
    with WorkProgress(Work("drawing", number, "class pictures")) as progress:
        for index in range(number):
            latent = modules.diffusion_model.sampled(
                **contexts,
                num_steps=tf.constant(exec_properties["num_steps"], tf.int32),
                guidance_scale=tf.constant(exec_properties["guidance_scale"], tf.float32),
                seed=tf.constant([exec_properties["seed"] + index, 0], tf.int32),
                sampler=tf.constant(exec_properties["sampler"]),
            )
            yield example_of(modules.decoder.png(**latent)["image"][0].numpy(), caption)
            progress.update("drawing")
