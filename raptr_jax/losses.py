"""Losses as sums over targets, so that they add up over shards.

The head of a model makes V logits of each token, and over a large vocabulary
these take more memory than all else. `head_cross_entropy` and
`head_log_likelihood` make them for one chunk of tokens at a time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from raptr_jax.contracts import Metrics

# The hidden states [N, D] of tokens -> their logits [N, V].
Head = Callable[[Array], Array]


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
  *,
  z_loss: float = 0.0,
  label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
  """Summed cross entropy in nats.

  Args:
    logits: of any float type; all that follows is float32.
    targets: the true tokens.
    weights: of each target in the sums; 0 for padding.
    z_loss: coefficient of logsumexp(logits)^2, which keeps logits from
      drifting (PaLM, arXiv 2204.02311, section 5); that has 1e-4.
    label_smoothing: share of the probability of a target that is spread evenly
      over the V - 1 other tokens, as in T5X. That also takes off the entropy of
      the smoothed target, a constant; we do not.

  Returns:
    What is minimised, and the metrics `loss` (the sum without z-loss and
    smoothing, so that runs compare), `accuracy` (weight of the targets that
    have the largest logit) and `weight` (of all targets).
  """
  likelihood = token_log_likelihood(logits, targets)
  loss = -(likelihood * weights).sum()
  hits = (jnp.argmax(logits, -1) == targets) * weights
  metrics = {"loss": loss, "accuracy": hits.sum(), "weight": weights.sum()}
  objective = loss
  if label_smoothing or z_loss:
    wide = logits.astype(jnp.float32)
    normalizer = jax.nn.logsumexp(wide, axis=-1)
  if label_smoothing:
    size = logits.shape[-1]
    everywhere = size * (wide.mean(-1) - normalizer)
    others = (everywhere - likelihood) / (size - 1)
    objective += label_smoothing * ((likelihood - others) * weights).sum()
  if z_loss:
    objective += z_loss * (normalizer**2 * weights).sum()
  return objective, metrics


def head_cross_entropy(
  head: Head,
  hidden: Float[Array, "*batch D"],
  targets: Int[Array, "*batch"],
  weights: Float[Array, "*batch"],
  *,
  chunk_size: int | None = None,
  z_loss: float = 0.0,
  label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
  """`cross_entropy` of the logits that a head makes of hidden states.

  Args:
    head: a pure function; gradients reach the parameters that it closes over.
    hidden: input of the head.
    targets: the true tokens.
    weights: of each target in the sums; 0 for padding.
    chunk_size: tokens whose logits exist at once, forward and backward, for
      which the backward pass runs the head again; a multiple of the devices
      that share the batch moves no tokens. None takes all at once.
    z_loss: as in `cross_entropy`.
    label_smoothing: as in `cross_entropy`.

  Returns:
    What `cross_entropy` returns.
  """

  def loss(hidden, targets, weights):
    return cross_entropy(
      head(hidden),
      targets,
      weights,
      z_loss=z_loss,
      label_smoothing=label_smoothing,
    )

  tokens = _flat_tokens(hidden), targets.reshape(-1), weights.reshape(-1)
  if chunk_size is None:
    return loss(*tokens)
  sums = _by_chunks(loss, tokens, chunk_size)
  return jax.tree.map(lambda x: x.sum(0), sums)


def head_log_likelihood(
  head: Head,
  hidden: Float[Array, "*batch D"],
  targets: Int[Array, "*batch"],
  *,
  chunk_size: int | None = None,
) -> Float[Array, "*batch"]:
  """`token_log_likelihood` of the logits that a head makes of hidden states.

  The arguments are those of `head_cross_entropy`.
  """

  def likelihood(hidden, targets):
    return token_log_likelihood(head(hidden), targets)

  tokens = _flat_tokens(hidden), targets.reshape(-1)
  if chunk_size is None:
    return likelihood(*tokens).reshape(targets.shape)
  by_chunk = _by_chunks(likelihood, tokens, chunk_size)
  return by_chunk.T.reshape(-1)[: targets.size].reshape(targets.shape)


def _flat_tokens(hidden: Float[Array, "*batch D"]) -> Float[Array, "N D"]:
  # One leading axis: XLA's CPU backend is slower at products with several.
  return hidden.reshape(-1, hidden.shape[-1])


def _by_chunks(
  function: Callable[..., Any], tokens: Sequence[Array], chunk_size: int
) -> Any:
  """Calls a function on one chunk of the arrays [N, ...] after another.

  The last places are filled up with zeros. Nothing of a chunk is kept for the
  backward pass: it would be kept of all of them.

  Returns:
    What the function returns, stacked. Chunk c has tokens c, c + number of
    chunks, ...: strided, so that each device's tokens stay on it.
  """
  size = tokens[0].shape[0]
  chunk_size = min(chunk_size, size)
  num_chunks = -(-size // chunk_size)

  def split(x):
    padding = num_chunks * chunk_size - size
    x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
    return jnp.moveaxis(x.reshape(chunk_size, num_chunks, *x.shape[1:]), 1, 0)

  function = jax.checkpoint(function, prevent_cse=False)
  chunks = [split(x) for x in tokens]
  return jax.lax.map(lambda chunk: function(*chunk), chunks)
