"""Parameters of `bert.py` from a published checkpoint of the original BERT.

Names are those of the original release (arXiv 1810.04805); kernels are [input,
output] in both. Query, key and value of a layer become one kernel [D, 3, H, K],
and layers are stacked on a leading axis.

  bert/embeddings/{word,position,token_type}_embeddings
      -> {token,position,type}_embedding/embedding
  bert/embeddings/LayerNorm/{gamma,beta}     -> embedding_norm/{scale,bias}
  bert/encoder/layer_l/attention/self/{query,key,value}/{kernel,bias}
      -> stack/layers/attention/qkv/{kernel,bias}[l]
  .../attention/output/dense                 -> stack/layers/attention/out[l]
  .../attention/output/LayerNorm             -> stack/layers/attention_norm[l]
  .../intermediate/dense, .../output/dense   -> stack/layers/mlp/{wi,wo}[l]
  .../output/LayerNorm                       -> stack/layers/mlp_norm[l]
  bert/pooler/dense                          -> pooler
  cls/predictions/transform/{dense,LayerNorm} -> head_dense, head_norm
  cls/predictions/output_bias                -> head_bias
"""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from raptr_jax.contracts import Params
from raptr_jax.models.bert import BertConfig

Tensors = Mapping[str, np.ndarray]
HEAD_DIM = 64  # Of all published sizes, from tiny to large.
LAYER = re.compile(r"bert/encoder/layer_(\d+)/")


def params_from_published(
  tensors: Tensors, config: BertConfig, *, head_dim: int = HEAD_DIM
) -> Params:
  """Parameters from the tensors of a checkpoint.

  Args:
    tensors: arrays by name; others, such as those of the next-sentence head,
      are ignored.
    config: sizes of that checkpoint, with `norm="post"`.
    head_dim: size of a head of that checkpoint, which no tensor tells.

  Raises:
    KeyError: if a tensor is missing.
    ValueError: if `config` is of another model than the checkpoint.
  """
  _check_sizes(tensors, config, head_dim)
  rows = [_layer(tensors, i, config) for i in range(config.num_layers)]
  params = {
    "token_embedding": _table(tensors, "word_embeddings"),
    "position_embedding": _table(tensors, "position_embeddings"),
    "type_embedding": _table(tensors, "token_type_embeddings"),
    "embedding_norm": _norm(tensors, "bert/embeddings/LayerNorm"),
    "stack": {"layers": jax.tree.map(lambda *row: jnp.stack(row), *rows)},
    "head_dense": _dense(tensors, "cls/predictions/transform/dense"),
    "head_norm": _norm(tensors, "cls/predictions/transform/LayerNorm"),
    "head_bias": jnp.asarray(tensors["cls/predictions/output_bias"]),
  }
  if config.pooler:
    params["pooler"] = _dense(tensors, "bert/pooler/dense")
  return params


def _check_sizes(tensors: Tensors, config: BertConfig, head_dim: int) -> None:
  """Raises ValueError unless a checkpoint has these sizes.

  A model of fewer layers, or of other heads, would run, and be wrong.
  """
  tables = {
    name: tensors[f"bert/embeddings/{name}_embeddings"].shape
    for name in ("word", "position", "token_type")
  }
  layers = {
    int(found[1])
    for name in tensors
    if (found := LAYER.match(name)) is not None
  }
  vocab_size, embed_dim = tables["word"]
  sizes = {
    "vocab_size": (vocab_size, config.vocab_size),
    "num_layers": (len(layers), config.num_layers),
    "embed_dim": (embed_dim, config.embed_dim),
    "num_heads": (embed_dim // head_dim, config.num_heads),
    "max_length": (tables["position"][0], config.max_length),
    "num_token_types": (tables["token_type"][0], config.num_token_types),
  }
  others = [
    f"{name} = {found} there, {wanted} here"
    for name, (found, wanted) in sizes.items()
    if found != wanted
  ]
  if others:
    raise ValueError(
      f"the checkpoint is of another model: {', '.join(others)}, if its heads"
      f" have {head_dim} units (head_dim). Set bert.BertConfig to its sizes."
    )
  if config.norm != "post":
    raise ValueError(
      f"bert.BertConfig.norm = {config.norm!r}, but published checkpoints have"
      " 'post'."
    )


def _layer(tensors: Tensors, index: int, config: BertConfig) -> Params:
  name = f"bert/encoder/layer_{index}"
  return {
    "attention": {
      "qkv": _qkv(tensors, f"{name}/attention/self", config),
      "out": _dense(tensors, f"{name}/attention/output/dense"),
    },
    "attention_norm": _norm(tensors, f"{name}/attention/output/LayerNorm"),
    "mlp": {
      "wi": _dense(tensors, f"{name}/intermediate/dense"),
      "wo": _dense(tensors, f"{name}/output/dense"),
    },
    "mlp_norm": _norm(tensors, f"{name}/output/LayerNorm"),
  }


def _qkv(tensors: Tensors, name: str, config: BertConfig) -> Params:
  heads = (config.num_heads, config.embed_dim // config.num_heads)
  parts = [_dense(tensors, f"{name}/{n}") for n in ("query", "key", "value")]
  kernel = jnp.stack([part["kernel"] for part in parts], axis=1)
  bias = jnp.stack([part["bias"] for part in parts])
  return {
    "kernel": kernel.reshape(*kernel.shape[:-1], *heads),
    "bias": bias.reshape(3, *heads),
  }


def _dense(tensors: Tensors, name: str) -> Params:
  return {n: jnp.asarray(tensors[f"{name}/{n}"]) for n in ("kernel", "bias")}


def _norm(tensors: Tensors, name: str) -> Params:
  return {
    "scale": jnp.asarray(tensors[f"{name}/gamma"]),
    "bias": jnp.asarray(tensors[f"{name}/beta"]),
  }


def _table(tensors: Tensors, name: str) -> Params:
  return {"embedding": jnp.asarray(tensors[f"bert/embeddings/{name}"])}
