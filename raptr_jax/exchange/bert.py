"""BERT: `BertForMaskedLM` of Hugging Face, and the original's names."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from raptr_jax.contracts import Model
from raptr_jax.exchange.family import (
  Family,
  Fields,
  activation,
  activation_name,
  expect,
  number,
  size,
)
from raptr_jax.exchange.tensor_map import (
  Entry,
  ExchangeError,
  matrix,
  vectors,
)
from raptr_jax.models.bert import BertConfig, BertMaskedLM

LAYERS = "stack/layers"
HEAD = "cls.predictions"
POOLER = "bert.pooler.dense"


def _model(fields: Fields) -> Model:
  expect(fields, position_embedding_type="absolute", is_decoder=False)
  return BertMaskedLM(
    BertConfig(
      vocab_size=size(fields, "vocab_size"),
      num_layers=size(fields, "num_hidden_layers"),
      embed_dim=size(fields, "hidden_size"),
      num_heads=size(fields, "num_attention_heads"),
      mlp_dim=size(fields, "intermediate_size"),
      max_length=size(fields, "max_position_embeddings", 512),
      num_token_types=size(fields, "type_vocab_size", 2),
      activation=activation(fields, "hidden_act", "gelu"),
      layer_norm_epsilon=number(fields, "layer_norm_eps", 1e-12),
      dropout_rate=number(fields, "hidden_dropout_prob", 0.1),
      attention_dropout_rate=number(
        fields, "attention_probs_dropout_prob", 0.1
      ),
      init_stddev=number(fields, "initializer_range", 0.02),
      norm="post",
    )
  )


def with_pooler(model: Any, tensors: Mapping[str, np.ndarray]) -> BertMaskedLM:
  """The model with a pooler if there are tensors of one, to be fine-tuned."""
  config = dataclasses.replace(
    model.config, pooler=f"{POOLER}.weight" in tensors
  )
  return BertMaskedLM(config)


def _fields(model: BertMaskedLM) -> dict[str, Any]:
  config = model.config
  if config.norm != "post":
    raise ExchangeError(
      f"bert.BertConfig.norm = {config.norm!r}, but Hugging Face's BERT has"
      " 'post': a model that is to become one is trained with that"
    )
  return {
    "architectures": ["BertForMaskedLM"],
    "model_type": "bert",
    "vocab_size": config.vocab_size,
    "hidden_size": config.embed_dim,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "intermediate_size": config.mlp_width,
    "max_position_embeddings": config.max_length,
    "type_vocab_size": config.num_token_types,
    "hidden_act": activation_name(config.activation),
    "layer_norm_eps": config.layer_norm_epsilon,
    "hidden_dropout_prob": config.dropout_rate,
    "attention_probs_dropout_prob": config.attention_dropout,
    "initializer_range": config.init_stddev,
    "tie_word_embeddings": True,
  }


def _entries(model: BertMaskedLM) -> Iterator[Entry]:
  for name, ours in (
    ("word_embeddings", "token_embedding"),
    ("position_embeddings", "position_embedding"),
    ("token_type_embeddings", "type_embedding"),
  ):
    yield Entry(f"bert.embeddings.{name}.weight", f"{ours}/embedding")
  yield from _norm("bert.embeddings.LayerNorm", "embedding_norm")
  for layer in range(model.config.num_layers):
    name = f"bert.encoder.layer.{layer}"
    for i, part in enumerate(("query", "key", "value")):
      qkv = f"{LAYERS}/attention/qkv"
      theirs = f"{name}.attention.self.{part}"
      yield matrix(f"{theirs}.weight", f"{qkv}/kernel", layer, slice(None), i)
      yield vectors(f"{theirs}.bias", f"{qkv}/bias", layer, i)
    for theirs, ours in (
      ("attention.output.dense", "attention/out"),
      ("intermediate.dense", "mlp/wi"),
      ("output.dense", "mlp/wo"),
    ):
      yield from _dense(f"{name}.{theirs}", f"{LAYERS}/{ours}", layer)
    yield from _norm(
      f"{name}.attention.output.LayerNorm", f"{LAYERS}/attention_norm", layer
    )
    yield from _norm(f"{name}.output.LayerNorm", f"{LAYERS}/mlp_norm", layer)
  if model.config.pooler:
    yield from _dense(POOLER, "pooler")
  yield from _dense(f"{HEAD}.transform.dense", "head_dense")
  yield from _norm(f"{HEAD}.transform.LayerNorm", "head_norm")
  yield Entry(f"{HEAD}.bias", "head_bias")


def _dense(theirs: str, ours: str, *index: int) -> Iterator[Entry]:
  yield matrix(f"{theirs}.weight", f"{ours}/kernel", *index)
  yield vectors(f"{theirs}.bias", f"{ours}/bias", *index)


def _norm(theirs: str, ours: str, *index: int) -> Iterator[Entry]:
  yield vectors(f"{theirs}.weight", f"{ours}/scale", *index)
  yield vectors(f"{theirs}.bias", f"{ours}/bias", *index)


BERT = Family(
  architectures=("BertForMaskedLM", "BertForPreTraining"),
  kind=BertMaskedLM,
  depths={"stack": "num_layers"},
  model=_model,
  fields=_fields,
  entries=_entries,
  ignored=(
    "bert.pooler.*",
    "cls.seq_relationship.*",
    "cls.predictions.decoder.*",  # The embedding and the bias once more.
    "bert.embeddings.position_ids",
  ),
)


class PresentNames(Mapping[str, np.ndarray]):
  """Tensors under the names of today, from those of the original release.

  In that, names have slashes, kernels are [inputs, outputs], and scales and
  biases of norms are `gamma` and `beta`; the latter also in older files of
  Hugging Face.
  """

  def __init__(self, tensors: Mapping[str, np.ndarray]):
    self._tensors = tensors
    self._names = {_present_name(name): name for name in tensors}

  def __getitem__(self, name: str) -> np.ndarray:
    found = self._names[name]
    tensor = self._tensors[found]
    return tensor.T if found.endswith("/kernel") else tensor

  def __iter__(self) -> Iterator[str]:
    return iter(self._names)

  def __len__(self) -> int:
    return len(self._names)


def _present_name(name: str) -> str:
  if name.endswith("/kernel"):
    name = name.removesuffix("kernel") + "weight"
  elif re.search(r"/\w+_embeddings$", name):
    name = f"{name}/weight"
  name = name.replace("/output_bias", "/bias").replace("/", ".")
  name = re.sub(r"\.layer_(\d+)\.", r".layer.\1.", name)
  name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
  return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
