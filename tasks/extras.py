"""The optional packages of `raptr_jax[data]`, imported on demand."""

import importlib
import os
from types import ModuleType


def require(name: str) -> ModuleType:
  """Imports an optional package, or says how to install it.

  Args:
    name: `seqio`, `tensorflow`, `tensorflow_datasets`, `tokenizers`, `pyarrow`,
      `apache_beam`, or a module of one of them.

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
    how = "pip install 'raptr_jax[data]'"
    if name.startswith("apache_beam"):
      how = "it has an environment of its own, see tasks/prepared/beam.py"
    raise ModuleNotFoundError(
      f"{name} is needed here, but {error.name} is not installed: {how}",
      name=error.name,
    ) from error
  return module


def _leave_gpu_alone() -> None:
  """Hides GPUs from TensorFlow, which would claim the memory JAX needs."""
  import tensorflow as tf

  tf.config.set_visible_devices([], "GPU")
