"""What is used of KerasCV's and Keras' private parts, and that nobody else uses any."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import pytest
from keras.src.models.functional import Functional

from trainer.networks.seam import compute_as, computing_as

ROOT = Path(__file__).resolve().parents[2]
SEAM = ROOT / "trainer" / "networks" / "seam.py"
# Benchmarks and tests hold ours against KerasCV's, and may import it.
PACKAGES = ("components", "data", "pipeline", "serving", "storage", "trainer")
STABLE_DIFFUSION = "keras_cv.src.models.stable_diffusion"

IMPORTED = {
    f"{STABLE_DIFFUSION}.attention_block": {"AttentionBlock"},
    f"{STABLE_DIFFUSION}.diffusion_model": {
        "CrossAttention", "GEGLU", "ResBlock", "SpatialTransformer", "Upsample",
    },
    f"{STABLE_DIFFUSION}.padded_conv2d": {"PaddedConv2D"},
    f"{STABLE_DIFFUSION}.resnet_block": {"ResnetBlock"},
    f"{STABLE_DIFFUSION}.text_encoder": {"CLIPEmbedding", "CLIPEncoderLayer", "quick_gelu"},
}  # fmt: skip
ATTRIBUTES = {"_flatten_layers": keras.layers.Layer, "_run_through_graph": Functional}

# Names that TensorFlow's and Python's own classes share with Keras' private ones are no use of it.
KERAS_PRIVATE = {
    name
    for owner in (Functional, keras.Sequential, keras.optimizers.Optimizer, keras.Variable)
    for name in dir(owner)
    if name.startswith("_") and not name.startswith("__")
} - {name for owner in (object, type) for name in dir(owner)}


def private_names(path: Path) -> Iterator[tuple[str, int]]:
    """Private parts of KerasCV and Keras that a file uses, with their lines."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module.startswith(("keras_cv", "keras.src")):
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(("keras_cv", "keras.src")):
                    yield alias.name, node.lineno
        elif isinstance(node, ast.Attribute):
            of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if node.attr in KERAS_PRIVATE and not of_self:
                yield node.attr, node.lineno
            if node.attr == "__class__" and isinstance(node.ctx, ast.Store):
                yield node.attr, node.lineno


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in IMPORTED for name in sorted(IMPORTED[module])]
)
def test_keras_cv_has_what_the_seam_imports(module: str, name: str) -> None:
    try:
        found = hasattr(importlib.import_module(module), name)
    except ImportError:
        found = False
    installed = version("keras-cv")
    assert found, f"keras-cv {installed} has no {module}.{name}: mend trainer/networks/seam.py"


@pytest.mark.parametrize(("name", "owner"), ATTRIBUTES.items())
def test_keras_has_what_the_seam_calls(name: str, owner: type) -> None:
    installed = version("keras")
    assert hasattr(owner, name), (
        f"keras {installed}'s {owner.__name__} has no {name}: mend trainer/networks/seam.py"
    )


def test_these_are_all_that_the_seam_uses() -> None:
    imported = {f"{module}.{name}" for module, names in IMPORTED.items() for name in names}
    assert {name for name, _ in private_names(SEAM)} == imported | {*ATTRIBUTES, "__class__"}


def test_nobody_else_uses_private_parts() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if path != SEAM
        for name, line in private_names(path)
    ]
    assert found == [], "belongs into trainer/networks/seam.py"


class _Doubled(keras.layers.Dense):
    def call(self, inputs, training=None):
        return 2 * super().call(inputs, training=training)


class _OwnDense(keras.layers.Dense):
    pass


def test_another_arithmetic_keeps_the_variables_and_ends() -> None:
    inputs = keras.Input((3,))
    layer, other = keras.layers.Dense(2), _OwnDense(2)
    model = keras.Model(inputs, other(layer(inputs)))
    model.set_weights([np.ones_like(w) for w in model.get_weights()])
    x = np.ones((1, 3), np.float32)
    variables = list(model.variables)
    with computing_as([model], {keras.layers.Dense: _Doubled}):
        # 3 + 1, of two columns, doubled; a subclass is left alone: 2 * 8 + 1.
        np.testing.assert_array_equal(model(x), [[17, 17]])
    np.testing.assert_array_equal(model(x), [[9, 9]])
    compute_as(layer, _Doubled)
    np.testing.assert_array_equal(model(x), [[17, 17]])
    assert all(a is b for a, b in zip(variables, model.variables, strict=True))
