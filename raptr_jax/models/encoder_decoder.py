"""T5.1.1, an encoder-decoder, over any path of the layers of either stack.

T5 (arXiv 1910.10683) with the changes of version 1.1: RMSNorm before each
branch, a gated GELU, no biases, an untied output layer, attention logits that
are not divided by sqrt(K) (the query's initialisation is), and relative
positions in buckets, shared by all layers of a stack. The stacks "encoder" and
"decoder" each have their own draw.

T5.1.1 has no dropout in pretraining, which is the default here.

One departure: no dropout between the decoder's last norm and the output layer.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeAlias

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from raptr_jax.contracts import Cache, DeviceBatch, Draws, DropoutKey, LayerPath
from raptr_jax.models import layers
from raptr_jax.models.compute import ComputeConfig, check_choices
from raptr_jax.models.language_model import check_loss
from raptr_jax.models.masked_stack import MaskedStack
from raptr_jax.models.masks import Mask
from raptr_jax.models.multi_head_attention import Attention, write_slots
from raptr_jax.models.relative_positions import (
  RelativeBias,
  RelativePositions,
)

Encoded: TypeAlias = Float[Array, "B S D"]
Hidden: TypeAlias = Float[Array, "B T D"]
Scale: TypeAlias = Float[Array, ""]
Keys: TypeAlias = Float[Array, "*k B H S K"]
KeysValues: TypeAlias = tuple[Keys, Keys]


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig(ComputeConfig):
  """Sizes and variants of an encoder-decoder; `ComputeConfig` has the others.

  Attributes:
    vocab_size: V.
    num_encoder_layers: L of the stack "encoder".
    num_decoder_layers: L of the stack "decoder".
    embed_dim: D.
    num_heads: H.
    head_dim: K; H K may differ from D.
    mlp_dim: F.
    activation: of the gate: "gelu_tanh" (T5.1.1), "gelu" or "silu".
    position_buckets: number of buckets of relative positions.
    max_distance: all distances from here on share a bucket.
    norm_epsilon: added to the mean square.
    z_loss: factor on the squared log of the softmax's normaliser.
    label_smoothing: share of the target that is spread over the vocabulary.
    logits_chunk: tokens with logits in memory at once; None for all of a batch.
  """

  vocab_size: int
  num_encoder_layers: int
  num_decoder_layers: int
  embed_dim: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  activation: str = "gelu_tanh"
  position_buckets: int = 32
  max_distance: int = 128
  norm_epsilon: float = 1e-6
  z_loss: float = 0.0
  label_smoothing: float = 0.0
  logits_chunk: int | None = None

  def __post_init__(self) -> None:
    super().__post_init__()
    check_choices(self, activation=tuple(layers.ACTIVATIONS))
    check_loss(self)
    if not 4 <= self.position_buckets < 2 * self.max_distance:
      raise ValueError(
        "encoder_decoder.EncoderDecoderConfig.position_buckets ="
        f" {self.position_buckets}, expected 4 to {2 * self.max_distance - 1}:"
        f" less than twice its max_distance = {self.max_distance}."
      )

  def attention(self) -> Attention:
    """Self- or cross-attention, as in T5."""
    # The initial queries are divided by sqrt(K), since the logits are not.
    return Attention(
      features=self.embed_dim,
      num_heads=self.num_heads,
      head_dim=self.head_dim,
      num_kv_heads=self.num_heads,
      dropout_rate=self.attention_dropout,
      query_init=layers.fan_in(1 / self.head_dim),
      scaled=False,
      kernel=self.attention_kernel,
    )

  def mlp(self) -> layers.GatedMlp:
    return layers.GatedMlp(self.mlp_dim, self.activation, self.dropout_rate)

  def norm(self) -> layers.RMSNorm:
    return layers.RMSNorm(self.norm_epsilon, self.dtype)


class EncoderBlock(nn.Module):
  """x + scale (self-attention + MLP)."""

  config: EncoderDecoderConfig

  def setup(self) -> None:
    config = self.config
    self.attention_norm = config.norm()
    self.attention = config.attention()
    self.mlp_norm = config.norm()
    self.mlp = config.mlp()
    self.dropout = nn.Dropout(config.dropout_rate)

  def __call__(
    self,
    x: Encoded,
    scale: Scale,
    mask: Mask,
    positions: RelativeBias,
    deterministic: bool,
  ) -> Encoded:
    normed = self.attention_norm(x)
    keys, values = self.attention.keys_values(normed)
    mixed = self.attention.attend(
      normed, keys, values, mask, bias=positions, deterministic=deterministic
    )
    mixed = self.dropout(mixed, deterministic)
    changed = self.mlp(self.mlp_norm(x + mixed), deterministic)
    out: Array = x + scale * (mixed + self.dropout(changed, deterministic))
    return out


class DecoderBlock(nn.Module):
  """x + scale (self-attention + cross-attention + MLP)."""

  config: EncoderDecoderConfig

  def setup(self) -> None:
    config = self.config
    self.attention_norm = config.norm()
    self.attention = config.attention()
    self.cross_attention_norm = config.norm()
    self.cross_attention = config.attention()
    self.mlp_norm = config.norm()
    self.mlp = config.mlp()
    self.dropout = nn.Dropout(config.dropout_rate)

  def __call__(
    self,
    x: Hidden,
    scale: Scale,
    encoded: Encoded,
    mask: Mask,
    positions: RelativeBias,
    cross_mask: Mask,
    deterministic: bool,
  ) -> Hidden:
    normed = self.attention_norm(x)
    keys, values = self.attention.keys_values(normed)
    source = self.source(encoded)
    mixed = self.attention.attend(
      normed, keys, values, mask, bias=positions, deterministic=deterministic
    )
    return self._add(x, scale, mixed, source, cross_mask, deterministic)

  def source(self, encoded: Encoded) -> KeysValues:
    """Keys and values of the encoder's output: all that is read of it."""
    return self.cross_attention.keys_values(encoded)

  def extend(
    self,
    x: Hidden,
    scale: Scale,
    cache: Cache,
    mask: Mask,
    positions: RelativeBias,
    cross_mask: Mask,
    slot: Int[Array, ""],
  ) -> tuple[Hidden, Cache]:
    """Reads T tokens; writes their keys and values from `slot` on."""
    normed = self.attention_norm(x)
    cache = write_slots(cache, self.attention.keys_values(normed), slot)
    mixed = self.attention.attend(
      normed, cache["keys"], cache["values"], mask, bias=positions
    )
    return self._add(x, scale, mixed, cache["source"], cross_mask, True), cache

  def _add(
    self,
    x: Hidden,
    scale: Scale,
    mixed: Hidden,
    source: KeysValues,
    cross_mask: Mask,
    deterministic: bool,
  ) -> Hidden:
    """Adds the branches: self-attention (`mixed`), cross-attention, MLP."""
    branches = self.dropout(mixed, deterministic)
    crossed = self.cross_attention.attend(
      self.cross_attention_norm(x + branches),
      *source,
      cross_mask,
      deterministic=deterministic,
    )
    branches = branches + self.dropout(crossed, deterministic)
    changed = self.mlp(self.mlp_norm(x + branches), deterministic)
    out: Array = x + scale * (branches + self.dropout(changed, deterministic))
    return out


class EncoderDecoder(nn.Module):
  """Embedding, two stacks, and output layer.

  Attributes:
    config: sizes and variants.
    encoder_block, decoder_block: see `EncoderDecoderLM`.
  """

  config: EncoderDecoderConfig
  encoder_block: Callable[..., nn.Module] = EncoderBlock
  decoder_block: Callable[..., nn.Module] = DecoderBlock

  def setup(self) -> None:
    config = self.config
    self.token_embedding = layers.Embedding(
      config.vocab_size,
      config.embed_dim,
      axis="vocab",
      embedding_init=nn.initializers.normal(1.0),
      dtype=config.stream_dtype,
    )
    positions = functools.partial(
      RelativePositions,
      config.num_heads,
      config.position_buckets,
      config.max_distance,
      stddev=config.embed_dim**-0.5,
    )
    self.encoder_positions = positions(bidirectional=True)
    self.decoder_positions = positions(bidirectional=False)
    encoder_block = functools.partial(self.encoder_block, config)
    decoder_block = functools.partial(self.decoder_block, config)
    stack = functools.partial(MaskedStack, remat=config.remat)
    self.encoder = stack(encoder_block, config.num_encoder_layers)
    self.decoder = stack(decoder_block, config.num_decoder_layers)
    self.encoder_norm = config.norm()
    self.decoder_norm = config.norm()
    self.dropout = nn.Dropout(config.dropout_rate)
    self.head = layers.output_layer(config.vocab_size)

  def encode(
    self,
    tokens: Int[Array, "B S"],
    segment_ids: Int[Array, "B S"],
    draws: Draws,
    dropout_key: DropoutKey = None,
  ) -> Encoded:
    """The encoder's output, which the decoder reads."""
    # For embeddings, layers and output.
    keys = layers.split_key(dropout_key, 3)
    x = self._dropped(self.token_embedding(tokens), keys[0])
    x = self.encoder(
      x,
      draws["encoder"],
      Mask(segment_ids, segment_ids),
      self.encoder_positions(),
      dropout_key=keys[1],
    )
    return self._dropped(self.encoder_norm(x), keys[2])

  def hidden(
    self,
    batch: DeviceBatch,
    draws: Draws,
    dropout_key: DropoutKey = None,
  ) -> Hidden:
    """The decoder's hidden states for a batch of `UL2`."""
    keys = layers.split_key(dropout_key, 2)
    source_ids, segment_ids = batch["encoder_segment_ids"], batch["segment_ids"]
    encoded = self.encode(batch["encoder_tokens"], source_ids, draws, keys[0])
    keys = layers.split_key(keys[1], 3)
    x = self._dropped(self.token_embedding(batch["tokens"]), keys[0])
    hidden: Array = self.decoder(
      x,
      draws["decoder"],
      encoded,
      Mask(segment_ids, segment_ids, causal=True),
      self.decoder_positions(),
      Mask(segment_ids, source_ids),
      dropout_key=keys[1],
    )
    return hidden

  def logits(
    self, hidden: Float[Array, "*batch D"]
  ) -> Float[Array, "*batch V"]:
    """Scores of the targets, in float32."""
    logits: Array = self.head(self.decoder_norm(hidden))
    return logits

  def __call__(self, batch: DeviceBatch, draws: Draws) -> Float[Array, "B T V"]:
    """Logits of the targets of a batch."""
    return self.logits(self.hidden(batch, draws))

  def source(self, encoded: Encoded, path: LayerPath) -> KeysValues:
    """Keys and values of the encoder's output, for each decoder layer."""
    keys, values = self.decoder.each(path, "source", encoded)
    return keys, values

  def extend(
    self, tokens: Int[Array, "B"], path: LayerPath, cache: Cache
  ) -> tuple[Float[Array, "B D"], Cache]:
    """The decoder's hidden state of one more token."""
    slot = cache["slot"]
    written = jnp.arange(cache["layers"]["keys"].shape[3]) <= slot
    one = jnp.ones((1, 1), jnp.int32)
    x, kept = self.decoder.extend(
      self.token_embedding(tokens[:, None]),
      path,
      cache["layers"],
      Mask(one, written.astype(jnp.int32)[None]),
      self.decoder_positions(slot),
      Mask(one, cache["prompt"][0].astype(jnp.int32)),
      slot,
    )
    return x[:, 0], cache | {"layers": kept, "slot": slot + 1}

  def _dropped(self, x: Hidden, key: DropoutKey) -> Hidden:
    x = self.dropout(x, deterministic=key is None, rng=key)
    return x
