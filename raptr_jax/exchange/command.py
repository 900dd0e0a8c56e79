"""The run modes `import` and `export`."""

import ast
from collections.abc import Sequence
from typing import Any

from raptr_jax.configuration.errors import ConfigurationError
from raptr_jax.exchange.exported_run import export_run
from raptr_jax.exchange.imported_run import import_run

MODEL_DIR = "--gin.MODEL_DIR"
LAYERS = "--gin.exchange.layers"  # Of the path to export; None for all.


def exchange(mode: str, hf_dir: str, overrides: Sequence[str]) -> str:
  """Imports or exports; returns a line about it.

  Args:
    mode: "import" or "export".
    hf_dir: the folder of Hugging Face.
    overrides: `--gin.MODEL_DIR=...` and, to export, `--gin.exchange.layers=...`.

  Raises:
    ConfigurationError: MODEL_DIR is missing, a value is no literal, or there
      are others.
    ExchangeError: see `import_run` and `export_run`.
    OSError: likewise.
  """
  values = {
    name: value for name, _, value in (o.partition("=") for o in overrides)
  }
  known = {"import": {MODEL_DIR}, "export": {MODEL_DIR, LAYERS}}[mode]
  if MODEL_DIR not in values or set(values) - known:
    raise ConfigurationError(
      f"--run_mode={mode} needs {MODEL_DIR}=\"'runs/x'\", and takes only"
      f" {' and '.join(sorted(known))}."
    )
  model_dir = _literal(MODEL_DIR, values[MODEL_DIR])
  if not isinstance(model_dir, str):
    raise ConfigurationError(
      f"{MODEL_DIR}={values[MODEL_DIR]}: expected a folder in quotes of its own:"
      f" {MODEL_DIR}=\"'runs/x'\"."
    )
  if mode == "import":
    return import_run(hf_dir, model_dir)
  return export_run(model_dir, hf_dir, _literal(LAYERS, values.get(LAYERS)))


def _literal(name: str, text: str | None) -> Any:
  """The value of a flag; None if it is not set."""
  if text is None:
    return None
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    example = {MODEL_DIR: "\"'runs/x'\"", LAYERS: "6"}[name]
    raise ConfigurationError(
      f"{name}={text}: expected a literal, such as {name}={example}."
    ) from None
