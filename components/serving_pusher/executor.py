"""The work of ServingPusher."""

from __future__ import annotations

import datetime
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tfx import types
from tfx.components.util import model_utils
from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.utils import path_utils

from components.serving_pusher.batching import batching_parameters
from components.serving_pusher.single_files import single_files
from components.serving_pusher.warmup import warmup_requests
from serving import marking, seals
from serving.releases import C2PA, SINGLE_FILES
from serving.serving_directory import (
    BATCH_SIZE,
    CAPTIONS,
    ModelRefusedError,
    ServingDirectory,
    networks_in,
)
from storage import filesystem
from storage.model_manifest import MODEL_MANIFEST_NAME, ModelManifest
from storage.user_errors import UserError
from storage.verdict import UNSURE, VERDICT

RELEASE_NAME = "release.json"
SIGNED_BY = "signed_by"
CHECKPOINTS = ("", "float16", "float32")
"""Data types of the weights in the file for other tools; "" for no such file."""

_CANARY = Path(__file__).with_name("canary.py")
_METRICS = ("loss", "loss_baseline", "loss_delta")
# The Evaluator's reasons, by the name of the blessing's property.
REASONS = "reasons"

logger = logging.getLogger(__name__)


class Executor(base_executor.BaseExecutor):
    """Pushes a blessed model."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See `ServingPusher`.

        Raises:
            CorruptCopyError: A file changed while it was copied.
            ServingError: The key for signing releases, or the certificate for pictures, is missing
                or invalid.
            UserError: The canary gave no verdict.
            WeightsError: The file for other tools needs base weights that no longer exist.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        model = artifact_utils.get_single_instance(input_dict["model"])
        blessing = artifact_utils.get_single_instance(input_dict["model_blessing"])
        pushed_model = artifact_utils.get_single_instance(output_dict["pushed_model"])
        if not model_utils.is_model_blessed(blessing):
            _mark_not_pushed(pushed_model, "the model is not blessed")
            return

        key = seals.signing_key(exec_properties["sign_key"], exec_properties["sign_key_env"])
        source = path_utils.serving_model_path(model.uri)
        # Unchanged: a release keeps the manifest of the model, whichever version wrote it.
        content = json.loads(filesystem.read_bytes(os.path.join(source, MODEL_MANIFEST_NAME)))
        manifest = ModelManifest.from_json(content)
        if not exec_properties["publish_captions"] and manifest.prompts_are_captions:
            content["validation"] = {**manifest.validation, "prompts": []}
        facts: dict[str, Any] = {
            "pushed_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "preset": manifest.preset,
            "image_size": manifest.image_size,
            "defaults": manifest.defaults,
            "metrics": _metrics(blessing),
            VERDICT: blessing.get_string_custom_property(VERDICT) or None,
            "reasons": blessing.get_string_custom_property(REASONS).splitlines(),
            "model": {"uri": model.uri, "id": model.id},
            "blessing": {"uri": blessing.uri, "id": blessing.id},
            "dataset": exec_properties["training_dataset"] or None,
            "lineage": self._lineage(input_dict),
            "manifest": content,
        }
        if not exec_properties["publish_captions"]:
            facts[CAPTIONS] = False
        if exec_properties["c2pa_certificate"]:
            facts[C2PA] = marking.signed_with(
                exec_properties["c2pa_certificate"], exec_properties["c2pa_key_env"]
            )
        batch_size = exec_properties["batch_size"]
        in_batches = batch_size > 1
        if in_batches:
            facts[BATCH_SIZE] = batch_size
        latents = artifact_utils.get_single_instance(input_dict["latents"])
        files = single_files(
            source,
            facts,
            checkpoint=exec_properties["checkpoint"],
            captions_of=latents.uri if exec_properties["publish_captions"] else None,
        )
        if files:
            facts[SINGLE_FILES] = {name: file.stored_as for name, file in files.items()}

        def check(staged: str) -> None:
            if exec_properties["canary"]:
                run_canary(staged, manifest.image_size, exec_properties["canary_timeout_seconds"])

        directory = ServingDirectory(exec_properties["push_destination"])
        try:
            warmup = {
                network: warmup_requests(
                    os.path.join(source, network),
                    network,
                    manifest.image_size,
                    in_batches=in_batches,
                )
                for network in networks_in(source)
            }
            release = directory.publish(
                source,
                facts,
                check,
                warmup,
                single_files={name: file.write for name, file in files.items()},
                batching=batching_parameters(batch_size) if in_batches else None,
                key=key,
            )
        except ModelRefusedError as refusal:
            _mark_not_pushed(pushed_model, str(refusal))
            return
        if keep := exec_properties["keep_versions"]:
            for version in directory.prune(keep):
                logger.info("Removed version %d: only the newest %d are kept.", version, keep)
        fileio.makedirs(pushed_model.uri)
        with fileio.open(os.path.join(pushed_model.uri, RELEASE_NAME), "w") as f:
            f.write(json.dumps(release, indent=2, sort_keys=True))
        pushed_model.set_int_custom_property("pushed", 1)
        pushed_model.set_string_custom_property("pushed_destination", directory.root)
        pushed_model.set_string_custom_property("pushed_version", str(release["version"]))
        if key is not None:
            pushed_model.set_string_custom_property(SIGNED_BY, key.identity)
        marked = ""
        if facts[VERDICT] == UNSURE:
            pushed_model.set_string_custom_property(VERDICT, facts[VERDICT])
            marked = ", marked as unsure"
        logger.info("Version %d is in %s%s.", release["version"], directory.root, marked)

    def _lineage(self, inputs: dict[str, list[types.Artifact]]) -> dict[str, Any]:
        """This push in ML Metadata: its run, its execution, and the ids of its inputs."""
        context = self._context
        return {
            "pipeline": context.pipeline_info.id if context and context.pipeline_info else None,
            "pipeline_run": context.pipeline_run_id if context else None,
            "execution_id": context._unique_id if context else None,
            "artifact_ids": {key: [a.id for a in found] for key, found in sorted(inputs.items())},
        }


def run_canary(folder: str, image_size: int, timeout_seconds: int) -> None:
    """Draws a picture with the models in `folder`, in a fresh process.

    Raises:
        ModelRefusedError: The models draw no picture, or a wrong one.
        UserError: The process ended without a verdict, or took too long.
    """
    # On the CPU: this process may hold all of the GPU memory.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, str(_CANARY), folder, str(image_size)]
    try:
        finished = subprocess.run(
            command,
            env=environment,
            timeout=timeout_seconds,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"the canary drew no picture within {timeout_seconds} s; nothing was pushed: "
            "start the run again, or set serving.canary to false"
        ) from None
    last_line = finished.stdout.strip().rpartition("\n")[2]
    try:
        problem = json.loads(last_line)["problem"]
    except (ValueError, KeyError, TypeError):
        said = finished.stderr.strip().rpartition("\n")[2] or "nothing"
        raise UserError(
            f"the canary process ended with status {finished.returncode} without a verdict "
            f"(last line of its log: {said}); nothing was pushed: start "
            "the run again, or set serving.canary to false"
        ) from None
    if problem is not None:
        raise ModelRefusedError(f"the canary refuses the model: {problem}")


def _metrics(blessing: types.Artifact) -> dict[str, float]:
    return {
        name: blessing.get_float_custom_property(name)
        for name in _METRICS
        if blessing.has_custom_property(name)
    }


def _mark_not_pushed(pushed_model: types.Artifact, reason: str) -> None:
    pushed_model.set_int_custom_property("pushed", 0)
    pushed_model.set_string_custom_property("reason", reason)
    logger.warning("Nothing is pushed: %s.", reason)
