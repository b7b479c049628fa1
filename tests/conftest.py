"""Settings that every test process needs before TensorFlow or TFX is imported."""

import os

# TFX's imports would switch Keras to version 2 where this is unset.
os.environ["TF_USE_LEGACY_KERAS"] = "0"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# As the runners set it: which arithmetic is used must not depend on the machine.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
