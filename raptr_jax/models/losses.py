"""Losses as sums over targets, so that they add up over shards.

The head of a model computes V logits for each token; with a large vocabulary
they take more memory than all else. `head_cross_entropy` and
`head_log_likelihood` compute them for one chunk of tokens at a time.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from raptr_jax.contracts import Metrics, Params
from raptr_jax.models.layers import last_axis
from raptr_jax.models.shards import batch_axes, num_shards, sum_over_shards

# (its parameters, hidden states [tokens, D]) -> logits [tokens, V].
Head = Callable[[Params, Array], Array]


def token_log_likelihood(
  logits: Float[Array, "*batch V"], targets: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
  """Log softmax(logits)[target] in nats, in float32."""
  logits = logits.astype(jnp.float32)
  # A comparison, not an index: its gradient needs no scatter, and a vocabulary
  # that is split over devices needs no gather.
  vocabulary_size, ndim = logits.shape[-1], logits.ndim
  hit = targets[..., None] == last_axis(jnp.arange(vocabulary_size), ndim)
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
    logits: of any float type; the loss is computed in float32.
    targets: the true tokens.
    weights: of each target in the sums; 0 for padding.
    z_loss: coefficient of logsumexp(logits)^2, which keeps logits from
      drifting; PaLM has 1e-4 (arXiv 2204.02311, section 5).
    label_smoothing: share of a target's probability that is spread evenly over
      the V - 1 other tokens, as in T5X. Unlike T5X, we do not subtract the
      entropy of the smoothed target, which is constant.

  Returns:
    What is minimised, and the metrics `loss` (the sum without z-loss and
    smoothing, so that runs compare), `accuracy` (weight of the targets with the
    largest logit) and `weight` (of all targets).
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
  params: Params,
  hidden: Float[Array, "*batch D"],
  targets: Int[Array, "*batch"],
  weights: Float[Array, "*batch"],
  *,
  chunk_size: int | None = None,
  z_loss: float = 0.0,
  label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
  """`cross_entropy` of the logits that a head computes from hidden states.

  Args:
    head: a pure function, which closes over no arrays.
    params: of the head.
    hidden: input of the head.
    targets: the true tokens.
    weights: of each target in the sums; 0 for padding.
    chunk_size: number of tokens whose logits are in memory at once; the
      backward pass runs the head again. With a multiple of the devices that
      share the batch, no token moves between devices. None takes all at once.
    z_loss: as in `cross_entropy`.
    label_smoothing: as in `cross_entropy`.

  Returns:
    What `cross_entropy` returns.
  """
  tokens = _flat_tokens(hidden), targets.reshape(-1), weights.reshape(-1)

  def loss(
    params: Params, hidden: Float[Array, "tokens D"], *rest: Array
  ) -> tuple[Float[Array, ""], Metrics]:
    return cross_entropy(
      head(params, hidden),
      *rest,
      z_loss=z_loss,
      label_smoothing=label_smoothing,
    )

  if chunk_size is None:
    return loss(params, *tokens)
  # Left to XLA, devices would add up the head's gradient after each chunk.
  axes = batch_axes()
  size = max(1, chunk_size // num_shards(axes))

  def of_shard(
    params: Params, tokens: Sequence[Array]
  ) -> tuple[Float[Array, ""], Metrics]:
    sums = _by_chunks(functools.partial(loss, params), tokens, size)
    objective, metrics = jax.tree.map(lambda x: x.sum(0), sums)
    return objective, metrics

  return sum_over_shards(of_shard, params, tokens, axes)


def head_log_likelihood(
  head: Head,
  params: Params,
  hidden: Float[Array, "*batch D"],
  targets: Int[Array, "*batch"],
  *,
  chunk_size: int | None = None,
) -> tuple[Float[Array, "*batch"], Bool[Array, "*batch"]]:
  """`token_log_likelihood` of the logits that a head computes.

  The arguments are those of `head_cross_entropy`.

  Returns:
    The log-likelihoods, and whether each target is the likeliest token.
  """

  def likelihood(
    hidden: Float[Array, "tokens D"], targets: Int[Array, "tokens"]
  ) -> tuple[Float[Array, "tokens"], Bool[Array, "tokens"]]:
    logits = head(params, hidden)
    return token_log_likelihood(logits, targets), logits.argmax(-1) == targets

  tokens = _flat_tokens(hidden), targets.reshape(-1)
  if chunk_size is None:
    found = likelihood(*tokens)
  else:
    by_chunk = _by_chunks(likelihood, tokens, chunk_size)
    found = jax.tree.map(lambda x: x.T.reshape(-1)[: targets.size], by_chunk)
  scores, likeliest = (x.reshape(targets.shape) for x in found)
  return scores, likeliest


def _flat_tokens(hidden: Float[Array, "*batch D"]) -> Float[Array, "tokens D"]:
  # XLA's CPU backend is slower at products with several leading axes.
  return hidden.reshape(-1, hidden.shape[-1])


def _by_chunks(
  function: Callable[..., PyTree], tokens: Sequence[Array], chunk_size: int
) -> PyTree:
  """Calls a function on one chunk of the arrays [tokens, ...] after another.

  The arrays are padded with zeros to whole chunks. The backward pass runs the
  function again: kept values would add up over all chunks.

  Returns:
    What the function returns, stacked. Chunk c has tokens c, c + number of
    chunks, ...: strided, so that each device's tokens stay on it.
  """
  size = tokens[0].shape[0]
  chunk_size = min(chunk_size, size)
  num_chunks = -(-size // chunk_size)

  def split(x: Shaped[Array, "tokens ..."]) -> Shaped[Array, "chunks size ..."]:
    padding = num_chunks * chunk_size - size
    x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
    return jnp.moveaxis(x.reshape(chunk_size, num_chunks, *x.shape[1:]), 1, 0)

  function = jax.checkpoint(function, prevent_cse=False)
  chunks = [split(x) for x in tokens]
  return jax.lax.map(lambda chunk: function(*chunk), chunks)
