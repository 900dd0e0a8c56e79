"""A decoder-only language model, over any path of its layers.

Pre-norm blocks with RMSNorm (arXiv 1910.07467), rotary positions (2104.09864),
optional grouped-query attention (2305.13245) and a gated MLP (2002.05202). A
prefix language model reads the inputs of an example in both directions, and
writes the targets from left to right; in a causal one, inputs too are read from
left to right.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Int

from raptr_jax.contracts import Cache, DeviceBatch, Draws, DropoutKey, LayerPath
from raptr_jax.models import layers
from raptr_jax.models.compute import ComputeConfig, check_choices
from raptr_jax.models.language_model import check_loss
from raptr_jax.models.masked_stack import MaskedStack
from raptr_jax.models.masks import Mask
from raptr_jax.models.multi_head_attention import Attention, write_slots


@dataclasses.dataclass(frozen=True)
class DecoderConfig(ComputeConfig):
  """Sizes and variants of a decoder; `ComputeConfig` has the others.

  Attributes:
    vocab_size: V.
    num_layers: L.
    embed_dim: D.
    num_heads: H.
    mlp_dim: F.
    num_kv_heads: G, which divides H; H if None.
    head_dim: K, an even number; D / H if None.
    attention: "prefix" (inputs are read in both directions) or "causal".
    activation: of the gate: "silu" (SwiGLU), "gelu" or "gelu_tanh".
    tied_head: whether the embedding is also the output layer.
    rotary_base: of the rotary positions.
    norm_epsilon: added to the mean square.
    z_loss: factor on the squared log of the softmax's normaliser.
    label_smoothing: share of the target that is spread over the vocabulary.
    logits_chunk: tokens with logits in memory at once; None for all of a batch.
  """

  vocab_size: int
  num_layers: int
  embed_dim: int
  num_heads: int
  mlp_dim: int
  num_kv_heads: int | None = None
  head_dim: int | None = None
  attention: str = "prefix"
  activation: str = "silu"
  tied_head: bool = True
  rotary_base: float = 10_000.0
  norm_epsilon: float = 1e-6
  z_loss: float = 0.0
  label_smoothing: float = 0.0
  logits_chunk: int | None = None

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.head_dim is None and self.embed_dim % self.num_heads:
      raise ValueError(
        f"decoder.DecoderConfig.embed_dim = {self.embed_dim}, expected a"
        f" multiple of decoder.DecoderConfig.num_heads = {self.num_heads}, or a"
        " decoder.DecoderConfig.head_dim."
      )
    if self.head_width % 2:
      raise ValueError(
        f"decoder.DecoderConfig.head_dim = {self.head_width}, expected an even"
        " number: rotary positions rotate pairs of coordinates."
      )
    if self.num_heads % self.kv_heads:
      raise ValueError(
        f"decoder.DecoderConfig.num_kv_heads = {self.num_kv_heads}, expected a"
        f" divisor of decoder.DecoderConfig.num_heads = {self.num_heads}."
      )
    check_choices(
      self,
      attention=("prefix", "causal"),
      activation=tuple(layers.ACTIVATIONS),
    )
    check_loss(self)

  def norm(self) -> layers.RMSNorm:
    return layers.RMSNorm(self.norm_epsilon, self.dtype)

  @property
  def head_width(self) -> int:
    return self.head_dim or self.embed_dim // self.num_heads

  @property
  def kv_heads(self) -> int:
    return self.num_kv_heads or self.num_heads


class DecoderBlock(nn.Module):
  """x + scale (attention + MLP)."""

  config: DecoderConfig

  def setup(self) -> None:
    config = self.config
    self.attention_norm = config.norm()
    self.attention = Attention(
      features=config.embed_dim,
      num_heads=config.num_heads,
      head_dim=config.head_width,
      num_kv_heads=config.kv_heads,
      dropout_rate=config.attention_dropout,
      rotary_base=config.rotary_base,
      kernel=config.attention_kernel,
    )
    self.mlp_norm = config.norm()
    self.mlp = layers.GatedMlp(
      config.mlp_dim, config.activation, config.dropout_rate
    )
    self.dropout = nn.Dropout(config.dropout_rate)

  def __call__(
    self,
    x: Float[Array, "B T D"],
    scale: Float[Array, ""],
    mask: Mask,
    positions: Int[Array, "B T"],
    deterministic: bool,
  ) -> Float[Array, "B T D"]:
    normed = self.attention_norm(x)
    keys, values = self.attention.keys_values(normed, positions)
    mixed = self.attention.attend(
      normed,
      keys,
      values,
      mask,
      positions=positions,
      deterministic=deterministic,
    )
    return self._add(x, scale, mixed, deterministic)

  def extend(
    self,
    x: Float[Array, "B T D"],
    scale: Float[Array, ""],
    cache: Cache,
    mask: Mask,
    positions: Int[Array, "B T"],
    slot: Int[Array, ""],
  ) -> tuple[Float[Array, "B T D"], Cache]:
    """Reads T tokens; writes their keys and values from `slot` on."""
    normed = self.attention_norm(x)
    new = self.attention.keys_values(normed, positions)
    cache = write_slots(cache, new, slot)
    mixed = self.attention.attend(
      normed, cache["keys"], cache["values"], mask, positions=positions
    )
    return self._add(x, scale, mixed, True), cache

  def _add(
    self,
    x: Float[Array, "B T D"],
    scale: Float[Array, ""],
    mixed: Float[Array, "B T D"],
    deterministic: bool,
  ) -> Float[Array, "B T D"]:
    """Adds the branches: attention (`mixed`) and MLP."""
    mixed = self.dropout(mixed, deterministic)
    changed = self.mlp(self.mlp_norm(x + mixed), deterministic)
    out: Array = x + scale * (mixed + self.dropout(changed, deterministic))
    return out


class Decoder(nn.Module):
  """Embedding, stack, and output layer.

  Attributes:
    config: sizes and variants.
    block: `block(config, parent=None)` builds a layer; see `DecoderLM`.
  """

  config: DecoderConfig
  block: Callable[..., nn.Module] = DecoderBlock

  def setup(self) -> None:
    config = self.config
    # Inputs are multiplied by sqrt(D), so that at first both they and the
    # logits of a tied output layer have about unit variance.
    self.token_embedding = layers.Embedding(
      config.vocab_size,
      config.embed_dim,
      axis="vocab",
      embedding_init=nn.initializers.normal(config.embed_dim**-0.5),
      dtype=config.stream_dtype,
    )
    self.dropout = nn.Dropout(config.dropout_rate)
    self.stack = MaskedStack(
      functools.partial(self.block, config), config.num_layers, config.remat
    )
    self.final_norm = config.norm()
    if not config.tied_head:
      self.head = layers.output_layer(config.vocab_size)

  def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Input of the first layer."""
    x: Array = self.token_embedding(tokens) * self.config.embed_dim**0.5
    return x

  def hidden(
    self,
    batch: DeviceBatch,
    draws: Draws,
    dropout_key: DropoutKey = None,
  ) -> Float[Array, "B T D"]:
    """Hidden states of the tokens of a batch of `UL2`."""
    x = self.embed(batch["tokens"])
    stack_key = None
    if dropout_key is not None:
      embedding_key, stack_key = jax.random.split(dropout_key)
      x = self.dropout(x, deterministic=False, rng=embedding_key)
    x = self.stack(
      x,
      draws["stack"],
      self.training_mask(batch),
      batch["positions"],
      dropout_key=stack_key,
    )
    return x

  def training_mask(self, batch: DeviceBatch) -> Mask:
    """Lets a token read what precedes it in its own example, and all inputs."""
    segment_ids, in_prefix = batch["segment_ids"], None
    if self.config.attention == "prefix":
      in_prefix = batch["in_prefix"] > 0
    return Mask(segment_ids, segment_ids, in_prefix, causal=True)

  def logits(
    self, hidden: Float[Array, "*batch D"]
  ) -> Float[Array, "*batch V"]:
    """Scores of the next token, in float32."""
    x = self.final_norm(hidden)
    logits: Array = (
      self.token_embedding.attend(x) if self.config.tied_head else self.head(x)
    )
    return logits

  def __call__(self, batch: DeviceBatch, draws: Draws) -> Float[Array, "B T V"]:
    """Logits of the token after each token of a batch."""
    return self.logits(self.hidden(batch, draws))

  def extend(
    self,
    tokens: Int[Array, "B T"],
    path: LayerPath,
    cache: Cache,
    mask: Mask,
    positions: Int[Array, "B T"],
  ) -> tuple[Float[Array, "B T D"], Cache]:
    """Hidden states of T more tokens; they take the next slots of the cache."""
    slot = cache["slot"]
    x, kept = self.stack.extend(
      self.embed(tokens), path, cache["layers"], mask, positions, slot
    )
    return x, cache | {"layers": kept, "slot": slot + tokens.shape[1]}
