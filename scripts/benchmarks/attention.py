"""Suite `attention`: the kernels of `models/attention.py` by length of a row.

Value and gradients, with a causal mask and two packed segments a row. Batches
have equally many tokens, until a single row has more. A program that would take
over half of the memory is not run. Before, all kernels are checked against the
plain one in float32, with every kind of mask, padding and shared heads.
"""

import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Compiled
from jaxtyping import Array

from benchmarks.programs import device_gb, memory_mb
from benchmarks.results import Table, Value
from benchmarks.timing import take_turns
from raptr_jax.models.attention import attend
from raptr_jax.models.masks import Mask
from raptr_jax.training.partitioning import Partitioner

# Tokens, heads, width of a head, type, lengths of rows.
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
SIZES = {
  "tiny": (32, 2, 8, "float32", (16, 32)),
  "cpu": (2_048, 4, 64, "float32", LENGTHS),
  "gpu": (16_384, 16, 128, "bfloat16", LENGTHS),
}
FUSED = {"gpu": ("cudnn",), "tpu": ("splash",)}
MACHINE_GB = 16.0  # Of a machine without a device that has its own.
# Of an error over the largest entry; 2^-8 is the rounding of a bfloat16.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2 * 2.0**-8}
Results: TypeAlias = Sequence[Array]
Step: TypeAlias = Callable[..., Results]


def run(size: str, rounds: int) -> Iterator[Table]:
  """The check, and a table for each length as soon as it is measured."""
  tokens, heads, width, dtype, lengths = SIZES[size]
  yield agreement(dtype)
  for length in lengths:
    shape = (max(1, tokens // length), heads, length, width)
    rows = list(_rows(shape, dtype, rounds))
    name = " x ".join(map(str, shape))
    yield Table(f"Attention: {length} tokens, {name}, {dtype}", rows)


def kernels() -> tuple[str, ...]:
  """Those that this kind of device has."""
  return "plain", "chunked", *FUSED.get(jax.default_backend(), ())


def _rows(
  shape: Sequence[int], dtype: str, rounds: int
) -> Iterator[dict[str, Value]]:
  """Time and memory by kernel."""
  half = (jnp.arange(shape[2]) < shape[2] // 2)[None]
  segments = jnp.where(half, 1, 2)
  mask = Mask(segments, segments, causal=True)
  arrays = [_normal(seed, shape, dtype) for seed in range(4)]
  programs = {
    kernel: jax.jit(_step(kernel, mask)).lower(*arrays).compile()
    for kernel in kernels()
  }
  memory = {kernel: memory_mb(program) for kernel, program in programs.items()}
  most_mb = 500 * (device_gb() or MACHINE_GB)
  fitting = {
    kernel: functools.partial(_wait_for, program, arrays)
    for kernel, program in programs.items()
    if (memory[kernel]["temporary MB"] or 0.0) < most_mb
  }
  seconds = take_turns(fitting, rounds=rounds, warmup=1)
  for kernel in programs:
    times = seconds.get(kernel)
    yield {
      "kernel": kernel,
      "ms": statistics.median(times) * 1e3 if times else None,
      "temporary MB": memory[kernel]["temporary MB"],
    }


def _normal(seed: int, shape: Sequence[int], dtype: str) -> Array:
  return jnp.asarray(np.random.default_rng(seed).normal(0, 1, shape), dtype)


def _step(kernel: str, mask: Mask) -> Step:
  """(query, keys, values, direction) -> value and gradients."""

  def step(
    query: Array, keys: Array, values: Array, direction: Array
  ) -> Results:
    scale = query.shape[-1] ** -0.5
    mixed = functools.partial(attend, mask=mask, scale=scale, kernel=kernel)
    out, pull_back = jax.vjp(mixed, query, keys, values)
    return out, *pull_back(direction)

  return Partitioner().on_mesh(step)


def _wait_for(program: Compiled, arrays: Sequence[Array]) -> Results:
  results: Results = jax.block_until_ready(program(*arrays))
  return results


def agreement(dtype: str) -> Table:
  """Whether all kernels give the values and gradients of the plain one."""
  rows: list[dict[str, Value]] = []
  for kind, mask in _masks().items():
    real = (mask.queries > 0)[:, None, :, None]
    lengths = (mask.queries.shape[1], *[mask.keys.shape[1]] * 2)
    query, keys, values = (
      _normal(seed, (2, heads, length, 64), dtype)
      for seed, (heads, length) in enumerate(zip((4, 2, 2), lengths))
    )
    # What padding attends to is not defined.
    direction = _normal(3, query.shape, dtype) * real.astype(dtype)
    arrays = query, keys, values, direction
    wide = [x.astype(jnp.float32) for x in arrays]
    with jax.default_matmul_precision("highest"):
      expected = jax.jit(_step("plain", mask))(*wide)
    for kernel in kernels():
      out, *gradients = jax.jit(_step(kernel, mask))(*arrays)
      found = [out * real, *gradients]
      apart = max(map(_apart, found, [expected[0] * real, *expected[1:]]))
      rows.append(
        {
          "mask": kind,
          "kernel": kernel,
          "found": apart,
          "allowed": TOLERANCE[dtype],
          "holds": apart <= TOLERANCE[dtype],
        }
      )
  return Table(f"Agreement of kernels, {dtype}", rows)


def _masks() -> dict[str, Mask]:
  """Two rows of packed segments with padding, by kind of attention."""
  # More than a chunk, and multiples of 128, as `splash` takes them.
  place = jnp.arange(384)
  segments = jnp.stack(
    [jnp.where(place < 100, 1, 2 * (place < 370)), 1 * (place < 300)]
  )
  inputs = jnp.stack([(place < 30) | (place // 100 == 1), place < 120])
  place = jnp.arange(512)
  source = jnp.stack([jnp.where(place < 250, 1, 2), 1 * (place < 500)])
  return {
    "packed": Mask(segments, segments),
    "causal": Mask(segments, segments, causal=True),
    "prefix": Mask(segments, segments, inputs, causal=True),
    "cross": Mask(segments, source),
  }


def _apart(found: Array, expected: Array) -> float:
  """Largest difference, over the largest entry."""
  x, y = np.asarray(found, np.float32), np.asarray(expected, np.float32)
  return float(np.abs(x - y).max() / np.abs(y).max())
