"""The decoder: `LlamaForCausalLM`, or Granite if embeddings stay tied.

Our embeddings are multiplied by sqrt(D) before the first layer, and Llama's are
not. So tied ones are exported to `GraniteForCausalLM`, which multiplies, too;
as a Llama, the multiplied embedding and the output layer are two tensors, and a
Llama with tied ones becomes such a model of ours.
"""

import math
from collections.abc import Iterator
from typing import Any

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
from raptr_jax.models.decoder import DecoderConfig
from raptr_jax.models.decoder_lm import DecoderLM

LAYERS = "stack/layers"
GRANITE = "GraniteForCausalLM"


def _model(fields: Fields) -> Model:
  expect(fields, attention_bias=False, mlp_bias=False, rope_scaling=None)
  tied = bool(fields.get("tie_word_embeddings", False))
  embed_dim = size(fields, "hidden_size")
  heads = size(fields, "num_attention_heads")
  head_dim = size(fields, "head_dim", embed_dim // heads)
  if GRANITE in fields["architectures"]:
    _check_multipliers(fields, embed_dim, head_dim)
  else:
    tied = False  # As two arrays, which agree.
  return DecoderLM(
    DecoderConfig(
      vocab_size=size(fields, "vocab_size"),
      num_layers=size(fields, "num_hidden_layers"),
      embed_dim=embed_dim,
      num_heads=heads,
      num_kv_heads=size(fields, "num_key_value_heads", heads),
      head_dim=head_dim,
      mlp_dim=size(fields, "intermediate_size"),
      activation=activation(fields, "hidden_act", "silu"),
      attention="causal",
      tied_head=tied,
      rotary_base=_rotary_base(fields),
      norm_epsilon=number(fields, "rms_norm_eps", 1e-6),
    )
  )


def _rotary_base(fields: Fields) -> float:
  """The base of rotary positions; newer files have it in a field of its own."""
  parameters = fields.get("rope_parameters") or {}
  expect(parameters, rope_type="default")
  base = number(fields, "rope_theta", 10_000.0)
  return number(parameters, "rope_theta", base)


def _check_multipliers(fields: Fields, embed_dim: int, head_dim: int) -> None:
  """Raises ExchangeError unless a Granite computes what our decoder does."""
  for name, value in _multipliers(embed_dim, head_dim).items():
    found = number(fields, name, 1.0)
    if not math.isclose(found, value, rel_tol=1e-6):
      raise ExchangeError(
        f"config.json has {name} = {found}; this package has only decoders with"
        f" {value}"
      )


def _multipliers(embed_dim: int, head_dim: int) -> dict[str, float]:
  return {
    "embedding_multiplier": math.sqrt(embed_dim),
    "attention_multiplier": 1 / math.sqrt(head_dim),
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
  }


def _fields(model: DecoderLM) -> dict[str, Any]:
  config = model.config
  if config.attention != "causal":
    raise ExchangeError(
      f"decoder.DecoderConfig.attention = {config.attention!r}"
      " (DECODER_ATTENTION), but the decoders of Hugging Face are 'causal': they"
      " read inputs from left to right, too"
    )
  tied = config.tied_head
  more = _multipliers(config.embed_dim, config.head_width) if tied else {}
  return {
    "architectures": [GRANITE if tied else "LlamaForCausalLM"],
    "model_type": "granite" if tied else "llama",
    "vocab_size": config.vocab_size,
    "hidden_size": config.embed_dim,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.kv_heads,
    "head_dim": config.head_width,
    "intermediate_size": config.mlp_dim,
    "hidden_act": activation_name(config.activation),
    "rms_norm_eps": config.norm_epsilon,
    "rope_theta": config.rotary_base,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": tied,
    **more,
  }


def _entries(model: DecoderLM) -> Iterator[Entry]:
  config = model.config
  factor = 1.0 if config.tied_head else config.embed_dim**-0.5
  yield Entry(
    "model.embed_tokens.weight", "token_embedding/embedding", factor=factor
  )
  yield vectors("model.norm.weight", "final_norm/scale")
  if not config.tied_head:
    yield matrix("lm_head.weight", "head/kernel")
  for layer in range(config.num_layers):
    name = f"model.layers.{layer}"
    attention = f"{LAYERS}/attention"
    yield matrix(
      f"{name}.self_attn.q_proj.weight", f"{attention}/query/kernel", layer
    )
    for i, part in enumerate("kv"):
      yield matrix(
        f"{name}.self_attn.{part}_proj.weight",
        f"{attention}/key_value/kernel",
        layer,
        slice(None),
        i,
      )
    yield matrix(
      f"{name}.self_attn.o_proj.weight", f"{attention}/out/kernel", layer
    )
    for i, part in enumerate(("gate", "up")):
      yield matrix(
        f"{name}.mlp.{part}_proj.weight",
        f"{LAYERS}/mlp/wi/kernel",
        layer,
        slice(None),
        i,
      )
    yield matrix(
      f"{name}.mlp.down_proj.weight", f"{LAYERS}/mlp/wo/kernel", layer
    )
    for theirs, ours in (
      ("input_layernorm", "attention_norm"),
      ("post_attention_layernorm", "mlp_norm"),
    ):
      yield vectors(f"{name}.{theirs}.weight", f"{LAYERS}/{ours}/scale", layer)


LLAMA = Family(
  architectures=("LlamaForCausalLM", GRANITE),
  kind=DecoderLM,
  depths={"stack": "num_layers"},
  model=_model,
  fields=_fields,
  entries=_entries,
  # The last one repeats a tied embedding.
  ignored=("model.layers.*.self_attn.rotary_emb.inv_freq", "lm_head.weight"),
  tied={"lm_head.weight": "model.embed_tokens.weight"},
)
