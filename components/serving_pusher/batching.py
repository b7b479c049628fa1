"""How TensorFlow Serving batches requests, for each model of a release.

With `--enable_batching --enable_per_model_batching_parameters` it reads `batching_params.pbtxt`
beside a SavedModel, and draws requests to other models one by one. The number of threads is a
setting of the server: `serving/deploy/kubernetes/batching_parameters.txt`.
"""

from __future__ import annotations

# A picture takes tenths of a second or more; simultaneous requests arrive within less.
_WAIT_MICROSECONDS = 10_000
# Most rows of one request, which is split; most batches that wait while one is drawn.
_MOST_ROWS = 1024
_MOST_WAITING = 256


def batching_parameters(batch_size: int) -> bytes:
    """`BatchingParameters` of TensorFlow Serving, as text.

    There are no `allowed_batch_sizes`, because the padding of a batch would be drawn, too.

    Args:
        batch_size: Maximum number of pictures to draw together.
    """
    text = f"""\
max_batch_size {{ value: {_MOST_ROWS} }}
enable_large_batch_splitting {{ value: true }}
max_execution_batch_size {{ value: {batch_size} }}
batch_timeout_micros {{ value: {_WAIT_MICROSECONDS} }}
max_enqueued_batches {{ value: {_MOST_WAITING} }}
"""
    return text.encode()
