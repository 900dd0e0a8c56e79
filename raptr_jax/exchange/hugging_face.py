"""Folders of Hugging Face, with config.json and safetensors, in and out.

  model, params = read_model("downloads/bert-base-uncased")
  write_model("exports/mine", model, params)

Parameters are read and written in float32, whatever type a folder has them in.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from raptr_jax.contracts import Model, Params
from raptr_jax.exchange.bert import BERT, PresentNames, with_pooler
from raptr_jax.exchange.family import Family, Fields
from raptr_jax.exchange.llama import LLAMA
from raptr_jax.exchange.safetensors_files import (
  SHARD_BYTES,
  SafetensorsFolder,
  write_safetensors,
)
from raptr_jax.exchange.t5 import T5
from raptr_jax.exchange.tensor_map import (
  ExchangeError,
  Tensors,
  only_rows,
  params_from,
  tensors_from,
)
from raptr_jax.tasks import files

FAMILIES = (BERT, T5, LLAMA)
CONFIG = "config.json"


def read_model(folder: str | os.PathLike[str]) -> tuple[Model, Params]:
  """Our model of a folder, and its parameters as NumPy arrays.

  Raises:
    ExchangeError: the folder is of another architecture, lacks something, is
      damaged, or its tensors do not have the sizes in its config.json.
  """
  path = Path(folder)
  fields = _read_fields(path)
  family = _family(path, fields)
  try:
    tensors = SafetensorsFolder(path)
    model = family.model(fields)
    if family is BERT:
      model = with_pooler(model, PresentNames(tensors))
    params = read_tensors(model, tensors)
  except ExchangeError as error:
    raise ExchangeError(f"{path}: {error}") from error
  return model, params


def read_tensors(model: Model, tensors: Tensors) -> Params:
  """Parameters of a model of ours from tensors by name, as NumPy arrays.

  Names are those of Hugging Face, or of the original BERT.

  Raises:
    ExchangeError: the model is of no family, or the tensors are not its own.
  """
  family = _family_of(model)
  family.fields(model)  # Raises for what Hugging Face does not have.
  if family is BERT:
    tensors = PresentNames(tensors)
  ignored = [
    name for name in tensors if any(fnmatch(name, p) for p in family.ignored)
  ]
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
  entries = list(family.entries(model))
  return params_from(
    tensors, entries, shapes, ignored=ignored, tied=family.tied
  )


def write_model(
  folder: str | os.PathLike[str],
  model: Model,
  params: Params,
  *,
  layers: Mapping[str, Sequence[int]] | None = None,
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes a folder from which `transformers` loads the same model.

  Args:
    folder: that does not exist yet.
    model: of one of the families.
    params: its parameters.
    layers: numbers of the layers to write of each stack, ascending, counted
      from 0: the model of a path. None for all.
    shard_bytes: of tensors in a file, at most.

  Raises:
    ExchangeError: Hugging Face has no such model.
    FileExistsError: the folder exists.
  """
  model, params = exportable(model, params, layers or {})
  with new_folder(Path(folder)) as partial:
    write_files(partial, model, params, shard_bytes=shard_bytes)


def exportable(
  model: Any, params: Params, layers: Mapping[str, Sequence[int]]
) -> tuple[Any, Params]:
  """The model of some layers, if Hugging Face has its like.

  Args:
    model: of one of the families.
    params: its parameters.
    layers: see `write_model`; stacks that are not named have all of theirs.

  Raises:
    ExchangeError: Hugging Face has no such model, or a layer does not exist.
  """
  family = _family_of(model)
  family.fields(model)  # Raises if a variant is only ours.
  for stack, rows in layers.items():
    model, params = _shortened(family, model, params, stack, rows)
  return model, params


def write_files(
  folder: Path,
  model: Any,
  params: Params,
  *,
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes config.json and safetensors into a folder that exists."""
  family = _family_of(model)
  fields = family.fields(model)
  files.write_json(folder / CONFIG, fields | {"torch_dtype": "float32"})
  tensors = tensors_from(params, list(family.entries(model)))
  write_safetensors(folder, tensors, shard_bytes=shard_bytes)


def _read_fields(folder: Path) -> Fields:
  """The config.json of a folder."""
  path = folder / CONFIG
  try:
    fields = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise ExchangeError(
      f"{folder} has no {CONFIG}: expected a folder of Hugging Face"
    ) from None
  except (RecursionError, ValueError) as error:
    raise ExchangeError(f"{path} is damaged ({error})") from error
  if not isinstance(fields, dict):
    raise ExchangeError(f"{path} is damaged, expected fields of a model")
  return fields


def _family(folder: Path, fields: Fields) -> Family:
  """The family that a config.json names."""
  named = fields.get("architectures") or []
  for family in FAMILIES:
    if set(named) & set(family.architectures):
      return family
  known = [name for family in FAMILIES for name in family.architectures]
  raise ExchangeError(
    f"{folder / CONFIG} has architectures = {named}, expected one of {known}"
  )


def _family_of(model: Any) -> Family:
  """The family of a model of ours."""
  for family in FAMILIES:
    if type(model) is family.kind and model == family.kind(model.config):
      return family
  raise ExchangeError(
    f"{type(model).__name__}, expected one of"
    f" {[family.kind.__name__ for family in FAMILIES]} with their own blocks:"
    " Hugging Face has no others of ours"
  )


def _shortened(
  family: Family,
  model: Any,
  params: Params,
  stack: str,
  rows: Sequence[int],
) -> tuple[Any, Params]:
  """The model of some layers of a stack."""
  depths = dict(model.stacks)
  if stack not in depths:
    raise ExchangeError(f"layers of {stack!r}, expected one of {list(depths)}")
  if not rows or sorted({*rows} & {*range(depths[stack])}) != list(rows):
    raise ExchangeError(
      f"layers of {stack} = {list(rows)}, expected some of 0 to"
      f" {depths[stack] - 1}, ascending"
    )
  config = dataclasses.replace(
    model.config, **{family.depths[stack]: len(rows)}
  )
  return family.kind(config), only_rows(params, stack, rows)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
  """A folder beside it that becomes it, unless the block fails."""
  if folder.exists():
    raise FileExistsError(f"{folder} exists: name a folder that does not")
  partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
  partial.mkdir(parents=True)
  try:
    yield partial
    partial.rename(folder)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
