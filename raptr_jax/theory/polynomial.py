"""Which degrees of a polynomial does a method learn?

RaPTr's toy experiment (arXiv 2402.05913): a layer-dropping method trains a
residual network on a sum of parities of bits x in {-1, 1}^n. A parity is the
product of some of the bits; their number is its degree. Low degrees are learned
first, so errors by degree show what a method learns late, or not at all. The
paper's sizes and measurements are not known; these are our choice.

Parities are orthonormal over all 2^n inputs. So a network's coefficient of a
parity is the mean of their product, and its mean squared error is the sum of
squared errors over all 2^n coefficients.

Further shape letters: n bits, J terms of the target, E degrees among them.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from raptr_jax.contracts import LayerDraw, LayerPath, Params, Policy
from raptr_jax.methods.draws import draw_table
from raptr_jax.models import layers
from raptr_jax.models.masked_stack import MaskedStack, full_path
from raptr_jax.training.optim import Optimizer
from raptr_jax.training.state import TrainState

LAYER_NORM_EPSILON = 1e-6


@flax.struct.dataclass
class ParityTarget:
  """f(x) = sum over j of c_j times the product of the x_i with i in S_j.

  Attributes:
    members: whether bit i is in S_j; all rows differ.
    coefficients: c_j.
  """

  members: Bool[Array | np.ndarray, "J n"]
  coefficients: Float[Array | np.ndarray, "J"]

  @property
  def degrees(self) -> Int[Array | np.ndarray, "J"]:
    """Number of bits in each term."""
    return self.members.sum(axis=1)

  def parities(self, x: Float[Array, "B n"]) -> Float[Array, "B J"]:
    """Each term's parity: -1 if an odd number of its bits are -1, else 1."""
    negative = (x < 0).astype(jnp.float32)
    count = negative @ self.members.T.astype(jnp.float32)
    return 1 - 2 * (count % 2)

  def __call__(self, x: Float[Array, "B n"]) -> Float[Array, "B"]:
    return self.parities(x) @ self.coefficients

  def project(
    self, outputs: Float[Array, "points"], x: Float[Array, "points n"]
  ) -> Float[Array, "J"]:
    """A function's coefficients of the target's terms.

    Args:
      outputs: the function's values at `x`.
      x: all inputs, each once.
    """
    return outputs @ self.parities(x) / len(outputs)

  def degree_errors(
    self, learned: Float[np.ndarray, "J"]
  ) -> Float[np.ndarray, "E"]:
    """Squared error in the terms of each degree, over the sum of their c_j^2.

    The zero function has error 1 in every degree.

    Args:
      learned: a function's coefficients of the terms.

    Returns:
      Errors by degree, ascending; only degrees that the target has.
    """
    degrees = np.asarray(self.degrees)
    true = np.asarray(self.coefficients, np.float64)
    error = np.bincount(degrees, np.square(np.asarray(learned) - true))
    power = np.bincount(degrees, np.square(true))
    return error[power > 0] / power[power > 0]


def random_target(
  seed: int, *, num_bits: int, max_degree: int, terms_per_degree: int
) -> ParityTarget:
  """Draws terms of degrees 1 to `max_degree`, with coefficients of one size.

  Within a degree, sets of bits are drawn uniformly without replacement.
  Coefficients are 1 / sqrt(J) with random signs, so the squared error of the
  zero function is 1.

  Raises:
    ValueError: a degree has fewer than `terms_per_degree` parities.
  """
  rng = np.random.default_rng(seed)
  members = []
  for degree in range(1, max_degree + 1):
    count = math.comb(num_bits, degree)
    if count < terms_per_degree:
      raise ValueError(
        f"terms_per_degree = {terms_per_degree}, but {num_bits} bits have only"
        f" {count} parities of degree {degree}."
      )
    sets = list(itertools.combinations(range(num_bits), degree))
    for index in rng.choice(count, terms_per_degree, replace=False):
      members.append(np.isin(np.arange(num_bits), sets[index]))
  signs = rng.choice([-1.0, 1.0], len(members))
  coefficients = (signs / math.sqrt(len(members))).astype(np.float32)
  return ParityTarget(np.array(members), coefficients)


def all_inputs(num_bits: int) -> Float[np.ndarray, "points n"]:
  """Every x in {-1, 1}^n once."""
  inputs = list(itertools.product([-1.0, 1.0], repeat=num_bits))
  return np.array(inputs, np.float32)


class MlpBlock(nn.Module):
  """x + scale * MLP(LN(x)), a block for `MaskedStack`.

  Attributes:
    mlp_dim: F.
  """

  mlp_dim: int

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B D"],
    scale: Float[Array, ""],
    deterministic: bool,
  ) -> Float[Array, "B D"]:
    normed = layers.LayerNorm(LAYER_NORM_EPSILON, name="norm")(x)
    init = nn.initializers.lecun_normal()
    mlp = layers.Mlp(self.mlp_dim, "gelu_tanh", init, name="mlp")
    return x + scale * mlp(normed)


class ResidualMlp(nn.Module):
  """A linear map of the bits, L residual blocks, a norm and a linear readout.

  Attributes:
    num_layers: L.
    width: D.
    mlp_dim: F.
  """

  num_layers: int
  width: int
  mlp_dim: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "B n"], draw: LayerDraw | LayerPath
  ) -> Float[Array, "B"]:
    """Runs the layers in `draw`."""
    init = nn.initializers.lecun_normal()
    axes = ("bits", "embed")
    y = layers.Dense((self.width,), axes, init, name="embedding")(x)
    block = functools.partial(MlpBlock, self.mlp_dim)
    stack = MaskedStack(block, self.num_layers, "none", name="stack")
    y = stack(y, draw, dropout_key=None)
    y = layers.LayerNorm(LAYER_NORM_EPSILON, name="final_norm")(y)
    readout = layers.Dense((1,), ("embed", "output"), init, name="readout")
    return readout(y)[:, 0]


def squared_error(
  params: Params,
  x: Float[Array, "B n"],
  draw: LayerDraw | LayerPath,
  *,
  model: ResidualMlp,
  target: ParityTarget,
) -> Float[Array, ""]:
  """Mean squared error of the network that runs the layers in `draw`."""
  outputs: Any = model.apply({"params": params}, x, draw)
  return jnp.mean(jnp.square(outputs - target(x)))


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """How well the full network does after some steps.

  Attributes:
    step: steps done.
    layers_run: layers run in these steps, in total.
    loss: mean squared error over all inputs.
    degree_errors: [E], see `ParityTarget.degree_errors`.
  """

  step: int
  layers_run: int
  loss: float
  degree_errors: list[float]


def train(
  model: ResidualMlp,
  target: ParityTarget,
  policy: Policy,
  optimizer: Optimizer,
  *,
  total_steps: int,
  batch_size: int,
  eval_period: int,
  seed: int,
) -> Iterator[Evaluation]:
  """Trains the paths that a policy draws, on random inputs.

  Inputs are uniform in {-1, 1}^n, the same for all policies with one seed.

  Args:
    model: the network, trained from scratch.
    target: what it learns.
    policy: draws the layers of each step.
    optimizer: updates the parameters.
    total_steps: steps of the run.
    batch_size: B.
    eval_period: steps between evaluations; divides `total_steps`.
    seed: seed of parameters, inputs and draws.

  Yields:
    An evaluation before the first step, and one after each period.

  Raises:
    ValueError: `eval_period` does not divide `total_steps`.
  """
  if total_steps % eval_period:
    raise ValueError(f"{eval_period = } does not divide {total_steps = }.")
  params_key, input_key, draw_key = jax.random.split(jax.random.key(seed), 3)
  table = draw_table({"stack": policy}, draw_key, total_steps, "cond")
  inputs = jnp.asarray(all_inputs(target.members.shape[1]))
  state = _fresh_state(params_key, inputs[:1], model, optimizer)
  train_steps = functools.partial(
    _train_steps, model=model, optimizer=optimizer, batch_size=batch_size
  )
  for step in range(0, total_steps + 1, eval_period):
    if step:
      draws = table.drawn.between(step - eval_period, step)["stack"]
      state = train_steps(state, draws, target, input_key)
    loss, learned = _evaluate(state.params, target, inputs, model=model)
    layers_run = table.layers_run(step)["stack"]
    errors = target.degree_errors(np.asarray(learned)).tolist()
    yield Evaluation(step, layers_run, float(loss), errors)


@functools.partial(jax.jit, static_argnames=("model", "optimizer"))
def _fresh_state(
  key: jax.Array,
  x: Float[Array, "1 n"],
  model: ResidualMlp,
  optimizer: Optimizer,
) -> TrainState:
  variables = nn.unbox(model.init(key, x, full_path(model.num_layers)))
  params = variables["params"]
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


@functools.partial(
  jax.jit,
  static_argnames=("model", "optimizer", "batch_size"),
  donate_argnums=0,
)
def _train_steps(
  state: TrainState,
  draws: LayerDraw,
  target: ParityTarget,
  input_key: jax.Array,
  *,
  model: ResidualMlp,
  optimizer: Optimizer,
  batch_size: int,
) -> TrainState:
  """Trains a step for each of the draws, whose arrays are [S, L]."""
  shape = (batch_size, target.members.shape[1])
  loss_fn = functools.partial(squared_error, model=model, target=target)

  def step(state, draw):
    """Trains one draw [L] on new inputs."""
    key = jax.random.fold_in(input_key, state.step)
    x = jax.random.rademacher(key, shape, jnp.float32)
    grads = jax.grad(loss_fn)(state.params, x, draw)
    updates, opt_state = optimizer.update(
      grads, state.opt_state, state.params, kept_layers={"stack": draw.mask}
    )
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), None

  return jax.lax.scan(step, state, draws)[0]


@functools.partial(jax.jit, static_argnames="model")
def _evaluate(
  params: Params,
  target: ParityTarget,
  inputs: Float[Array, "points n"],
  *,
  model: ResidualMlp,
) -> tuple[Float[Array, ""], Float[Array, "J"]]:
  """Mean squared error of the full network, and its coefficients."""
  draw = full_path(model.num_layers)
  outputs: Any = model.apply({"params": params}, inputs, draw)
  loss = jnp.mean(jnp.square(outputs - target(inputs)))
  return loss, target.project(outputs, inputs)
