"""Other classes for layers that are there already, while a network is traced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import keras


@contextlib.contextmanager
def lent_classes(
    model: keras.Model, classes: Mapping[type[keras.layers.Layer], type[keras.layers.Layer]]
) -> Iterator[None]:
    """Within this, the model's layers of each class (not of its subclasses) are of its value's.

    Args:
        model: Its layers keep their variables.
        classes: From a class to a subclass that only computes differently.
    """
    found = [(layer, type(layer)) for layer in model._flatten_layers() if type(layer) in classes]
    for layer, own in found:
        layer.__class__ = classes[own]
    try:
        yield
    finally:
        for layer, own in found:
            layer.__class__ = own
