"""Tiny language models of both families, with all parameters random."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from raptr_jax.contracts import LayerDraw
from raptr_jax.methods.draws import as_executed
from raptr_jax.models import losses
from raptr_jax.models.decoder import DecoderConfig
from raptr_jax.models.decoder_lm import DecoderLM
from raptr_jax.models.encoder_decoder import (
  EncoderDecoderConfig,
)
from raptr_jax.models.encoder_decoder_lm import EncoderDecoderLM
from raptr_jax.models.masked_stack import full_paths
from raptr_jax.tasks.objectives import layouts

FAMILIES = ("decoder", "encoder_decoder")
VOCAB, EOS = 20, 1
PAIRS = (
  layouts.Pair(np.array([3, 4, 5]), np.array([6, 7, EOS])),
  layouts.Pair(np.array([8, 9]), np.array([10, 11, EOS])),
)
# Both pairs and one place of padding.
LENGTHS = {"tokens": 10, "inputs": 8, "targets": 7}


def make_model(family, **overrides):
  """Its loss takes five tokens at a time, which is to make no difference."""
  common = dict(embed_dim=16, mlp_dim=24, logits_chunk=5)
  if family == "decoder":
    sizes = dict(num_layers=3, num_heads=4, num_kv_heads=2, tied_head=False)
    return DecoderLM(DecoderConfig(VOCAB, **common | sizes | overrides))
  sizes = dict(
    num_encoder_layers=3,
    num_decoder_layers=4,
    num_heads=2,
    head_dim=6,
    # So that all kinds of buckets occur.
    position_buckets=8,
    max_distance=6,
  )
  return EncoderDecoderLM(
    EncoderDecoderConfig(VOCAB, **common | sizes | overrides)
  )


@functools.cache
def fresh_params(model):
  return nn.unbox(jax.jit(model.init)(jax.random.key(0)))


@functools.cache
def random_params(model):
  """Scales of norms included, so that none of them goes unseen."""
  rng = np.random.default_rng(0)
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 0.7, x.shape), jnp.float32), shapes
  )


def make_batch(model, rows=(PAIRS, PAIRS[::-1]), lengths=LENGTHS):
  """A batch whose rows hold these pairs."""
  encoder = "encoder" in model.stacks
  layout = (
    layouts.EncoderDecoderLayout() if encoder else layouts.DecoderLayout()
  )
  joined = [layout.join(row, lengths, pad_id=0, eos_id=EOS) for row in rows]
  return {name: np.stack([row[name] for row in joined]) for name in joined[0]}


def random_draws(model, seed, execution):
  """All layers but one of each stack, differently scaled."""
  rng = np.random.default_rng(seed)
  draws = {}
  for name, size in model.stacks.items():
    mask = rng.permutation(size) > 0
    scale = np.where(mask, rng.uniform(0.5, 2, size), 0).astype(np.float32)
    draws[name] = LayerDraw(mask, scale)
  return as_executed(draws, execution)


@functools.partial(jax.jit, static_argnums=0)
def loss_fn(model, params, batch, draws, key):
  return model.loss_fn(params, batch, draws, key)


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradients(model, params, batch, draws):
  function = jax.value_and_grad(model.loss_fn, has_aux=True)
  (loss, _), grads = function(params, batch, draws, None)
  return loss, grads


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, batch, draws):
  return model.module.apply({"params": params}, batch, draws)


def check_against_reference(model, reference):
  """Loss and gradients of both executions are those of plain code.

  Those of layers that do not run are exactly 0.
  `reference(params, batch, paths, config)` gives the logits of a batch.
  """
  params, batch = random_params(model), make_batch(model)

  @jax.jit
  def expected(params, batch, paths):
    def loss(params):
      return losses.cross_entropy(
        reference(params, batch, paths, model.config),
        batch["targets"],
        batch["target_weights"],
      )[0]

    return jax.value_and_grad(loss)(params)

  for seed in range(3):
    plain = expected(params, batch, random_draws(model, seed, "gather"))
    masks = random_draws(model, seed, "cond")
    for execution in ("cond", "gather"):
      draws = random_draws(model, seed, execution)
      got = loss_and_gradients(model, params, batch, draws)
      jax.tree.map(assert_close, got, plain)
      for stack, draw in masks.items():
        for grad in jax.tree.leaves(got[1][stack]["layers"]):
          rows = np.abs(grad).reshape(len(grad), -1).max(axis=1)
          np.testing.assert_array_equal(rows > 0, draw.mask)


def assert_close(got, expected):
  atol = 1e-4 * np.abs(expected).max()
  np.testing.assert_allclose(got, expected, rtol=1e-3, atol=atol)


def reached(model, params, batch):
  """Whether the likelihood of target t has a gradient by token s's vector.

  The batch has one row, in which every token occurs only once.

  Returns:
    bool[T, V].
  """

  @jax.jit
  @jax.jacrev
  def jacobian(table, batch):
    swapped = params | {"token_embedding": {"embedding": table}}
    row = logits(model, swapped, batch, full_paths(model.stacks))[0]
    return losses.token_log_likelihood(row, batch["targets"][0])

  table = params["token_embedding"]["embedding"]
  return np.asarray(jacobian(table, batch) != 0).any(-1)


def matrix(*rows):
  """A matrix of booleans from its rows, written as 0s and 1s."""
  return np.array([[digit == "1" for digit in row] for row in rows])


def product_flops(model, reference, batch):
  """XLA's count for a forward and backward pass of plain code."""
  params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))

  def loss(params, batch):
    paths = full_paths(model.stacks)
    return (reference(params, batch, paths, model.config) ** 2).sum()

  lowered = jax.jit(jax.grad(loss)).lower(params, batch)
  return lowered.cost_analysis()["flops"]
