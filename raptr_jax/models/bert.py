"""BERT for masked language modelling, over any path of its layers.

With `norm="post"`, `activation="gelu"` and `layer_norm_epsilon=1e-12` this *is*
the original BERT (arXiv 1810.04805); `exchange/bert.py` maps its tensors to
ours. `norm="pre"` instead normalises the input of each branch, and the output
of the stack.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from raptr_jax.contracts import (
  AnyBatch,
  DeviceBatch,
  Draws,
  DropoutKey,
  LayerDraw,
  LayerPath,
  Metrics,
  Params,
  StepFlops,
)
from raptr_jax.models import flops, layers, losses
from raptr_jax.models.checks import (
  check_batch,
  check_draws,
  check_dropout_key,
)
from raptr_jax.models.compute import ComputeConfig, check_choices
from raptr_jax.models.masked_stack import MaskedStack, full_path
from raptr_jax.models.masks import Mask
from raptr_jax.models.multi_head_attention import SelfAttention

READ = {  # What is read of a batch, by its axes.
  "tokens": "B T",
  "segment_ids": "B T",
  "positions": "B T",
  "target_positions": "B P",
}
LEARNED = {"targets": "B P", "target_weights": "B P"}


@dataclasses.dataclass(frozen=True)
class BertConfig(ComputeConfig):
  """Sizes and variants of a BERT; `ComputeConfig` has the others.

  Attributes:
    vocab_size: V.
    num_layers: L.
    embed_dim: D, divisible by `num_heads`.
    num_heads: H.
    mlp_dim: F; 4 D if None.
    max_length: number of learned positions.
    num_token_types: number of learned token types.
    norm: "post" (the original's) or "pre".
    activation: "gelu" (exact, the original's) or "gelu_tanh".
    layer_norm_epsilon: added to the variance.
    init_stddev: of the truncated normal that initialises all kernels.
    pooler: whether to add the dense layer on [CLS] that classifiers read.
  """

  vocab_size: int
  num_layers: int
  embed_dim: int
  num_heads: int
  mlp_dim: int | None = None
  max_length: int = 512
  num_token_types: int = 2
  norm: str = "post"
  activation: str = "gelu"
  layer_norm_epsilon: float = 1e-12
  init_stddev: float = 0.02
  pooler: bool = False
  dropout_rate: float = dataclasses.field(default=0.1, kw_only=True)

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.embed_dim % self.num_heads:
      raise ValueError(
        f"bert.BertConfig.embed_dim = {self.embed_dim}, expected a multiple of"
        f" bert.BertConfig.num_heads = {self.num_heads}."
      )
    check_choices(
      self, norm=("post", "pre"), activation=tuple(layers.ACTIVATIONS)
    )

  @property
  def mlp_width(self) -> int:
    return self.mlp_dim or 4 * self.embed_dim

  def kernel_init(self) -> layers.Initializer:
    return layers.truncated_normal(self.init_stddev)


class BertBlock(nn.Module):
  """Attention and MLP with their residuals.

  Pre-norm scales the sum of both branches once: x + scale (attention + MLP).
  Post-norm has no such sum, and scales each branch before its norm.
  """

  config: BertConfig

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    scale: Float[Array, ""],
    mask: Mask,
    deterministic: bool,
  ) -> Float[Array, "B T D"]:
    config = self.config
    init = config.kernel_init()
    attention = SelfAttention(
      config.num_heads,
      init,
      config.attention_dropout,
      config.attention_kernel,
      name="attention",
    )
    mlp = layers.Mlp(config.mlp_width, config.activation, init, name="mlp")
    post = config.norm == "post"
    norm = functools.partial(
      layers.LayerNorm,
      config.layer_norm_epsilon,
      config.stream_dtype if post else config.dtype,
    )
    attention_norm = norm(name="attention_norm")
    mlp_norm = norm(name="mlp_norm")
    dropout = nn.Dropout(config.dropout_rate, deterministic=deterministic)
    out: Array
    if post:
      narrow = x.astype(config.dtype)
      mixed = dropout(attention(narrow, mask, deterministic))
      x = attention_norm(x + scale * mixed)
      changed = dropout(mlp(x.astype(config.dtype)))
      out = mlp_norm(x + scale * changed)
    else:
      mixed = dropout(attention(attention_norm(x), mask, deterministic))
      out = x + scale * (mixed + dropout(mlp(mlp_norm(x + mixed))))
    return out


class BertEncoder(nn.Module):
  """Embeddings and stack: what all BERTs share, whatever they predict.

  Attributes:
    config: sizes and variants.
    block: `block(config, parent=None)` builds a layer; see `BertMaskedLM`.
  """

  config: BertConfig
  block: Callable[..., nn.Module] = BertBlock

  def setup(self) -> None:
    config = self.config
    embedding = functools.partial(
      layers.Embedding,
      features=config.embed_dim,
      embedding_init=config.kernel_init(),
      dtype=config.stream_dtype,
    )
    self.token_embedding = embedding(config.vocab_size, axis="vocab")
    self.position_embedding = embedding(config.max_length, axis="position")
    self.type_embedding = embedding(config.num_token_types, axis="token_type")
    self.embedding_norm = layers.LayerNorm(config.layer_norm_epsilon)
    self.dropout = nn.Dropout(config.dropout_rate)
    self.stack = MaskedStack(
      functools.partial(self.block, config), config.num_layers, config.remat
    )
    if config.norm == "pre":
      self.final_norm = layers.LayerNorm(config.layer_norm_epsilon)
    if config.pooler:
      self.pooler = _square(config)

  def encode(
    self,
    batch: DeviceBatch,
    draw: LayerDraw | LayerPath,
    dropout_key: DropoutKey,
  ) -> Float[Array, "B T D"]:
    """Hidden states of a batch.

    Reads the features `tokens`, `segment_ids` and `positions` [B, T], and
    `token_types` [B, T], which are all 0 if missing.
    """
    tokens = batch["tokens"]
    if tokens.shape[1] > self.config.max_length:
      raise ValueError(
        f"Sequences have {tokens.shape[1]} tokens (TASK_FEATURE_LENGTHS),"
        " expected at most bert.BertConfig.max_length ="
        f" {self.config.max_length}."
      )
    token_types = batch.get("token_types", jnp.zeros_like(tokens))
    x = self.token_embedding(tokens)
    x = x + self.position_embedding(batch["positions"])
    x = self.embedding_norm(x + self.type_embedding(token_types))
    stack_key = None
    if dropout_key is not None:
      embedding_key, stack_key = jax.random.split(dropout_key)
      x = self.dropout(x, deterministic=False, rng=embedding_key)
    mask = Mask(batch["segment_ids"], batch["segment_ids"])
    x = self.stack(x, draw, mask, dropout_key=stack_key)
    x = self.final_norm(x) if self.config.norm == "pre" else x
    return x.astype(self.config.dtype)

  def pool(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B D"]:
    """Represents each row by its first token, [CLS]."""
    return jnp.tanh(self.pooler(hidden[:, 0]))


class Bert(BertEncoder):
  """The encoder, and the head that predicts masked tokens."""

  def setup(self) -> None:
    super().setup()
    config = self.config
    self.head_dense = _square(config)
    self.head_norm = layers.LayerNorm(config.layer_norm_epsilon)
    self.head_bias = self.param(
      "head_bias",
      layers.with_axes(nn.initializers.zeros, ("vocab",)),
      (config.vocab_size,),
      jnp.float32,
    )

  def predict(
    self, hidden: Float[Array, "B T D"], target_positions: Int[Array, "B P"]
  ) -> Float[Array, "B P V"]:
    """Logits at the target positions only."""
    x = jnp.take_along_axis(hidden, target_positions[..., None], axis=1)
    x = layers.ACTIVATIONS[self.config.activation](self.head_dense(x))
    x = self.head_norm(x)
    logits: Array = self.token_embedding.attend(x)
    return logits + layers.last_axis(self.head_bias, logits.ndim)

  def __call__(
    self,
    batch: DeviceBatch,
    draw: LayerDraw | LayerPath,
    dropout_key: DropoutKey = None,
  ) -> Float[Array, "B P V"]:
    """Logits of the masked tokens of a batch of `MaskedLM`."""
    hidden = self.encode(batch, draw, dropout_key)
    if self.config.pooler and self.is_initializing():
      self.pool(hidden)
    return self.predict(hidden, batch["target_positions"])


def _square(config: BertConfig) -> layers.Dense:
  """A dense layer of the model's width."""
  return layers.Dense(
    (config.embed_dim,), ("embed", "embed_out"), config.kernel_init()
  )


@dataclasses.dataclass(frozen=True)
class BertMaskedLM:
  """A `contracts.Model`: BERT, trained to restore masked tokens.

  Attributes:
    config: sizes and variants.
    block: `block(config, parent=None)` builds a layer, such as `BertBlock` or
      another module that is called as `BertBlock` is; see `MaskedStack`.
  """

  config: BertConfig
  block: Callable[..., nn.Module] = BertBlock

  @property
  def stacks(self) -> dict[str, int]:
    return {"stack": self.config.num_layers}

  @property
  def module(self) -> Bert:
    return Bert(self.config, self.block)

  def init(self, key: Key[Array, ""]) -> Params:
    row = jnp.zeros((1, 1), jnp.int32)
    names = ("tokens", "segment_ids", "positions", "target_positions")
    batch, path = dict.fromkeys(names, row), full_path(self.config.num_layers)
    return self.module.init(key, batch, path)["params"]

  def loss_fn(
    self,
    params: Params,
    batch: DeviceBatch,
    draws: Draws,
    dropout_key: DropoutKey,
  ) -> tuple[Float[Array, ""], Metrics]:
    """Cross entropy of the masked tokens, summed, in nats; see `Model`."""
    self._check(batch, READ | LEARNED, draws)
    check_dropout_key(dropout_key)
    if not self.config.has_dropout:
      dropout_key = None
    logits = layers.apply(
      self.module, params, batch, draws["stack"], dropout_key
    )
    return losses.cross_entropy(
      logits, batch["targets"], batch["target_weights"]
    )

  def score_batch(
    self, params: Params, batch: DeviceBatch, draws: Draws
  ) -> Float[Array, "B"]:
    """Log-likelihood of the masked tokens of each row, in nats."""
    self._check(batch, READ | LEARNED, draws)
    logits = self.logits(params, batch, draws)
    scores = losses.token_log_likelihood(logits, batch["targets"])
    return (scores * batch["target_weights"]).sum(-1)

  def logits(
    self, params: Params, batch: DeviceBatch, draws: Draws
  ) -> Float[Array, "B P V"]:
    """Scores of all tokens at the target positions of each row."""
    self._check(batch, READ, draws)
    logits: Array = layers.apply(self.module, params, batch, draws["stack"])
    return logits

  def _check(
    self, batch: DeviceBatch, features: Mapping[str, str], draws: Draws
  ) -> None:
    """Raises an error that names what is wrong with the arguments."""
    if "token_types" in batch:
      features = {**features, "token_types": "B T"}
    check_batch(batch, features, self)
    check_draws(draws, self.stacks)

  def step_flops(self, batch: AnyBatch) -> StepFlops:
    """FLOPs by kept layers; the head counts only predicted positions.

    Another `block` counts as `BertBlock`. If it computes other products, count
    them in a subclass.
    """
    config = self.config
    size, length = batch["tokens"].shape
    width = config.embed_dim
    predicted = math.prod(batch["targets"].shape)
    block = flops.block_flops(
      batch=size, length=length, width=width, mlp_dim=config.mlp_width
    )
    head = flops.product(predicted, width, width + config.vocab_size)
    return StepFlops({"stack": block}, head)
