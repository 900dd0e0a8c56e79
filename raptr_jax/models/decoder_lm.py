"""The decoder as a language model: its loss, its FLOPs, and how it writes."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from raptr_jax.contracts import AnyBatch, Cache, LayerPath, Params, StepFlops
from raptr_jax.models import flops
from raptr_jax.models.checks import check_axes, check_paths
from raptr_jax.models.decoder import Decoder, DecoderBlock, DecoderConfig
from raptr_jax.models.language_model import PROMPTS, LanguageModel
from raptr_jax.models.layers import apply
from raptr_jax.models.masked_stack import full_paths
from raptr_jax.models.masks import Mask


@dataclasses.dataclass(frozen=True)
class DecoderLM(LanguageModel):
  """A `generate.Generator`: a decoder as a language model.

  Attributes:
    config: sizes and variants.
    block: `block(config, parent=None)` builds a layer, such as `DecoderBlock`
      or another module that is called as `DecoderBlock` is; see `MaskedStack`.
      A model that writes also needs the block's method `extend`.
  """

  config: DecoderConfig
  block: Callable[..., nn.Module] = DecoderBlock
  feature_hint: ClassVar[str] = (
    " If no part of the text is read in both directions, set"
    " --gin.DECODER_ATTENTION=\"'causal'\"."
  )

  @property
  def features(self) -> dict[str, str]:
    names = ["tokens", "segment_ids", "positions", "targets", "target_weights"]
    if self.config.attention == "prefix":
      names.append("in_prefix")
    return dict.fromkeys(names, "B T")

  @property
  def stacks(self) -> dict[str, int]:
    return {"stack": self.config.num_layers}

  @property
  def module(self) -> Decoder:
    return Decoder(self.config, self.block)

  def init(self, key: Key[Array, ""]) -> Params:
    row = jnp.zeros((1, 1), jnp.int32)
    names = ("tokens", "segment_ids", "positions", "in_prefix")
    draws = full_paths(self.stacks)
    batch = dict.fromkeys(names, row)
    return self.module.init(key, batch, draws)["params"]

  def step_flops(self, batch: AnyBatch) -> StepFlops:
    """FLOPs by kept layers; the head counts at every position.

    Another `block` counts as `DecoderBlock`. If it computes other products,
    count them in a subclass.
    """
    config = self.config
    size, length = batch["tokens"].shape
    attention = flops.attention_flops(
      batch=size,
      length=length,
      source_length=length,
      width=config.embed_dim,
      query_width=config.num_heads * config.head_width,
      key_value_width=config.kv_heads * config.head_width,
    )
    mlp = flops.product(size * length, config.embed_dim, 3 * config.mlp_dim)
    head = flops.product(size * length, config.embed_dim, config.vocab_size)
    return StepFlops({"stack": attention + mlp}, head)

  def start(
    self,
    params: Params,
    prompts: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    paths: Mapping[str, LayerPath],
    max_new_tokens: int,
  ) -> tuple[Float[Array, "B V"], Cache]:
    """Reads prompts as inputs; see `generate.Generator`.

    In every row the prompt takes slots 0 to T - 1, padding included, and new
    tokens take the slots from T on. No token attends to padding.
    """
    check_axes({"prompts": prompts, "lengths": lengths}, PROMPTS)
    check_paths(paths, self.stacks)
    config, path = self.config, paths["stack"]
    batch, length = prompts.shape
    slots = length + max_new_tokens
    in_prompt = jnp.arange(slots)[None] < lengths[:, None]
    cache = {
      "layers": self._empty_slots(len(path.indices), batch, slots),
      "slot": jnp.zeros((), jnp.int32),
      "prompt": in_prompt[None],
      "length": lengths[None],
      "prompt_slots": jnp.asarray(length, jnp.int32),
    }
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    mask = Mask(
      jnp.ones_like(positions),
      in_prompt.astype(jnp.int32),
      causal=config.attention == "causal",
    )
    hidden, cache = self._extend(params, prompts, cache, path, mask, positions)
    last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)
    return self._logits(params, last[:, 0]), cache

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
    slots = jnp.arange(cache["prompt"].shape[-1])
    written = (slots >= cache["prompt_slots"]) & (slots <= cache["slot"])
    readable = (cache["prompt"][0] | written[None]).astype(jnp.int32)
    mask = Mask(jnp.ones_like(readable[:, :1]), readable)
    positions = (
      cache["length"][0, :, None] + cache["slot"] - cache["prompt_slots"]
    )
    hidden, cache = self._extend(
      params, tokens[:, None], cache, paths["stack"], mask, positions
    )
    return self._logits(params, hidden[:, 0]), cache

  def _empty_slots(self, num_layers: int, batch: int, slots: int) -> Cache:
    """Room for the keys and values of all slots, in each layer of a path."""
    config = self.config
    shape = (num_layers, batch, config.kv_heads, slots, config.head_width)
    names = ("keys", "values")
    return {name: jnp.zeros(shape, config.dtype) for name in names}

  def _extend(
    self,
    params: Params,
    tokens: Int[Array, "B T"],
    cache: Cache,
    path: LayerPath,
    mask: Mask,
    positions: Int[Array, "B T"],
  ) -> tuple[Float[Array, "B T D"], Cache]:
    """Reads T tokens, which attend to the slots of the cache by the mask."""
    hidden, cache = apply(
      self.module,
      params,
      tokens,
      path,
      cache,
      mask,
      positions,
      method="extend",
    )
    return hidden, cache
