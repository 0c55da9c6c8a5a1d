"""The one place that imports TensorFlow: when it is needed, quietly, and without the GPUs."""

import os
from typing import Any


def import_tensorflow() -> Any:
    """Imports TensorFlow to read data with.

    Returns:
        The module.

    Raises:
        ImportError: it is not installed, or does not work here.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # else the import prints advice on CPUs,
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # and on rounding; no arithmetic here
    import tensorflow as tf

    try:
        tf.config.set_visible_devices([], "GPU")  # by default it would take all their memory
    except RuntimeError:
        pass  # this process has used TensorFlow's GPUs before; they cannot be hidden any more
    return tf
