"""A decoder-only language model, over any path of its layers.

Pre-norm blocks of RMSNorm (arXiv 1910.07467), rotary positions (2104.09864),
grouped-query attention (2305.13245) if asked for, and a gated MLP (2002.05202).
As a prefix language model it reads the inputs of an example in both directions,
and writes the targets from left to right; as a causal one it reads both so.
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


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes and variants of a decoder.

  Attributes:
    vocab_size: V.
    num_layers: L.
    embed_dim: D.
    num_heads: H.
    mlp_dim: F.
    num_kv_heads: heads of keys and values; H if None, else it divides H.
    head_dim: K; D / H if None. Even.
    attention: "prefix" (inputs are read in both directions) or "causal".
    activation: of the gate: "silu" (SwiGLU), "gelu" or "gelu_tanh".
    tied_head: whether the embedding is the output layer as well.
    rotary_base: of the rotary positions.
    norm_epsilon: added to the mean square.
    dropout_rate: of embeddings, attention weights, MLP and residual branches.
    z_loss: factor on the squared log of the softmax's normaliser.
    label_smoothing: share of the target that is spread over the vocabulary.
    logits_chunk: tokens whose logits exist at once; None for all of a batch.
    dtype: compute dtype; parameters, norms and softmax are float32.
    remat: "full" or "none", see `MaskedStack`.
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
  dropout_rate: float = 0.0
  z_loss: float = 0.0
  label_smoothing: float = 0.0
  logits_chunk: int | None = None
  dtype: str = "float32"
  remat: str = "full"

  def __post_init__(self):
    if self.head_dim is None and self.embed_dim % self.num_heads:
      raise ValueError(
        f"DecoderConfig.embed_dim = {self.embed_dim} is no multiple of"
        f" DecoderConfig.num_heads = {self.num_heads}: set head_dim."
      )
    if self.head_width % 2:
      raise ValueError(
        f"DecoderConfig.head_dim = {self.head_width}, expected an even number:"
        " rotary positions turn pairs."
      )
    if self.num_heads % self.kv_heads:
      raise ValueError(
        f"DecoderConfig.num_kv_heads = {self.num_kv_heads}, expected a divisor"
        f" of DecoderConfig.num_heads = {self.num_heads}."
      )
    layers.check_choices(
      self,
      attention=("prefix", "causal"),
      activation=tuple(layers.ACTIVATIONS),
      dtype=("float32", "bfloat16"),
      remat=("full", "none"),
    )
    check_loss(self)

  @property
  def head_width(self) -> int:
    return self.head_dim or self.embed_dim // self.num_heads

  @property
  def kv_heads(self) -> int:
    return self.num_kv_heads or self.num_heads


class DecoderBlock(nn.Module):
  """x + scale (attention + MLP)."""

  config: DecoderConfig

  def setup(self):
    """Parts by the names that their parameters have in a checkpoint."""
    config = self.config
    self.attention_norm = layers.RMSNorm(config.norm_epsilon)
    self.attention = layers.Attention(
      features=config.embed_dim,
      num_heads=config.num_heads,
      head_dim=config.head_width,
      num_kv_heads=config.kv_heads,
      dropout_rate=config.dropout_rate,
      rotary_base=config.rotary_base,
    )
    self.mlp_norm = layers.RMSNorm(config.norm_epsilon)
    self.mlp = layers.GatedMlp(
      config.mlp_dim, config.activation, config.dropout_rate
    )
    self.dropout = nn.Dropout(config.dropout_rate)

  def __call__(
    self,
    x: Float[Array, "B T D"],
    scale: Float[Array, ""],
    bias: Float[Array, "B 1 T T"],
    positions: Int[Array, "B T"],
    deterministic: bool,
  ) -> Float[Array, "B T D"]:
    normed = self.attention_norm(x)
    keys, values = self.attention.keys_values(normed, positions)
    mixed = self.attention.attend(
      normed,
      keys,
      values,
      bias,
      positions=positions,
      deterministic=deterministic,
    )
    return self._add(x, scale, mixed, deterministic)

  def extend(
    self,
    x: Float[Array, "B T D"],
    scale: Float[Array, ""],
    cache: dict[str, Float[Array, "B G S K"]],
    bias: Float[Array, "B 1 T S"],
    positions: Int[Array, "B T"],
    slot: Int[Array, ""],
  ) -> tuple[Float[Array, "B T D"], dict[str, Float[Array, "B G S K"]]]:
    """Reads T tokens whose keys and values go to the slots from `slot` on."""
    normed = self.attention_norm(x)
    new = self.attention.keys_values(normed, positions)
    cache = layers.write_slots(cache, new, slot)
    mixed = self.attention.attend(
      normed, cache["keys"], cache["values"], bias, positions=positions
    )
    return self._add(x, scale, mixed, True), cache

  def _add(self, x, scale, mixed, deterministic: bool):
    mixed = self.dropout(mixed, deterministic)
    changed = self.mlp(self.mlp_norm(x + mixed), deterministic)
    return x + scale * (mixed + self.dropout(changed, deterministic))


class Decoder(nn.Module):
  """Embedding, stack, and output layer."""

  config: DecoderConfig

  def setup(self):
    """Parts by the names that their parameters have in a checkpoint."""
    config = self.config
    # Inputs are multiplied by sqrt(D): both they and a tied layer's logits
    # have about unit variance at first.
    self.token_embedding = layers.Embedding(
      config.vocab_size,
      config.embed_dim,
      axis="vocab",
      embedding_init=nn.initializers.normal(config.embed_dim**-0.5),
      dtype=config.dtype,
    )
    self.dropout = nn.Dropout(config.dropout_rate)
    self.stack = MaskedStack(
      functools.partial(DecoderBlock, config), config.num_layers, config.remat
    )
    self.final_norm = layers.RMSNorm(config.norm_epsilon)
    if not config.tied_head:
      self.head = layers.Dense(
        (config.vocab_size,), ("embed", "vocab"), layers.fan_in(), False
      )

  def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Input of the first layer."""
    return self.token_embedding(tokens) * self.config.embed_dim**0.5

  def hidden(
    self,
    batch: Mapping[str, Array],
    draws: Draws,
    dropout_key: jax.Array | None = None,
  ) -> Float[Array, "B T D"]:
    """Hidden states of the tokens of a batch of `tasks.ul2`."""
    x = self.embed(batch["tokens"])
    stack_key = None
    if dropout_key is not None:
      embedding_key, stack_key = jax.random.split(dropout_key)
      x = self.dropout(x, deterministic=False, rng=embedding_key)
    bias = self.training_bias(batch)
    positions = batch["positions"]
    return self.stack(x, draws["stack"], bias, positions, dropout_key=stack_key)

  def training_bias(
    self, batch: Mapping[str, Array]
  ) -> Float[Array, "B 1 T T"]:
    """Each token reads its own example: what precedes it, and all inputs."""
    bias = layers.segment_bias(batch["segment_ids"])
    length = bias.shape[-1]
    allowed = jnp.tri(length, dtype=bool)[None, None]
    if self.config.attention == "prefix":
      allowed = allowed | (batch["in_prefix"] > 0)[:, None, None, :]
    return bias + layers.mask_bias(allowed)

  def logits(
    self, hidden: Float[Array, "*batch D"]
  ) -> Float[Array, "*batch V"]:
    """Scores of the next token, in float32."""
    x = self.final_norm(hidden)
    logits = (
      self.token_embedding.attend(x) if self.config.tied_head else self.head(x)
    )
    return logits.astype(jnp.float32)

  def __call__(
    self, batch: Mapping[str, Array], draws: Draws
  ) -> Float[Array, "B T V"]:
    """Logits of the token after each token of a batch."""
    return self.logits(self.hidden(batch, draws))

  def extend(
    self,
    tokens: Int[Array, "B T"],
    path: LayerPath,
    cache: dict[str, Any],
    bias: Float[Array, "B 1 T S"],
    positions: Int[Array, "B T"],
  ) -> tuple[Float[Array, "B T D"], dict[str, Any]]:
    """Hidden states of T more tokens, in the slots that come next."""
    slot = cache["slot"]
    x, kept = self.stack.extend(
      self.embed(tokens), path, cache["layers"], bias, positions, slot
    )
    return x, cache | {"layers": kept, "slot": slot + tokens.shape[1]}


@dataclasses.dataclass(frozen=True)
class DecoderLM(LanguageModel):
  """A `contracts.Generator`: a decoder as a language model."""

  config: DecoderConfig

  @property
  def stacks(self) -> dict[str, int]:
    return {"stack": self.config.num_layers}

  @property
  def module(self) -> Decoder:
    return Decoder(self.config)

  def init(self, key: jax.Array) -> Params:
    row = jnp.zeros((1, 1), jnp.int32)
    names = ("tokens", "segment_ids", "positions", "in_prefix")
    draws = {"stack": full_path(self.config.num_layers)}
    batch = dict.fromkeys(names, row)
    return self.module.init(key, batch, draws)["params"]

  def step_flops(self, batch: Mapping[str, Any]) -> flops.StepFlops:
    """FLOPs by kept layers; the head is counted at every position."""
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
    return flops.StepFlops({"stack": attention + mlp}, head)

  def start(
    self,
    params: Params,
    prompts: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    paths: Mapping[str, LayerPath],
    max_new_tokens: int,
  ) -> tuple[Float[Array, "B V"], dict[str, Any]]:
    """Reads prompts as inputs; see `contracts.Generator`.

    The prompts take slots 0 to T - 1, padding included, and new tokens those
    from T on in all rows alike; padding is never attended to.
    """
    config, path = self.config, paths["stack"]
    batch, length = prompts.shape
    slots = length + max_new_tokens
    shape = (
      len(path.indices),
      batch,
      config.kv_heads,
      slots,
      config.head_width,
    )
    cache: dict[str, Any] = {
      "layers": {
        name: jnp.zeros(shape, config.dtype) for name in ("keys", "values")
      },
      "slot": jnp.zeros((), jnp.int32),
      "prompt": (jnp.arange(slots) < lengths[:, None])[None],
      "length": lengths[None],
      "prompt_slots": jnp.asarray(length, jnp.int32),
    }
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    allowed = jnp.broadcast_to(
      cache["prompt"][0, :, None], (batch, length, slots)
    )
    if config.attention == "causal":
      allowed = allowed & jnp.tri(length, slots, dtype=bool)
    hidden, cache = self._extend(
      params, prompts, cache, path, allowed, positions
    )
    last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)
    return self._head(params)(last[:, 0]), cache

  def extend(
    self,
    params: Params,
    tokens: Int[Array, "B"],
    cache: dict[str, Any],
    paths: Mapping[str, LayerPath],
  ) -> tuple[Float[Array, "B V"], dict[str, Any]]:
    """Takes a token more; see `contracts.Generator`."""
    slots = jnp.arange(cache["prompt"].shape[-1])
    written = (slots >= cache["prompt_slots"]) & (slots <= cache["slot"])
    allowed = (cache["prompt"][0] | written)[:, None]
    positions = (
      cache["length"][0, :, None] + cache["slot"] - cache["prompt_slots"]
    )
    hidden, cache = self._extend(
      params, tokens[:, None], cache, paths["stack"], allowed, positions
    )
    return self._head(params)(hidden[:, 0]), cache

  def _extend(self, params, tokens, cache, path, allowed, positions) -> Any:
    bias = layers.mask_bias(allowed[:, None])
    return self.module.apply(
      {"params": params}, tokens, path, cache, bias, positions, method="extend"
    )
