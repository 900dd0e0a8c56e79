"""T5.1.1 as a language model: its loss, its FLOPs, and how it writes."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from raptr_jax.contracts import AnyBatch, Cache, LayerPath, Params, StepFlops
from raptr_jax.models import flops
from raptr_jax.models.checks import check_axes, check_paths
from raptr_jax.models.encoder_decoder import (
  DecoderBlock,
  EncoderBlock,
  EncoderDecoder,
  EncoderDecoderConfig,
)
from raptr_jax.models.language_model import PROMPTS, LanguageModel
from raptr_jax.models.layers import apply
from raptr_jax.models.masked_stack import full_paths

START = 0  # The decoder's first input, as in T5: the id of padding.


@dataclasses.dataclass(frozen=True)
class EncoderDecoderLM(LanguageModel):
  """A `generate.Generator`: T5.1.1 as a language model.

  Attributes:
    config: sizes and variants.
    encoder_block: `encoder_block(config, parent=None)` builds a layer, such as
      `EncoderBlock` or another module that is called as it is; see
      `MaskedStack`.
    decoder_block: the same, for the decoder. A model that writes also needs the
      block's methods `source` and `extend`.
  """

  config: EncoderDecoderConfig
  encoder_block: Callable[..., nn.Module] = EncoderBlock
  decoder_block: Callable[..., nn.Module] = DecoderBlock

  @property
  def features(self) -> dict[str, str]:
    return {
      "encoder_tokens": "B S",
      "encoder_segment_ids": "B S",
      "tokens": "B T",
      "segment_ids": "B T",
      "targets": "B T",
      "target_weights": "B T",
    }

  @property
  def stacks(self) -> dict[str, int]:
    config = self.config
    return {
      "encoder": config.num_encoder_layers,
      "decoder": config.num_decoder_layers,
    }

  @property
  def module(self) -> EncoderDecoder:
    blocks = self.encoder_block, self.decoder_block
    return EncoderDecoder(self.config, *blocks)

  def init(self, key: Key[Array, ""]) -> Params:
    row = jnp.zeros((1, 1), jnp.int32)
    names = ("encoder_tokens", "encoder_segment_ids", "tokens", "segment_ids")
    draws = full_paths(self.stacks)
    return self.module.init(key, dict.fromkeys(names, row), draws)["params"]

  def step_flops(self, batch: AnyBatch) -> StepFlops:
    """FLOPs by kept layers; the head counts at every position.

    Other blocks count as `EncoderBlock` and `DecoderBlock`. If they compute
    other products, count them in a subclass.
    """
    config = self.config
    size, source = batch["encoder_tokens"].shape
    length = batch["tokens"].shape[1]
    attention = functools.partial(
      flops.attention_flops,
      batch=size,
      width=config.embed_dim,
      query_width=config.num_heads * config.head_dim,
      key_value_width=config.num_heads * config.head_dim,
    )

    def mlp(tokens: int) -> float:
      return flops.product(size * tokens, config.embed_dim, 3 * config.mlp_dim)

    decoder = (
      attention(length=length, source_length=length)
      + attention(length=length, source_length=source)
      + mlp(length)
    )
    encoder = attention(length=source, source_length=source) + mlp(source)
    head = flops.product(size * length, config.embed_dim, config.vocab_size)
    return StepFlops({"encoder": encoder, "decoder": decoder}, head)

  def start(
    self,
    params: Params,
    prompts: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    paths: Mapping[str, LayerPath],
    max_new_tokens: int,
  ) -> tuple[Float[Array, "B V"], Cache]:
    """Encodes prompts and begins to write; see `generate.Generator`."""
    check_axes({"prompts": prompts, "lengths": lengths}, PROMPTS)
    check_paths(paths, self.stacks)
    config, path = self.config, paths["decoder"]
    run = functools.partial(apply, self.module, params)
    in_prompt = jnp.arange(prompts.shape[1])[None] < lengths[:, None]
    segment_ids = in_prompt.astype(jnp.int32)
    encoded = run(prompts, segment_ids, paths, method="encode")
    batch, heads = len(prompts), config.num_heads
    shape = (len(path.indices), batch, heads, max_new_tokens, config.head_dim)
    cache = {
      "layers": {
        "keys": jnp.zeros(shape, config.dtype),
        "values": jnp.zeros(shape, config.dtype),
        "source": run(encoded, path, method="source"),
      },
      "slot": jnp.zeros((), jnp.int32),
      "prompt": in_prompt[None],
    }
    first = jnp.full(batch, START, jnp.int32)
    return self.extend(params, first, cache, paths)

  def extend(
    self,
    params: Params,
    tokens: Int[Array, "B"],
    cache: Cache,
    paths: Mapping[str, LayerPath],
  ) -> tuple[Float[Array, "B V"], Cache]:
    """Reads one more token; see `generate.Generator`."""
    check_axes({"tokens": tokens}, {"tokens": "B"})
    check_paths(paths, self.stacks)
    hidden, cache = apply(
      self.module, params, tokens, paths["decoder"], cache, method="extend"
    )
    return self._logits(params, hidden), cache
