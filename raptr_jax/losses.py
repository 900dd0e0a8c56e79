"""Losses as sums over targets, so that they add up over shards."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from raptr_jax.contracts import Metrics


def token_log_likelihood(
  logits: Float[Array, "*batch V"], targets: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
  """Log softmax(logits)[target] in nats, in float32."""
  logits = logits.astype(jnp.float32)
  # A comparison instead of an index: its gradient is no scatter, and it needs
  # no gather over devices where the vocabulary is sharded.
  hit = targets[..., None] == jnp.arange(logits.shape[-1])
  target_logit = jnp.where(hit, logits, 0.0).sum(-1)
  return target_logit - jax.nn.logsumexp(logits, axis=-1)


def cross_entropy(
  logits: Float[Array, "*batch V"],
  targets: Int[Array, "*batch"],
  weights: Float[Array, "*batch"],
) -> tuple[Float[Array, ""], Metrics]:
  """Summed cross entropy in nats.

  Returns:
    The sum, and the metrics `loss` (the same), `accuracy` (weight of the
    targets that have the largest logit) and `weight` (of all targets).
  """
  loss = -(token_log_likelihood(logits, targets) * weights).sum()
  hits = (jnp.argmax(logits, -1) == targets) * weights
  metrics = {"loss": loss, "accuracy": hits.sum(), "weight": weights.sum()}
  return loss, metrics
