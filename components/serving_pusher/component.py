"""The ServingPusher component."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.orchestration.data_types import RuntimeParameter
from tfx.types import channel_utils, component_spec, standard_artifacts

from components.code_version import code_version
from components.serving_pusher import executor
from storage.addresses import check_address


class ServingPusherSpec(component_spec.ComponentSpec):
    """Inputs, outputs and settings of ServingPusher."""

    PARAMETERS = {
        "push_destination": component_spec.ExecutionParameter(type=str),
        "keep_versions": component_spec.ExecutionParameter(type=int),
        # Vertex does not support booleans.
        "canary": component_spec.ExecutionParameter(type=int),
        "canary_timeout_seconds": component_spec.ExecutionParameter(type=int),
        "checkpoint": component_spec.ExecutionParameter(type=str),
        "batch_size": component_spec.ExecutionParameter(type=int),
        "publish_captions": component_spec.ExecutionParameter(type=int),
        "sign_key": component_spec.ExecutionParameter(type=str),
        "sign_key_env": component_spec.ExecutionParameter(type=str),
        "c2pa_certificate": component_spec.ExecutionParameter(type=str),
        "c2pa_key_env": component_spec.ExecutionParameter(type=str),
        "settings": component_spec.ExecutionParameter(type=str),
        "training_dataset": component_spec.ExecutionParameter(type=str),
        "code_version": component_spec.ExecutionParameter(type=str),
    }
    INPUTS = {
        "model": component_spec.ChannelParameter(type=standard_artifacts.Model),
        "model_blessing": component_spec.ChannelParameter(type=standard_artifacts.ModelBlessing),
        "latents": component_spec.ChannelParameter(type=standard_artifacts.Examples),
    }
    OUTPUTS = {"pushed_model": component_spec.ChannelParameter(type=standard_artifacts.PushedModel)}


class ServingPusher(base_component.BaseComponent):
    """Pushes the SavedModels of a blessed model, three or four, as one version.

    A version exists if and only if `<push_destination>/releases/<version>.json` exists; it is
    served once `models.config` names it. See `serving.serving_directory` for the layout.

    Outputs:
      pushed_model: `standard_artifacts.PushedModel`, with a copy of the release file as
        `release.json` if something was pushed. Custom properties: `pushed` (1 or 0) and either
        `pushed_destination` and `pushed_version` (text), or `reason` (why nothing was pushed); and
        for a signed release `signed_by`, the SHA-256 of the public key.
    """

    SPEC_CLASS = ServingPusherSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        model: types.BaseChannel,
        model_blessing: types.BaseChannel,
        latents: types.BaseChannel,
        push_destination: str,
        *,
        keep_versions: int = 0,
        canary: bool = True,
        canary_timeout_seconds: int = 900,
        checkpoint: str = "",
        batch_size: int = 1,
        publish_captions: bool = True,
        sign_key: str = "",
        sign_key_env: str = "",
        c2pa_certificate: str = "",
        c2pa_key_env: str = "",
        settings: str = "",
        training_dataset: str | RuntimeParameter = "",
    ) -> None:
        """Makes the component.

        Args:
            model: Output of the Trainer.
            model_blessing: The Evaluator's blessing; its losses are written into the release.
            latents: What the model was trained on; the word counts of their captions go into the
                file with its adapters.
            push_destination: The serving directory, local or remote. Simultaneous pushes to it
                wait for each other.
            keep_versions: Number of newest versions to keep, 0 for all.
            canary: Whether to push only models that draw a picture in a fresh process.
            canary_timeout_seconds: Seconds after which a canary without a verdict is an error.
            checkpoint: Data type of the weights in the single file for other tools, float16 or
                float32; "" for no such file. Weights that training left unchanged come from the
                base weights.
            batch_size: Maximum number of pictures from simultaneous requests that TensorFlow
                Serving draws together; 1 draws each by itself.
            publish_captions: Whether a release may contain captions or words of them.
            sign_key: File with the private key that releases are signed with; "" for none.
            sign_key_env: Alternatively, the name of the environment variable that holds the key; ""
                for none.
            c2pa_certificate: File with the certificate chain, PEM, that pictures of the release are
                signed with; it is copied into the release; "" for none.
            c2pa_key_env: Name of the environment variable that holds the certificate's key on
                machines that draw.
            settings: All settings of the run, as JSON, to reproduce it. Nothing else depends on
                them.
            training_dataset: Path or address of the dataset, on the hub with its commit, to record
                in the release; "" for none. Nothing else depends on it, so that the same pictures
                at another path push nothing again.

        Raises:
            ValueError: A setting is impossible, or the address contains a secret.
        """
        check_address(push_destination)
        check_address(sign_key)
        check_address(c2pa_certificate)
        if sign_key and sign_key_env:
            raise ValueError("sign_key and sign_key_env both name a key: give only one of them")
        if bool(c2pa_certificate) != bool(c2pa_key_env):
            raise ValueError("c2pa_certificate and c2pa_key_env belong together: give both")
        if not push_destination:
            raise ValueError("push_destination is empty: give the path of the serving directory")
        if keep_versions < 0:
            raise ValueError(f"keep_versions {keep_versions} is impossible: it must be 0 or more")
        if canary_timeout_seconds < 1:
            raise ValueError(
                f"canary_timeout_seconds {canary_timeout_seconds} is impossible: it must be 1 or "
                "more"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is impossible: it must be 1 or more")
        if checkpoint not in executor.CHECKPOINTS:
            allowed = ", ".join(map(repr, executor.CHECKPOINTS))
            raise ValueError(
                f"checkpoint {checkpoint!r} is impossible: it must be one of {allowed}"
            )
        super().__init__(
            ServingPusherSpec(
                push_destination=push_destination,
                keep_versions=keep_versions,
                canary=int(canary),
                canary_timeout_seconds=canary_timeout_seconds,
                checkpoint=checkpoint,
                batch_size=batch_size,
                publish_captions=int(publish_captions),
                sign_key=sign_key,
                sign_key_env=sign_key_env,
                c2pa_certificate=c2pa_certificate,
                c2pa_key_env=c2pa_key_env,
                settings=settings,
                training_dataset=training_dataset,
                code_version=code_version(executor.__name__),
                model=model,
                model_blessing=model_blessing,
                latents=latents,
                pushed_model=channel_utils.as_channel([standard_artifacts.PushedModel()]),
            )
        )
