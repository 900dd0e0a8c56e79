"""T5.1.1, an encoder-decoder, over any path of the layers of either stack.

Its attention, normalisation, initialisation and sizes are those of T5 (arXiv
1910.10683) with the changes of version 1.1: RMSNorm before each branch, a gated
GELU, no biases, an output layer of its own, attention that is not divided by
sqrt(K) (the query's initialisation is), and relative positions in buckets,
shared by all layers of a stack. Encoder and decoder are stacks of their own,
"encoder" and "decoder", each with a draw of its own.

One departure: there is no dropout between the decoder's last norm and the output
layer.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from raptr_jax import flops
from raptr_jax.contracts import Draws, LayerPath, Params
from raptr_jax.models import layers
from raptr_jax.models.language_model import LanguageModel, check_loss
from raptr_jax.models.masked_stack import MaskedStack, full_path
from raptr_jax.models.relative_positions import RelativePositions

START = 0  # The decoder's first input, as T5 has it: the id of padding.


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig:
  """Sizes and variants of an encoder-decoder.

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
    max_distance: from which on all distances share a bucket.
    norm_epsilon: added to the mean square.
    dropout_rate: of embeddings, attention weights, MLP and residual branches;
      T5.1.1 has none in pretraining.
    z_loss: factor on the squared log of the softmax's normaliser.
    label_smoothing: share of the target that is spread over the vocabulary.
    logits_chunk: tokens whose logits exist at once; None for all of a batch.
    dtype: compute dtype; parameters, norms and softmax are float32.
    remat: "full" or "none", see `MaskedStack`.
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
  dropout_rate: float = 0.0
  z_loss: float = 0.0
  label_smoothing: float = 0.0
  logits_chunk: int | None = None
  dtype: str = "float32"
  remat: str = "full"

  def __post_init__(self):
    layers.check_choices(
      self,
      activation=tuple(layers.ACTIVATIONS),
      dtype=("float32", "bfloat16"),
      remat=("full", "none"),
    )
    check_loss(self)
    if not 4 <= self.position_buckets < 2 * self.max_distance:
      raise ValueError(
        f"EncoderDecoderConfig.position_buckets = {self.position_buckets},"
        f" expected 4 to {2 * self.max_distance - 1}: less than twice"
        f" EncoderDecoderConfig.max_distance = {self.max_distance}."
      )

  def attention(self) -> layers.Attention:
    """Self- or cross-attention as T5 has it."""
    # The query's kernel makes up for what the logits are not divided by.
    return layers.Attention(
      features=self.embed_dim,
      num_heads=self.num_heads,
      head_dim=self.head_dim,
      num_kv_heads=self.num_heads,
      dropout_rate=self.dropout_rate,
      query_init=layers.fan_in(1 / self.head_dim),
      scaled=False,
    )

  def mlp(self) -> layers.GatedMlp:
    return layers.GatedMlp(self.mlp_dim, self.activation, self.dropout_rate)

  def norm(self) -> layers.RMSNorm:
    return layers.RMSNorm(self.norm_epsilon)


class EncoderBlock(nn.Module):
  """x + scale (self-attention + MLP)."""

  config: EncoderDecoderConfig

  def setup(self):
    """Parts by the names that their parameters have in a checkpoint."""
    config = self.config
    self.attention_norm = config.norm()
    self.attention = config.attention()
    self.mlp_norm = config.norm()
    self.mlp = config.mlp()
    self.dropout = nn.Dropout(config.dropout_rate)

  def __call__(
    self,
    x: Float[Array, "B S D"],
    scale: Float[Array, ""],
    bias: Float[Array, "B 1 S S"],
    position_bias: Float[Array, "1 H S S"],
    deterministic: bool,
  ) -> Float[Array, "B S D"]:
    normed = self.attention_norm(x)
    mixed = self.attention.attend(
      normed,
      *self.attention.keys_values(normed),
      bias,
      position_bias,
      deterministic=deterministic,
    )
    mixed = self.dropout(mixed, deterministic)
    changed = self.mlp(self.mlp_norm(x + mixed), deterministic)
    return x + scale * (mixed + self.dropout(changed, deterministic))


class DecoderBlock(nn.Module):
  """x + scale (self-attention + cross-attention + MLP)."""

  config: EncoderDecoderConfig

  def setup(self):
    """Parts by the names that their parameters have in a checkpoint."""
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
    x: Float[Array, "B T D"],
    scale: Float[Array, ""],
    encoded: Float[Array, "B S D"],
    bias: Float[Array, "B 1 T T"],
    position_bias: Float[Array, "1 H T T"],
    cross_bias: Float[Array, "B 1 T S"],
    deterministic: bool,
  ) -> Float[Array, "B T D"]:
    normed = self.attention_norm(x)
    keys_values = self.attention.keys_values(normed)
    biases = (bias, position_bias)
    source = self.cross_attention.keys_values(encoded)
    return self._add(
      x, scale, normed, keys_values, biases, source, cross_bias, deterministic
    )

  def source(
    self, encoded: Float[Array, "B S D"]
  ) -> tuple[Float[Array, "B H S K"], Float[Array, "B H S K"]]:
    """Keys and values of the encoder's output: all that is read of it."""
    return self.cross_attention.keys_values(encoded)

  def extend(
    self,
    x: Float[Array, "B T D"],
    scale: Float[Array, ""],
    cache: dict[str, Any],
    bias: Float[Array, "1 1 T S"],
    position_bias: Float[Array, "1 H T S"],
    cross_bias: Float[Array, "B 1 T S"],
    slot: Int[Array, ""],
  ) -> tuple[Float[Array, "B T D"], dict[str, Any]]:
    """Reads T tokens whose keys and values go to the slots from `slot` on."""
    normed = self.attention_norm(x)
    new = self.attention.keys_values(normed)
    cache = layers.write_slots(cache, new, slot)
    keys_values = (cache["keys"], cache["values"])
    biases = (bias, position_bias)
    source = cache["source"]
    x = self._add(
      x, scale, normed, keys_values, biases, source, cross_bias, True
    )
    return x, cache

  def _add(
    self, x, scale, normed, keys_values, biases, source, cross_bias, off
  ):
    """X and its three branches; `off` switches dropout off."""
    mixed = self.attention.attend(
      normed, *keys_values, *biases, deterministic=off
    )
    branches = self.dropout(mixed, off)
    normed = self.cross_attention_norm(x + branches)
    crossed = self.cross_attention.attend(
      normed, *source, cross_bias, deterministic=off
    )
    branches = branches + self.dropout(crossed, off)
    changed = self.mlp(self.mlp_norm(x + branches), off)
    return x + scale * (branches + self.dropout(changed, off))


class EncoderDecoder(nn.Module):
  """Embedding, two stacks, and output layer."""

  config: EncoderDecoderConfig

  def setup(self):
    """Parts by the names that their parameters have in a checkpoint."""
    config = self.config
    self.token_embedding = layers.Embedding(
      config.vocab_size,
      config.embed_dim,
      axis="vocab",
      embedding_init=nn.initializers.normal(1.0),
      dtype=config.dtype,
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
    self.encoder = MaskedStack(
      functools.partial(EncoderBlock, config),
      config.num_encoder_layers,
      config.remat,
    )
    self.decoder = MaskedStack(
      functools.partial(DecoderBlock, config),
      config.num_decoder_layers,
      config.remat,
    )
    self.encoder_norm = config.norm()
    self.decoder_norm = config.norm()
    self.dropout = nn.Dropout(config.dropout_rate)
    self.head = layers.Dense(
      (config.vocab_size,), ("embed", "vocab"), layers.fan_in(), False
    )

  def encode(
    self,
    tokens: Int[Array, "B S"],
    segment_ids: Int[Array, "B S"],
    draws: Draws,
    dropout_key: jax.Array | None = None,
  ) -> Float[Array, "B S D"]:
    """What the decoder reads of the inputs."""
    keys = _dropout_keys(dropout_key)
    x = self._dropped(self.token_embedding(tokens), keys[0])
    places = jnp.arange(tokens.shape[1])
    position_bias = self.encoder_positions(places, places)
    bias = layers.segment_bias(segment_ids)
    x = self.encoder(
      x, draws["encoder"], bias, position_bias, dropout_key=keys[1]
    )
    return self._dropped(self.encoder_norm(x), keys[2])

  def hidden(
    self,
    batch: Mapping[str, Array],
    draws: Draws,
    dropout_key: jax.Array | None = None,
  ) -> Float[Array, "B T D"]:
    """The decoder's hidden states for a batch of `tasks.ul2`."""
    keys = (None, None)
    if dropout_key is not None:
      keys = tuple(jax.random.split(dropout_key))
    source_ids, segment_ids = batch["encoder_segment_ids"], batch["segment_ids"]
    encoded = self.encode(batch["encoder_tokens"], source_ids, draws, keys[0])
    keys = _dropout_keys(keys[1])
    x = self._dropped(self.token_embedding(batch["tokens"]), keys[0])
    places = jnp.arange(x.shape[1])
    causal = layers.mask_bias(places <= places[:, None])
    return self.decoder(
      x,
      draws["decoder"],
      encoded,
      layers.segment_bias(segment_ids) + causal,
      self.decoder_positions(places, places),
      layers.segment_bias(segment_ids, source_ids),
      dropout_key=keys[1],
    )

  def logits(
    self, hidden: Float[Array, "*batch D"]
  ) -> Float[Array, "*batch V"]:
    """Scores of the targets, in float32."""
    return self.head(self.decoder_norm(hidden)).astype(jnp.float32)

  def __call__(
    self, batch: Mapping[str, Array], draws: Draws
  ) -> Float[Array, "B T V"]:
    """Logits of the targets of a batch."""
    return self.logits(self.hidden(batch, draws))

  def source(
    self, encoded: Float[Array, "B S D"], path: LayerPath
  ) -> tuple[Float[Array, "k B H S K"], Float[Array, "k B H S K"]]:
    """What the decoder's layers keep of the encoder's output."""
    return self.decoder.each(path, "source", encoded)

  def extend(
    self,
    tokens: Int[Array, "B"],
    path: LayerPath,
    cache: dict[str, Any],
  ) -> tuple[Float[Array, "B D"], dict[str, Any]]:
    """The decoder's hidden state of one more token."""
    slot = cache["slot"]
    slots = jnp.arange(cache["layers"]["keys"].shape[3])
    x, kept = self.decoder.extend(
      self.token_embedding(tokens[:, None]),
      path,
      cache["layers"],
      layers.mask_bias(slots <= slot)[None, None, None],
      self.decoder_positions(slot[None], slots),
      layers.mask_bias(cache["prompt"][0, :, None, None]),
      slot,
    )
    return x[:, 0], cache | {"layers": kept, "slot": slot + 1}

  def _dropped(self, x, key):
    return self.dropout(x, deterministic=key is None, rng=key)


def _dropout_keys(key: jax.Array | None) -> tuple[Any, ...]:
  """Keys for embeddings, layers and output of a stack."""
  return (None,) * 3 if key is None else tuple(jax.random.split(key, 3))


@dataclasses.dataclass(frozen=True)
class EncoderDecoderLM(LanguageModel):
  """A `contracts.Generator`: T5.1.1 as a language model."""

  config: EncoderDecoderConfig

  @property
  def stacks(self) -> dict[str, int]:
    config = self.config
    return {
      "encoder": config.num_encoder_layers,
      "decoder": config.num_decoder_layers,
    }

  @property
  def module(self) -> EncoderDecoder:
    return EncoderDecoder(self.config)

  def init(self, key: jax.Array) -> Params:
    row = jnp.zeros((1, 1), jnp.int32)
    names = ("encoder_tokens", "encoder_segment_ids", "tokens", "segment_ids")
    draws = {name: full_path(size) for name, size in self.stacks.items()}
    return self.module.init(key, dict.fromkeys(names, row), draws)["params"]

  def step_flops(self, batch: Mapping[str, Any]) -> flops.StepFlops:
    """FLOPs by kept layers; the head is counted at every position."""
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

    def mlp(tokens):
      return flops.product(size * tokens, config.embed_dim, 3 * config.mlp_dim)

    decoder = (
      attention(length=length, source_length=length)
      + attention(length=length, source_length=source)
      + mlp(length)
    )
    encoder = attention(length=source, source_length=source) + mlp(source)
    head = flops.product(size * length, config.embed_dim, config.vocab_size)
    return flops.StepFlops({"encoder": encoder, "decoder": decoder}, head)

  def start(
    self,
    params: Params,
    prompts: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    paths: Mapping[str, LayerPath],
    max_new_tokens: int,
  ) -> tuple[Float[Array, "B V"], dict[str, Any]]:
    """Encodes prompts, and begins to write; see `contracts.Generator`."""
    config, path = self.config, paths["decoder"]
    apply = functools.partial(self.module.apply, {"params": params})
    known = jnp.arange(prompts.shape[1]) < lengths[:, None]
    encoded = apply(prompts, known.astype(jnp.int32), paths, method="encode")
    batch = len(prompts)
    shape = (
      len(path.indices),
      batch,
      config.num_heads,
      max_new_tokens,
      config.head_dim,
    )
    cache = {
      "layers": {
        "keys": jnp.zeros(shape, config.dtype),
        "values": jnp.zeros(shape, config.dtype),
        "source": apply(encoded, path, method="source"),
      },
      "slot": jnp.zeros((), jnp.int32),
      "prompt": known[None],
    }
    first = jnp.full(batch, START, jnp.int32)
    return self.extend(params, first, cache, paths)

  def extend(
    self,
    params: Params,
    tokens: Int[Array, "B"],
    cache: dict[str, Any],
    paths: Mapping[str, LayerPath],
  ) -> tuple[Float[Array, "B V"], dict[str, Any]]:
    """Takes a token more; see `contracts.Generator`."""
    extended: Any = self.module.apply(
      {"params": params}, tokens, paths["decoder"], cache, method="extend"
    )
    hidden, cache = extended
    return self._head(params)(hidden), cache
