"""What all families of language models share: loss and scores."""

import abc
from collections.abc import Mapping
from typing import ClassVar, Protocol

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from raptr_jax.contracts import DeviceBatch, Draws, DropoutKey, Metrics, Params
from raptr_jax.models import losses
from raptr_jax.models.checks import (
  check_batch,
  check_draws,
  check_dropout_key,
)
from raptr_jax.models.layers import apply

PROMPTS = {"prompts": "B T", "lengths": "B"}  # Arguments of `start`, by axes.


class LossConfig(Protocol):
  """What the loss of a language model depends on.

  Attributes:
    has_dropout: whether anything is dropped.
    z_loss: factor on the squared log of the softmax's normaliser.
    label_smoothing: share of the target that is spread over the vocabulary.
    logits_chunk: tokens with logits in memory at once; None for all of a batch.
  """

  @property
  def has_dropout(self) -> bool: ...

  @property
  def z_loss(self) -> float: ...

  @property
  def label_smoothing(self) -> float: ...

  @property
  def logits_chunk(self) -> int | None: ...


def check_loss(config: LossConfig) -> None:
  """Raises ValueError if the loss cannot be computed with this config."""
  if config.logits_chunk is not None and config.logits_chunk < 1:
    raise ValueError(
      f"{type(config).__name__}.logits_chunk = {config.logits_chunk}"
      " (LOGITS_CHUNK), expected at least 1, or None for all tokens at once."
    )


class LanguageModel(abc.ABC):
  """The part of a `contracts.Model` that is the same for every family.

  A family adds a module with the methods `hidden(batch, draws, dropout_key)`,
  for the last hidden states of `batch["targets"]`, and `logits(hidden)`.

  Attributes:
    config: what the loss depends on.
    features: what is read of a batch, by its axes.
    stacks: L of each stack.
    feature_hint: what to do if a batch lacks a feature.
  """

  config: LossConfig
  feature_hint: ClassVar[str] = ""

  @property
  @abc.abstractmethod
  def features(self) -> Mapping[str, str]:
    """What is read of a batch, by its axes."""

  @property
  @abc.abstractmethod
  def stacks(self) -> Mapping[str, int]:
    """L of each stack."""

  @property
  @abc.abstractmethod
  def module(self) -> nn.Module:
    """The network of this family."""

  def loss_fn(
    self,
    params: Params,
    batch: DeviceBatch,
    draws: Draws,
    dropout_key: DropoutKey,
  ) -> tuple[Float[Array, ""], Metrics]:
    """Cross entropy of the targets, summed, in nats; see `contracts.Model`."""
    check_batch(batch, self.features, self, self.feature_hint)
    check_draws(draws, self.stacks)
    check_dropout_key(dropout_key)
    config = self.config
    if not config.has_dropout:
      dropout_key = None
    return losses.head_cross_entropy(
      self._logits,
      self._outside_stacks(params),
      self._hidden(params, batch, draws, dropout_key),
      batch["targets"],
      batch["target_weights"],
      chunk_size=config.logits_chunk,
      z_loss=config.z_loss,
      label_smoothing=config.label_smoothing,
    )

  def score_batch(
    self, params: Params, batch: DeviceBatch, draws: Draws
  ) -> Float[Array, "B"]:
    """Log-likelihood of the targets of each row, in nats."""
    scores, _ = self.score_and_compare(params, batch, draws)
    return scores

  def score_and_compare(
    self, params: Params, batch: DeviceBatch, draws: Draws
  ) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
    """`score_batch`, and whether each target of a row is the likeliest token.

    If it is, the model would have written these targets greedily.
    """
    check_batch(batch, self.features, self, self.feature_hint)
    check_draws(draws, self.stacks)
    scores, likeliest = losses.head_log_likelihood(
      self._logits,
      self._outside_stacks(params),
      self._hidden(params, batch, draws, None),
      batch["targets"],
      chunk_size=self.config.logits_chunk,
    )
    weights = batch["target_weights"]
    return (scores * weights).sum(-1), (likeliest | (weights == 0)).all(-1)

  def _hidden(
    self,
    params: Params,
    batch: DeviceBatch,
    draws: Draws,
    dropout_key: DropoutKey,
  ) -> Float[Array, "B T D"]:
    hidden: Array = apply(
      self.module, params, batch, draws, dropout_key, method="hidden"
    )
    return hidden

  def _outside_stacks(self, params: Params) -> Params:
    """Parameters without those of the layers: all that logits may need."""
    return {name: x for name, x in params.items() if name not in self.stacks}

  def _logits(
    self, params: Params, hidden: Float[Array, "*batch D"]
  ) -> Float[Array, "*batch V"]:
    logits: Array = apply(self.module, params, hidden, method="logits")
    return logits
