"""BERT with a head for labels, to be fine-tuned (arXiv 1810.04805, section 4).

The encoder is that of a pretrained BERT, under the same names, so that its
parameters fit. The head starts afresh, and so does the pooler unless the model
has one.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

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
from raptr_jax.models.bert import BertBlock, BertConfig, BertEncoder
from raptr_jax.models.checks import check_batch, check_draws, check_dropout_key
from raptr_jax.models.masked_stack import full_path

READ = {
  "tokens": "B T",
  "segment_ids": "B T",
  "positions": "B T",
  "token_types": "B T",
}
LEARNED = {"targets": "B P", "target_weights": "B P"}
NO_LOGIT = -1e9  # Of a position that holds padding.


class BertWithHead(BertEncoder):
  """The encoder, and a dense layer on [CLS], pooled, or on every token.

  Attributes:
    outputs: width of the head.
    per_token: whether each token has its own outputs.
  """

  outputs: int = 1
  per_token: bool = False

  def setup(self) -> None:
    super().setup()
    self.label_head = layers.Dense(
      (self.outputs,), ("embed", "label"), self.config.kernel_init()
    )

  def __call__(
    self,
    batch: DeviceBatch,
    draw: LayerDraw | LayerPath,
    dropout_key: DropoutKey = None,
  ) -> Float[Array, "B *T outputs"]:
    """The outputs of each row, or of each of its tokens."""
    head_key = None
    if dropout_key is not None:
      dropout_key, head_key = jax.random.split(dropout_key)
    hidden = self.encode(batch, draw, dropout_key)
    if not self.per_token:
      hidden = self.pool(hidden)
      if head_key is not None:
        hidden = self.dropout(hidden, deterministic=False, rng=head_key)
    outputs: Array = self.label_head(hidden)
    return outputs.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class BertForLabels(abc.ABC):
  """A `contracts.Model` that reads a text, or two, and predicts a label.

  Batches have the features `tokens`, `segment_ids`, `positions` and
  `token_types` [B, T], and `targets` and `target_weights` [B, P].

  Attributes:
    config: sizes and variants, those of the pretrained model.
    block: see `bert.BertMaskedLM`.
  """

  config: BertConfig
  block: Callable[..., nn.Module] = BertBlock
  per_token: ClassVar[bool] = False

  @property
  @abc.abstractmethod
  def outputs(self) -> int:
    """Width of the head."""

  @abc.abstractmethod
  def _losses(
    self, outputs: Array, batch: DeviceBatch
  ) -> tuple[Float[Array, "B P"], Float[Array, "B P"]]:
    """Loss of each target, and 1 if it is predicted, else 0."""

  @property
  def stacks(self) -> dict[str, int]:
    return {"stack": self.config.num_layers}

  @property
  def module(self) -> BertWithHead:
    pooler = not self.per_token
    return BertWithHead(
      dataclasses.replace(self.config, pooler=pooler),
      self.block,
      self.outputs,
      self.per_token,
    )

  def init(self, key: Key[Array, ""]) -> Params:
    batch = dict.fromkeys(READ, jnp.zeros((1, 1), jnp.int32))
    path = full_path(self.config.num_layers)
    return self.module.init(key, batch, path)["params"]

  def loss_fn(
    self,
    params: Params,
    batch: DeviceBatch,
    draws: Draws,
    dropout_key: DropoutKey,
  ) -> tuple[Float[Array, ""], Metrics]:
    """The loss, summed over targets; see `contracts.Model`."""
    check_dropout_key(dropout_key)
    if not self.config.has_dropout:
      dropout_key = None
    outputs = self._outputs(params, batch, draws, dropout_key)
    loss, hits = self._losses(outputs, batch)
    weights = batch["target_weights"]
    total = (loss * weights).sum()
    return total, {
      "loss": total,
      "accuracy": (hits * weights).sum(),
      "weight": weights.sum(),
    }

  def score_batch(
    self, params: Params, batch: DeviceBatch, draws: Draws
  ) -> Float[Array, "B"]:
    """Minus the loss of each row."""
    loss, _ = self._losses(self._outputs(params, batch, draws), batch)
    return -(loss * batch["target_weights"]).sum(-1)

  def predict(
    self, params: Params, batch: DeviceBatch, draws: Draws
  ) -> Float[Array, "B ..."]:
    """Outputs of a batch, which need not have targets; float32.

    Of each row [B, outputs], or of each of its tokens [B, T, outputs].
    """
    check_batch(batch, READ, self)
    check_draws(draws, self.stacks)
    found: Array = layers.apply(self.module, params, batch, draws["stack"])
    return found

  def step_flops(self, batch: AnyBatch) -> StepFlops:
    """FLOPs by kept layers, and those of the head."""
    size, length = batch["tokens"].shape
    width = self.config.embed_dim
    block = flops.block_flops(
      batch=size, length=length, width=width, mlp_dim=self.config.mlp_width
    )
    if self.per_token:
      head = flops.product(size * length, width, self.outputs)
    else:
      head = flops.product(size, width, width + self.outputs)
    return StepFlops({"stack": block}, head)

  def _outputs(
    self,
    params: Params,
    batch: DeviceBatch,
    draws: Draws,
    dropout_key: DropoutKey = None,
  ) -> Array:
    check_batch(batch, READ | LEARNED, self)
    check_draws(draws, self.stacks)
    found: Array = layers.apply(
      self.module, params, batch, draws["stack"], dropout_key
    )
    return found


@dataclasses.dataclass(frozen=True)
class BertClassifier(BertForLabels):
  """Predicts a class; `targets` [B, 1] are their numbers.

  Attributes:
    num_classes: at least 2.
  """

  num_classes: int = 2

  @property
  def outputs(self) -> int:
    return self.num_classes

  def _losses(
    self, outputs: Array, batch: DeviceBatch
  ) -> tuple[Float[Array, "B P"], Float[Array, "B P"]]:
    likelihood = losses.token_log_likelihood(outputs[:, None], batch["targets"])
    hits = outputs.argmax(-1)[:, None] == batch["targets"]
    return -likelihood, hits.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class BertRegressor(BertForLabels):
  """Predicts a number; `targets` [B, 1] are floats.

  The loss is the squared error. A prediction counts as right, for `accuracy`,
  if it is off by less than 0.5.
  """

  @property
  def outputs(self) -> int:
    return 1

  def _losses(
    self, outputs: Array, batch: DeviceBatch
  ) -> tuple[Float[Array, "B P"], Float[Array, "B P"]]:
    error = outputs - batch["targets"]
    return error**2, (jnp.abs(error) < 0.5).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class BertSpanFinder(BertForLabels):
  """Predicts the first and the last token of an answer in its text.

  `targets` [B, 2] are positions in the row. Unlike the original, positions of
  padding cannot be chosen.
  """

  per_token: ClassVar[bool] = True

  @property
  def outputs(self) -> int:
    return 2

  def _losses(
    self, outputs: Array, batch: DeviceBatch
  ) -> tuple[Float[Array, "B P"], Float[Array, "B P"]]:
    scores = jnp.where(batch["segment_ids"][..., None] > 0, outputs, NO_LOGIT)
    scores = jnp.moveaxis(scores, 1, 2)  # [B, 2, T]
    likelihood = losses.token_log_likelihood(scores, batch["targets"])
    hits = scores.argmax(-1) == batch["targets"]
    return -likelihood, hits.astype(jnp.float32)
