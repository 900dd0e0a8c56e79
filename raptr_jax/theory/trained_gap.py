"""How much bypassing one layer changes a BERT, untrained or trained.

Measures what `lemma.py` measures on linear networks, and what RaPTr's theory
(arXiv 2402.05913) bounds: the difference between L_2 = L(F), the loss of the
full model, and L_1 = mean over l of L(F_{-l}), its loss without layer l.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from raptr_jax.contracts import Batch, LayerDraw, Params
from raptr_jax.models import losses
from raptr_jax.models.bert import BertMaskedLM


@dataclasses.dataclass(frozen=True)
class BypassEffect:
  """The effect of bypassing each layer on its own.

  Attributes:
    psi: |F_{-l} - F| / |F| of a token's hidden state at the end of the stack,
      after any final norm; mean over tokens, without padding.
    loss_change: L(F_{-l}) - L(F), in nats per target.
    loss: L(F), in nats per target.
  """

  psi: Float[np.ndarray, "L"]
  loss_change: Float[np.ndarray, "L"]
  loss: float

  @property
  def gap(self) -> float:
    """Mean of psi over the layers."""
    return float(self.psi.mean())

  @property
  def loss_gap(self) -> float:
    """L_1 - L_2, in nats per target."""
    return float(self.loss_change.mean())


def measure(
  model: BertMaskedLM, params: Params, batches: Iterable[Batch]
) -> BypassEffect:
  """Bypasses one layer at a time, without dropout.

  Args:
    model: a BERT of L layers.
    params: its parameters, without boxes.
    batches: batches of `MaskedLM`; each takes L + 1 forward passes.

  Raises:
    ValueError: there are no batches.
  """
  (num_layers,) = model.stacks.values()
  everything = np.ones(num_layers, bool)
  all_but_one = ~np.eye(num_layers, dtype=bool)
  change, loss = np.zeros((2, num_layers))
  full_loss = tokens = targets = 0.0
  for batch in batches:
    full, batch_loss = _forward(model, params, batch, everything)
    full_loss += float(batch_loss)
    for layer, mask in enumerate(all_but_one):
      bypassed, batch_loss = _forward(model, params, batch, mask)
      change[layer] += float(_summed_change(batch, full, bypassed))
      loss[layer] += float(batch_loss)
    tokens += float((batch["segment_ids"] > 0).sum())
    targets += float(batch["target_weights"].sum())
  if not targets:
    raise ValueError("There are no batches to measure on, expected at least 1.")
  return BypassEffect(
    change / tokens, (loss - full_loss) / targets, full_loss / targets
  )


@functools.partial(jax.jit, static_argnames="model")
def _forward(
  model: BertMaskedLM,
  params: Params,
  batch: Mapping[str, Array],
  mask: Bool[Array, "L"],
) -> tuple[Float[Array, "B T D"], Float[Array, ""]]:
  """Hidden states, and the summed loss, of the layers in the mask.

  A `LayerDraw` runs one program for all masks, so equal arithmetic gives equal
  bits.
  """
  apply = functools.partial(model.module.apply, {"params": params})
  draw = LayerDraw(mask, mask.astype(jnp.float32))
  hidden: Any = apply(batch, draw, None, method="encode")
  logits: Any = apply(hidden, batch["target_positions"], method="predict")
  loss, _ = losses.cross_entropy(
    logits, batch["targets"], batch["target_weights"]
  )
  return hidden.astype(jnp.float32), loss


@jax.jit
def _summed_change(
  batch: Mapping[str, Array],
  full: Float[Array, "B T D"],
  bypassed: Float[Array, "B T D"],
) -> Float[Array, ""]:
  """Relative change, summed over tokens, without padding."""
  change = jnp.linalg.norm(bypassed - full, axis=-1)
  relative = change / jnp.linalg.norm(full, axis=-1)
  return jnp.where(batch["segment_ids"] > 0, relative, 0.0).sum()
