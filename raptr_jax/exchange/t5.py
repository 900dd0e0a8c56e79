"""The encoder-decoder T5 v1.1: `T5ForConditionalGeneration`."""

from collections.abc import Iterator
from typing import Any

from raptr_jax.contracts import Model
from raptr_jax.exchange.family import (
  ACTIVATIONS,
  Family,
  Fields,
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
from raptr_jax.models.encoder_decoder import EncoderDecoderConfig
from raptr_jax.models.encoder_decoder_lm import START, EncoderDecoderLM

GATED = "gated-"


def _model(fields: Fields) -> Model:
  expect(fields, decoder_start_token_id=START)
  if fields.get("scale_decoder_outputs", _is_tied(fields)):
    raise ExchangeError(
      "config.json is of the first T5, which multiplies its outputs; this"
      " package has T5 v1.1, with scale_decoder_outputs = False or"
      " tie_word_embeddings = False"
    )
  layers = size(fields, "num_layers")
  return EncoderDecoderLM(
    EncoderDecoderConfig(
      vocab_size=size(fields, "vocab_size"),
      num_encoder_layers=layers,
      num_decoder_layers=size(fields, "num_decoder_layers", layers),
      embed_dim=size(fields, "d_model"),
      num_heads=size(fields, "num_heads"),
      head_dim=size(fields, "d_kv"),
      mlp_dim=size(fields, "d_ff"),
      activation=_gate(fields),
      position_buckets=size(fields, "relative_attention_num_buckets", 32),
      max_distance=size(fields, "relative_attention_max_distance", 128),
      norm_epsilon=number(fields, "layer_norm_epsilon", 1e-6),
      dropout_rate=number(fields, "dropout_rate", 0.0),
    )
  )


def _is_tied(fields: Fields) -> bool:
  """What older files say of models whose outputs are multiplied."""
  return bool(fields.get("tie_word_embeddings", True))


def _gate(fields: Fields) -> str:
  """The activation of the gate of the MLP."""
  found = str(fields.get("feed_forward_proj", "relu"))
  name = found.removeprefix(GATED)
  if not found.startswith(GATED) or name not in ACTIVATIONS:
    known = [f"{GATED}{name}" for name in ACTIVATIONS]
    raise ExchangeError(
      f"config.json has feed_forward_proj = {found!r}, expected one of {known},"
      " as in T5 v1.1"
    )
  # By "gated-gelu" Hugging Face means the approximation by tanh.
  return "gelu_tanh" if name == "gelu" else ACTIVATIONS[name]


def _fields(model: EncoderDecoderLM) -> dict[str, Any]:
  config = model.config
  gate = activation_name(config.activation)
  if config.activation == "gelu":
    raise ExchangeError(
      "encoder_decoder.EncoderDecoderConfig.activation = 'gelu', which Hugging"
      " Face's T5 does not have: 'gelu_tanh' is its own"
    )
  gate = "gelu" if config.activation == "gelu_tanh" else gate
  return {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "vocab_size": config.vocab_size,
    "num_layers": config.num_encoder_layers,
    "num_decoder_layers": config.num_decoder_layers,
    "d_model": config.embed_dim,
    "num_heads": config.num_heads,
    "d_kv": config.head_dim,
    "d_ff": config.mlp_dim,
    "feed_forward_proj": f"{GATED}{gate}",
    "relative_attention_num_buckets": config.position_buckets,
    "relative_attention_max_distance": config.max_distance,
    "layer_norm_epsilon": config.norm_epsilon,
    "dropout_rate": config.dropout_rate,
    "is_encoder_decoder": True,
    "tie_word_embeddings": False,
    "decoder_start_token_id": START,
    "pad_token_id": START,
  }


def _entries(model: EncoderDecoderLM) -> Iterator[Entry]:
  config = model.config
  yield Entry("shared.weight", "token_embedding/embedding")
  yield matrix("lm_head.weight", "head/kernel")
  for stack, count, branches in (
    ("encoder", config.num_encoder_layers, ("SelfAttention",)),
    (
      "decoder",
      config.num_decoder_layers,
      ("SelfAttention", "EncDecAttention"),
    ),
  ):
    positions = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    yield matrix(f"{stack}.{positions}", f"{stack}_positions/embedding")
    yield vectors(f"{stack}.final_layer_norm.weight", f"{stack}_norm/scale")
    for layer in range(count):
      ours, theirs = f"{stack}/layers", f"{stack}.block.{layer}.layer"
      for i, branch in enumerate(branches):
        kind = ("attention", "cross_attention")[i]
        yield from _attention(f"{theirs}.{i}.{branch}", f"{ours}/{kind}", layer)
        norm = f"{theirs}.{i}.layer_norm.weight"
        yield vectors(norm, f"{ours}/{kind}_norm/scale", layer)
      last = f"{theirs}.{len(branches)}"
      mlp = f"{last}.DenseReluDense"
      for i in range(2):
        yield matrix(
          f"{mlp}.wi_{i}.weight", f"{ours}/mlp/wi/kernel", layer, slice(None), i
        )
      yield matrix(f"{mlp}.wo.weight", f"{ours}/mlp/wo/kernel", layer)
      yield vectors(
        f"{last}.layer_norm.weight", f"{ours}/mlp_norm/scale", layer
      )


def _attention(theirs: str, ours: str, layer: int) -> Iterator[Entry]:
  yield matrix(f"{theirs}.q.weight", f"{ours}/query/kernel", layer)
  for i, name in enumerate("kv"):
    kernel = f"{ours}/key_value/kernel"
    yield matrix(f"{theirs}.{name}.weight", kernel, layer, slice(None), i)
  yield matrix(f"{theirs}.o.weight", f"{ours}/out/kernel", layer)


T5 = Family(
  architectures=("T5ForConditionalGeneration",),
  kind=EncoderDecoderLM,
  depths={"encoder": "num_encoder_layers", "decoder": "num_decoder_layers"},
  model=_model,
  fields=_fields,
  entries=_entries,
  # The embedding once more.
  ignored=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
  tied={"lm_head.weight": "shared.weight"},
)
