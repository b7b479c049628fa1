# One image for every step of the pipeline on Vertex AI, for the workers of a training job on several
# machines, and for Dataflow. About 8 GB, of which CUDA's libraries are 4.4 GB and TensorFlow 1.9 GB.

# The program that starts Beam's workers on Dataflow; must have the version in image.lock.
FROM apache/beam_python3.13_sdk:2.77.0 AS beam

# Compiles bytecode once: every task of a run starts from the image, and would otherwise compile
# eight thousand modules of TensorFlow and TFX itself.
FROM python:3.13-slim-trixie AS packages
COPY .ci/uv.txt pipeline/vertex/image.lock /build/
RUN python -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-cache-dir --require-hashes --requirement /build/uv.txt \
    && python -m venv --without-pip /opt/venv \
    && /opt/uv/bin/uv pip sync --no-cache --compile-bytecode --link-mode copy \
        --python /opt/venv/bin/python --require-hashes /build/image.lock

FROM python:3.13-slim-trixie
COPY --from=beam /opt/apache/beam /opt/apache/beam
COPY --from=packages /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:/usr/local/nvidia/bin:${PATH} \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TF_USE_LEGACY_KERAS=0 \
    TF_ENABLE_ONEDNN_OPTS=1
# TensorFlow 2.21 finds the CUDA libraries of its own extra by itself, except cuSOLVER, without which
# it uses no GPU. Vertex puts the driver's libraries into /usr/local/nvidia.
ENV LD_LIBRARY_PATH=/opt/venv/lib/python3.13/site-packages/nvidia/cusolver/lib:/usr/local/nvidia/lib64
WORKDIR /app
COPY components components
COPY data data
COPY pipeline pipeline
COPY serving serving
COPY storage storage
COPY trainer trainer
# For runs outside Vertex: docs/watch.md.
COPY runner_local.py ./
RUN useradd --create-home --uid 1000 runner
USER 1000
# Only for Dataflow. A task of a pipeline and a worker of a training job bring their own command,
# `python -m tfx...`, which replaces it.
ENTRYPOINT ["/opt/apache/beam/boot"]
