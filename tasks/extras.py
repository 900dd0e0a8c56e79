"""The optional packages of `raptr_jax[data]`, imported when they are needed."""

import importlib
import os
from types import ModuleType


def require(name: str) -> ModuleType:
  """Imports a package of the optional extra, or says how to install it.

  Args:
    name: `seqio`, `tensorflow`, `tensorflow_datasets` or `tokenizers`.

  Raises:
    ModuleNotFoundError: the package is not installed; the message names the
      extra that brings it.
  """
  # Start-up notes of TensorFlow's C++ side; an explicit choice wins.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  try:
    module = importlib.import_module(name)
    if name in ("seqio", "tensorflow", "tensorflow_datasets"):
      _leave_gpu_alone()
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f"{name} is needed here and {error.name} is not installed: "
      "pip install 'raptr_jax[data]'",
      name=error.name,
    ) from error
  return module


def _leave_gpu_alone() -> None:
  """Hides GPUs from TensorFlow: it would claim the memory JAX trains in."""
  import tensorflow as tf

  tf.config.set_visible_devices([], "GPU")
