"""How TensorFlow Serving draws requests together, for each of a release's models.

With `--enable_batching --enable_per_model_batching_parameters` it reads `batching_params.pbtxt`
beside a SavedModel, and draws requests to others one by one. How many threads there are is the
server's own: `serving/deploy/kubernetes/batching_parameters.txt`.
"""

from __future__ import annotations

# A picture takes tenths of a second or more; who asks at the same moment does so within less.
_WAIT_MICROSECONDS = 10_000
# Of one request, which is divided; in all, those that wait beside the batch that is drawn.
_MOST_ROWS = 1024
_MOST_WAITING = 256


def batching_parameters(batch_size: int) -> bytes:
    """A `BatchingParameters` of TensorFlow Serving, as text.

    There are no `allowed_batch_sizes`: what a batch would be filled up with is drawn, too.

    Args:
        batch_size: The most pictures that are drawn together.
    """
    text = f"""\
max_batch_size {{ value: {_MOST_ROWS} }}
enable_large_batch_splitting {{ value: true }}
max_execution_batch_size {{ value: {batch_size} }}
batch_timeout_micros {{ value: {_WAIT_MICROSECONDS} }}
max_enqueued_batches {{ value: {_MOST_WAITING} }}
"""
    return text.encode()
