"""Trains on latents that are there, outside a pipeline: `python -m pipeline.train --help`.

On a cluster, the same command on every machine; `TF_CONFIG` says which one it is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline import command_line, console
from pipeline import config as settings

_FLAGS: command_line.Flags = {"training": command_line.RUN_FLAGS["training"]}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv`; returns the exit status."""
    parser = command_line.Parser(prog="python -m pipeline.train", description=__doc__)
    command_line.add_flags(parser, _FLAGS)
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings")
    parser.add_argument(
        "--latents", required=True, help="folder that LatentGen wrote, which all machines can read"
    )
    parser.add_argument(
        "--output",
        required=True,
        help="folder for model, logs and checkpoints, which all machines can write to",
    )
    try:
        arguments, flags = command_line.parse(parser, _FLAGS, argv)
        config = settings.resolve_base_weights(settings.load_config(arguments.config, flags))
    except settings.ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console.quiet_environment(verbose=False)
    _train(config, arguments.latents.rstrip("/"), arguments.output.rstrip("/"))
    return 0


def _train(config: settings.RunConfig, latents: str, output: str) -> None:
    import logging

    from tfx.components.trainer.fn_args_utils import FnArgs
    from tfx.utils import json_utils

    from components.diffusion_trainer.executor import with_run_parameters
    from pipeline.pipeline import create_pipeline
    from trainer.run_fn import run_fn

    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    nodes = create_pipeline(
        config,
        pipeline_root=output,
        metadata_path=None,
        serving_dir=f"{output}/serving_model",
        checkpoint_dir=f"{output}/checkpoints",
        dataset_fingerprint="",
    ).components
    [trainer] = [node for node in nodes if node.id == "Trainer"]
    run_fn(
        FnArgs(
            train_files=[f"{latents}/Split-train/*"],
            custom_config=json_utils.loads(
                with_run_parameters(trainer.exec_properties)["custom_config"]
            ),
            serving_model_dir=f"{output}/model/Format-Serving",
            model_run_dir=f"{output}/model_run",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
