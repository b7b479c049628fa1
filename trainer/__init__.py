"""Stable Diffusion fine-tuning: the model and its training, usable without TFX.

Only `trainer.run_fn` knows TFX.
"""

import os

# Importing tensorflow_transform (any TFX import does) switches TensorFlow to Keras 2 where this
# variable is unset, and KerasCV then builds tf_keras models. Everything here is Keras 3.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "0")
