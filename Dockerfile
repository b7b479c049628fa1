# One image for every step of the pipeline on Vertex AI, for the workers of a training job of several
# machines, and for Dataflow. About 6.3 GB, of which CUDA's libraries are 2.9 GB and TensorFlow 1.7 GB.

# The program that starts Beam's workers on Dataflow; of the version in image.lock.
FROM apache/beam_python3.10_sdk:2.65.0 AS beam

FROM python:3.10-slim-bookworm AS packages
# Some packages come as source with parts in C and C++. No compiler reaches the image.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY .ci/uv.txt pipeline/vertex/image.lock /build/
RUN python -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-cache-dir --require-hashes --requirement /build/uv.txt \
    && python -m venv --without-pip /opt/venv \
    && /opt/uv/bin/uv pip sync --no-cache --link-mode copy --python /opt/venv/bin/python \
        --require-hashes /build/image.lock

FROM python:3.10-slim-bookworm
COPY --from=beam /opt/apache/beam /opt/apache/beam
COPY --from=packages /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:/usr/local/nvidia/bin:${PATH} \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TF_USE_LEGACY_KERAS=0 \
    TF_ENABLE_ONEDNN_OPTS=1
# TensorFlow 2.16 does not find the CUDA libraries of its own extra by itself. The driver's are put
# into /usr/local/nvidia by Vertex.
ENV CUDA=/opt/venv/lib/python3.10/site-packages/nvidia
ENV LD_LIBRARY_PATH=${CUDA}/cublas/lib:${CUDA}/cuda_cupti/lib:${CUDA}/cuda_nvrtc/lib:${CUDA}/cuda_runtime/lib:${CUDA}/cudnn/lib:${CUDA}/cufft/lib:${CUDA}/curand/lib:${CUDA}/cusolver/lib:${CUDA}/cusparse/lib:${CUDA}/nccl/lib:${CUDA}/nvjitlink/lib:/usr/local/nvidia/lib64 \
    XLA_FLAGS=--xla_gpu_cuda_data_dir=${CUDA}/cuda_nvcc
WORKDIR /app
COPY components components
COPY data data
COPY pipeline pipeline
COPY serving serving
COPY trainer trainer
RUN useradd --create-home --uid 1000 runner
USER 1000
# For Dataflow alone. A task of a pipeline and a worker of a training job bring their own command,
# `python -m tfx...`, which takes its place.
ENTRYPOINT ["/opt/apache/beam/boot"]
