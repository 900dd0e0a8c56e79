"""The optional packages of `raptr_jax[data]`, imported on demand."""

import importlib
import os
from types import ModuleType


def require(name: str) -> ModuleType:
  """Imports an optional package, or says how to install it.

  Args:
    name: `seqio`, `tensorflow`, `tensorflow_datasets`, `tokenizers`, `pyarrow`
      or a module of it.

  Raises:
    ModuleNotFoundError: it is not installed; the message names the extra.
  """
  # Quietens TensorFlow's C++ start-up, unless the user has set a level.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  try:
    module = importlib.import_module(name)
    if name in ("seqio", "tensorflow", "tensorflow_datasets"):
      _leave_gpu_alone()
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f"{name} is needed here, but {error.name} is not installed: "
      "pip install 'raptr_jax[data]'",
      name=error.name,
    ) from error
  return module


def _leave_gpu_alone() -> None:
  """Hides GPUs from TensorFlow, which would claim the memory JAX needs."""
  import tensorflow as tf

  tf.config.set_visible_devices([], "GPU")
