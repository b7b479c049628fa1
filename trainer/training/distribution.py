"""Training on several devices: `tf.distribute`, and what replicas need to stay equal."""

from __future__ import annotations

import json
import logging
import os

import tensorflow as tf

from storage.user_errors import UserError
from trainer.training_config import Devices

logger = logging.getLogger(__name__)


def training_strategy(devices: Devices) -> tf.distribute.Strategy | None:
    """How to train on the available devices.

    Reads `TF_CONFIG`. If it names several workers, call this before TensorFlow does anything else,
    because it cannot join them later.

    Args:
        devices: `all` or `one`.

    Returns:
        `MultiWorkerMirroredStrategy` if `TF_CONFIG` lists several workers, `MirroredStrategy` if
        there are several GPUs, otherwise `None` for one device.

    Raises:
        UserError: TensorFlow could not read `TF_CONFIG`.
    """
    if devices == "one":
        return None
    text = os.environ.get("TF_CONFIG", "{}")
    try:
        cluster = json.loads(text).get("cluster", {})
        workers = sum(len(cluster.get(kind, ())) for kind in ("chief", "worker"))
    except (ValueError, AttributeError, TypeError):
        raise UserError(
            f"the environment variable TF_CONFIG is {text[:200]!r}: it must be JSON with a cluster "
            "and a task, as TensorFlow documents it, or unset"
        ) from None
    if workers > 1:
        logger.info("Training with %d workers, as TF_CONFIG says.", workers)
        return tf.distribute.MultiWorkerMirroredStrategy()
    gpus = tf.config.list_logical_devices("GPU")
    if len(gpus) > 1:
        logger.info("Training on %d GPUs.", len(gpus))
        return tf.distribute.MirroredStrategy()
    return None


def worker_count(strategy: tf.distribute.Strategy | None) -> int:
    """Number of processes that train together."""
    resolver = strategy.cluster_resolver if strategy else None
    if resolver is None or not resolver.task_type:
        return 1
    cluster = resolver.cluster_spec()
    return sum(cluster.num_tasks(kind) for kind in cluster.jobs if kind in ("chief", "worker"))


def is_chief(strategy: tf.distribute.Strategy | None) -> bool:
    """Whether this process is the one that writes."""
    resolver = strategy.cluster_resolver if strategy else None
    if resolver is None or not resolver.task_type:
        return True
    if resolver.task_type == "chief":
        return True
    has_chief = "chief" in resolver.cluster_spec().jobs
    return not has_chief and resolver.task_type == "worker" and resolver.task_id == 0


def wait_for_all(strategy: tf.distribute.Strategy | None) -> None:
    """Returns when every worker has called this."""
    if worker_count(strategy) == 1 or strategy is None:
        return

    @tf.function(autograph=False)
    def meet() -> tf.Tensor:
        return strategy.run(
            lambda: tf.distribute.get_replica_context().all_reduce(
                tf.distribute.ReduceOp.SUM, tf.constant(1.0)
            )
        )

    meet()


def assign_here(variable: tf.Variable, value: tf.Tensor) -> None:
    """Assigns a value in the replica that calls this.

    The `assign` of a mirrored variable refuses a value there, because replicas could differ. Here
    all replicas compute the same value, from gradients summed over all of them.
    """
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
