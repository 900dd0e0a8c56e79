"""FLOPs of a training step, counted from sizes.

A product of an [m, n] and an [n, p] matrix takes 2 m n p FLOPs, and a backward
pass takes twice its forward pass. Recomputation, element-wise operations and
the optimizer do not count, as usual for model FLOPs (PaLM, arXiv 2204.02311,
appendix B). So a training step on B sequences of T tokens takes

  3 (k block + other)

where k layers are kept and, for a block of width D, MLP width F and full
attention,

  block = 2 B T (4 D^2 + 2 D F) + 4 B T^2 D

`other` is what every path pays: embeddings and head. A model of several stacks
has a k and a block for each. A causal mask counts as full attention. A custom
block is counted as the block it replaces, unless the model's `step_flops` is
overridden.
"""

import jax

from raptr_jax.contracts import Dataset, Model, StepFlops

# Peak dense bfloat16 FLOP/s of a device, from the vendors' data sheets.
PEAK_FLOPS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
  "NVIDIA A100-SXM4-40GB": 312e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA H200": 989e12,
}


def product(rows: int, inner: int, columns: int) -> float:
  """FLOPs of a matrix product [rows, inner] x [inner, columns]."""
  return 2.0 * rows * inner * columns


def attention_flops(
  *,
  batch: int,
  length: int,
  source_length: int,
  width: int,
  query_width: int,
  key_value_width: int,
) -> float:
  """Forward FLOPs of attention from each token to each source token.

  Args:
    batch: B.
    length: T, tokens that attend.
    source_length: S, tokens that are attended to; T in self-attention.
    width: D.
    query_width: H K, of queries and of the heads' outputs.
    key_value_width: of keys, and of values; less than H K if heads share them.
  """
  queries = product(batch * length, width, 2 * query_width)
  keys = product(batch * source_length, width, 2 * key_value_width)
  weights = 2 * batch * product(length, query_width, source_length)
  return queries + keys + weights


def block_flops(*, batch: int, length: int, width: int, mlp_dim: int) -> float:
  """Forward FLOPs of a block of full self-attention and a two-matrix MLP."""
  attention = attention_flops(
    batch=batch,
    length=length,
    source_length=length,
    width=width,
    query_width=width,
    key_value_width=width,
  )
  return attention + product(batch * length, width, 2 * mlp_dim)


def equal_flop_steps(
  *,
  model: Model,
  dataset: Dataset,
  full_steps: int,
  flop_factor: float | None,
) -> int:
  """Steps of dense training that cost as much as a method's `full_steps`.

  The method saves FLOPs only in layers, but here embeddings and head count too:
  dense training gets a few steps more than full_steps / flop_factor.

  Args:
    model: trained densely.
    dataset: gives the size of a batch.
    full_steps: steps of the method.
    flop_factor: of the method, by its layers: it runs L / flop_factor of L.

  Raises:
    ValueError: if the factor is missing, or below 1.
  """
  if flop_factor is None or flop_factor < 1:
    raise ValueError(
      f"FLOP_FACTOR = {flop_factor}, expected a number of at least 1: that of"
      " the method whose cost dense training should match."
    )
  cost: StepFlops = model.step_flops(dataset.batch_spec())
  kept = {name: layers / flop_factor for name, layers in model.stacks.items()}
  return round(full_steps * cost.step(kept) / cost.step(model.stacks))


def utilisation(flops_per_second: float) -> float | None:
  """Model FLOPs utilisation of all devices; None if their peak is unknown."""
  peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
  if peak is None:
    return None
  return flops_per_second / (peak * jax.device_count())
