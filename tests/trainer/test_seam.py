"""What is used of KerasCV's and Keras' private parts, and that nobody else uses any."""

from __future__ import annotations

import ast
import importlib
import runpy
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


def _kerass() -> list[object]:
    """One object of each class of Keras' that is used here, as it is after its first use."""
    dense, inputs = keras.layers.Dense(2), keras.Input((3,))
    functional = keras.Model(inputs, dense(inputs))
    optimizer = keras.optimizers.AdamW()
    optimizer.build(functional.trainable_variables)
    return [dense, functional, keras.Sequential([dense]), optimizer, dense.kernel]


PRIVATE_MODULES = ("keras_cv", "keras.src")
KERAS_PRIVATE = {
    name
    for used in _kerass()
    for name in dir(used)
    if name.startswith("_") and not name.startswith("__")
}
# Assigned to, these exchange what a layer computes.
ARITHMETIC = {"__class__", "call", "dtype_policy"}
BY_NAME = {"getattr", "setattr", "hasattr", "delattr", "__setattr__", "import_module"}


def private_names(source: bytes | str) -> Iterator[tuple[str, int]]:
    """Private parts of KerasCV and Keras that a module's source uses, with their lines."""
    tree = ast.parse(source)
    # What our classes call their own may have a name that Keras' classes have, too.
    own = {id(use) for node in ast.walk(tree) for use in _own_attributes(node)}
    for node in ast.walk(tree):
        names: list[str] = []
        match node:
            case ast.ImportFrom(module=str(module), names=aliases):
                names = [f"{module}.{alias.name}" for alias in aliases]
            case ast.Import(names=aliases):
                names = [alias.name for alias in aliases]
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), args=arguments):
                if called in BY_NAME:
                    names = [str(a.value) for a in arguments if isinstance(a, ast.Constant)]
            case ast.Attribute(attr=attribute, ctx=context) if id(node) not in own:
                assigned = isinstance(context, ast.Store)
                if assigned or attribute not in ARITHMETIC:
                    names = [attribute]
                if ast.unparse(node) in PRIVATE_MODULES:
                    names = [ast.unparse(node)]
        for name in names:
            if name in KERAS_PRIVATE | ARITHMETIC or name.startswith(PRIVATE_MODULES):
                yield name, node.lineno


def _own_attributes(node: ast.AST) -> Iterator[ast.Attribute]:
    """The places where a class uses, of `self`, what it defines or assigns itself."""
    if not isinstance(node, ast.ClassDef):
        return
    inside = list(ast.walk(node))
    uses = [n for n in inside if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "self"]
    defined = {use.attr for use in uses if isinstance(use.ctx, ast.Store)}
    defined |= {n.name for n in inside if isinstance(n, ast.FunctionDef)}
    defined |= {n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    yield from (use for use in uses if use.attr in defined)


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in IMPORTED for name in sorted(IMPORTED[module])]
)
def test_what_keras_cv_lacks_is_told(
    module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(importlib.import_module(module), name)
    said = rf"keras-cv {version('keras-cv')} lacks .*'{name}'.*: fix "
    with pytest.raises(ImportError, match=said):
        runpy.run_path(str(SEAM))


@pytest.mark.parametrize(("name", "owner"), ATTRIBUTES.items())
def test_keras_has_what_the_seam_calls(name: str, owner: type) -> None:
    installed = version("keras")
    assert hasattr(owner, name), (
        f"keras {installed}'s {owner.__name__} has no {name}: fix trainer/networks/seam.py"
    )


def test_these_are_all_that_the_seam_uses() -> None:
    imported = {f"{module}.{name}" for module, names in IMPORTED.items() for name in names}
    assert {name for name, _ in private_names(SEAM.read_bytes())} == imported | {
        *ATTRIBUTES,
        "__class__",
        "dtype_policy",
    }


def test_nobody_else_uses_private_parts() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if path != SEAM
        for name, line in private_names(path.read_bytes())
    ]
    assert found == [], "belongs into trainer/networks/seam.py"


@pytest.mark.parametrize(
    "use",
    [
        "from keras_cv.src.models import stable_diffusion",
        "import keras_cv",
        "keras.src.utils.tracking",
        "importlib.import_module('keras_cv.models')",
        "getattr(model, '_flatten_layers')()",
        "model._operations",
        "layer._inbound_nodes",
        "variable._value",
        "layer.call = twice",
        "object.__setattr__(layer, 'call', twice)",
        "setattr(layer, 'dtype_policy', policy)",
        "layer.__class__ = Doubled",
        "class Twice(Dense):\n    def call(self, x):\n        return self._layers",
    ],
)
def test_no_use_of_private_parts_is_overlooked(use: str) -> None:
    assert [*private_names(use)] != []


@pytest.mark.parametrize(
    "use",
    [
        "layer.call(x)",
        "self._models.call(x)",
        "class Mine:\n    def __init__(self):\n        self._layers = []\n"
        "    def all(self):\n        return self._layers",
        "class Twice(Dense):\n    def call(self, x):\n        return 2 * super().call(x)",
        "keras.config.set_dtype_policy(layer.dtype_policy)",
    ],
)
def test_what_is_public_or_our_own_is_no_use_of_private_parts(use: str) -> None:
    assert [*private_names(use)] == []


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
