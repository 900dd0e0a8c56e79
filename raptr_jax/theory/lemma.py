"""How much bypassing one layer changes a random network, by depth.

RaPTr's theory (arXiv 2402.05913, section on the stability of subnetworks)
compares L(F), the loss of a network, with the mean over l of L(F_{-l}), where
F_{-l} bypasses layer l. The change of the output bounds their difference. A
lemma on linear residual networks at initialisation gives its size relative to
the output: O(1 / sqrt(L)) with residual connections and layer norm, Omega(1) if
either is missing.

Here a layer is y + W LN(y), with W ~ N(0, 1 / D) and a layer norm LN without
parameters; inputs are N(0, 1). We measure

  psi_l = |F_{-l}(x) - F(x)| / |F(x)|  and  gap = mean of psi_l over l and x.

Widths, inputs and averaging are our choices; the paper's are not known.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BLOCK = 32  # Layers after which the number of parallel networks grows.


@dataclasses.dataclass(frozen=True)
class Form:
  """What surrounds the weights of a layer.

  Attributes:
    residual: whether the layer adds to its input.
    norm: whether it normalises what it multiplies.
  """

  residual: bool
  norm: bool

  @property
  def growth(self) -> float:
    """The factor by which a linear layer is expected to lengthen y.

    Dividing all networks by it after each layer keeps psi, and keeps y within
    float32's range. With a norm y grows slowly, and the factor is 1.
    """
    return math.sqrt(2) if self.residual and not self.norm else 1.0

  def layer(
    self, weight: Float[Array, "D D"], y: Float[Array, "*batch D"]
  ) -> Float[Array, "*batch D"]:
    """Runs one layer; W is the transpose of `weight`."""
    branch = (layer_norm(y) if self.norm else y) @ weight
    return y + branch if self.residual else branch

  def wide_limit(self, depth: int) -> float:
    """The expected gap as D goes to infinity, to first order; our derivation.

    Without residuals, F_{-l} and F end up orthogonal and equally long: sqrt(2).
    With residuals alone, each layer doubles |y|^2, and half of |F|^2 is due to
    layer l: 1 / sqrt(2). With both, each layer adds D to |y|^2, which is
    D (l + 1) after layer l. From there on, layer l's contribution keeps its
    share of |y|^2, since the norm shrinks y and the difference alike. So psi_l
    is 1 / sqrt(l + 1), with mean 2 / sqrt(L) - 2.46 / L + O(L^-1.5): on log-log
    axes the slope approaches -1/2 slowly, from above.
    """
    if not self.residual:
      return math.sqrt(2)
    if not self.norm:
      return math.sqrt(0.5)
    return float(np.mean(np.arange(2, depth + 2) ** -0.5))


FORMS = {
  "residual + LN": Form(residual=True, norm=True),
  "residual only": Form(residual=True, norm=False),
  "LN only": Form(residual=False, norm=True),
  "neither": Form(residual=False, norm=False),
}


def layer_norm(y: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
  """Mean 0 and variance 1 along the last axis."""
  centred = y - y.mean(-1, keepdims=True)
  return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True))


def random_network(
  key: jax.Array, *, depth: int, width: int, inputs: int
) -> tuple[Float[Array, "L D D"], Float[Array, "N D"]]:
  """Weights of L = `depth` layers of width D, and N = `inputs` vectors."""
  weight_key, input_key = jax.random.split(key)
  weights = jax.random.normal(weight_key, (depth, width, width))
  x = jax.random.normal(input_key, (inputs, width))
  return weights / math.sqrt(width), x


def bypass_changes(
  form: Form, weights: Float[Array, "L D D"], x: Float[Array, "N D"]
) -> Float[Array, "L N"]:
  """Psi of every layer, for every input.

  The networks F_{-1}, F_{-2}, ... and, last, F run side by side; F_{-l} skips
  layer l. Before that it equals F, so it joins only at the start of layer l's
  block, which saves almost half of the products.
  """

  def run_layer(y, layer):
    index, weight = layer
    bypass = jnp.arange(len(y))[:, None, None] == index
    y = jnp.where(bypass, y, form.layer(weight, y))
    return y / form.growth, None

  y = x[None]
  for start in range(0, len(weights), BLOCK):
    block = weights[start : start + BLOCK]
    y = jnp.concatenate([y, jnp.repeat(y[-1:], len(block), axis=0)])
    indices = start + jnp.arange(len(block))
    y, _ = jax.lax.scan(run_layer, y, (indices, block))
  full = y[-1:]
  change = jnp.linalg.norm(y[:-1] - full, axis=-1)
  return change / jnp.linalg.norm(full, axis=-1)


@functools.partial(jax.jit, static_argnames=("depth", "width", "inputs"))
def measure(
  key: jax.Array, *, depth: int, width: int, inputs: int
) -> dict[str, Float[Array, "L"]]:
  """Psi of every layer of a random network, averaged over random inputs.

  Its mean over layers is the gap.

  Args:
    key: folded with the depth, so that networks of different depths have
      independent weights.
    depth: L.
    width: D.
    inputs: number of random inputs.

  Returns:
    Psi by name of the form; all forms share weights and inputs.
  """
  weights, x = random_network(
    jax.random.fold_in(key, depth), depth=depth, width=width, inputs=inputs
  )
  return {
    name: bypass_changes(form, weights, x).mean(-1)
    for name, form in FORMS.items()
  }


def fit_exponents(
  depths: Sequence[int] | Int[np.ndarray, "N"],
  gaps: Float[np.ndarray, "N *S"],
) -> Float[np.ndarray, "*S"]:
  """Least-squares slopes of log(gap) over log(depth), for each seed.

  If the gap is not a power law, the slope depends on the range of depths.

  Raises:
    ValueError: there are fewer than two depths.
  """
  if len(depths) < 2:
    raise ValueError(f"depths = {tuple(depths)}, expected at least two.")
  slopes, _ = np.polyfit(np.log(depths), np.log(gaps), 1)
  return np.asarray(slopes)
