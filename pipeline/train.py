"""Trains on existing latents, outside a pipeline: `python -m pipeline.train --help`.

On a cluster, run the same command on every machine; `TF_CONFIG` says which machine it is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline import command_line, console, failures, interruption, starting
from pipeline.config import ConfigError, RunConfig, load_config, resolve_base_weights
from pipeline.trainer_settings import trainer_settings
from storage.addresses import check_address
from trainer.training.interruption import TrainingInterruptedError
from trainer.training_config import CLASS_LATENTS
from trainer.weights.base_model import BaseModel

_FLAGS: command_line.Flags = {"training": command_line.RUN_FLAGS["training"]}


def command() -> command_line.Parser:
    """The parser of the command line."""
    parser = command_line.Parser(
        "pipeline.train",
        __doc__ or "",
        [
            (
                ("--latents", "gs://bucket/latents", "--output", "gs://bucket/model"),
                "with the settings of pipeline/default.yaml; the same on every machine",
            )
        ],
    )
    command_line.add_flags(parser, _FLAGS)
    command_line.add_config_flag(parser)
    parser.add_argument(
        "--latents", required=True, help="folder that LatentGen wrote, which all machines can read"
    )
    parser.add_argument(
        "--class-latents",
        metavar="FOLDER",
        help="folder with the latents of class pictures, if prior.caption says what is on them",
    )
    parser.add_argument(
        "--output",
        required=True,
        help="folder for model, logs and checkpoints, which all machines can write to",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv`; returns the exit status."""
    try:
        arguments, flags = command_line.parse(command(), _FLAGS, argv)
        folders = (arguments.latents, arguments.output, arguments.class_latents or "")
        for address in folders:
            check_address(address)
        config, base_model = resolve_base_weights(load_config(arguments.config, flags))
        console.quiet_environment(verbose=False)
        _train(config, base_model, *(folder.rstrip("/") for folder in folders))
    except TrainingInterruptedError as stop:
        print(f"Interrupted: {stop}.", file=sys.stderr)
        return interruption.exit_status(stop.signal)
    except Exception as error:
        explanation = failures.explanation(error)
        if explanation is None:
            raise
        print(f"error: {explanation}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def _train(
    config: RunConfig, base_model: BaseModel, latents: str, output: str, class_latents: str
) -> None:
    import logging

    from tfx.components.trainer.fn_args_utils import FnArgs

    from trainer.run_fn import run_fn

    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    start = starting.find_start_outside(config, base_model)
    settings = trainer_settings(config, base_model, f"{output}/checkpoints")
    run_fn(
        FnArgs(
            train_files=[f"{latents}/Split-train/*"],
            custom_config=settings.to_json(),
            hyperparameters={
                **settings.training.run_parameters,
                **({CLASS_LATENTS: class_latents} if class_latents else {}),
            },
            # None is the default.
            base_model=start,  # type: ignore[arg-type]
            serving_model_dir=f"{output}/model/Format-Serving",
            model_run_dir=f"{output}/model_run",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
