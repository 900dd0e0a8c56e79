"""Suite `attention`: the kernels of `models/attention.py` by length of a row.

Value and gradients, with a causal mask and two packed segments a row. Batches
have equally many tokens, until a single row has more. `apart` is the largest
difference from the plain kernel among values and gradients, over the largest
entry. A program that would take over half of the memory is not run.
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
Results: TypeAlias = Sequence[Array]


def run(size: str, rounds: int) -> Iterator[Table]:
  """One table for each length, as soon as it is measured."""
  tokens, heads, width, dtype, lengths = SIZES[size]
  for length in lengths:
    shape = (max(1, tokens // length), heads, length, width)
    rows = list(_rows(shape, dtype, rounds))
    name = " x ".join(map(str, shape))
    yield Table(f"Attention: {length} tokens, {name}, {dtype}", rows)


def _rows(
  shape: Sequence[int], dtype: str, rounds: int
) -> Iterator[dict[str, Value]]:
  """A row for each kernel that this kind of device has."""
  rng = np.random.default_rng(0)
  arrays = [jnp.asarray(rng.normal(0, 1, shape), dtype) for _ in range(4)]
  kernels = ("plain", "chunked", *FUSED.get(jax.default_backend(), ()))
  programs = {
    kernel: jax.jit(_step(kernel, shape)).lower(*arrays).compile()
    for kernel in kernels
  }
  memory = {kernel: memory_mb(program) for kernel, program in programs.items()}
  most_mb = 500 * (device_gb() or MACHINE_GB)
  fitting: dict[str, Callable[[], Results]] = {
    kernel: functools.partial(_wait_for, program, arrays)
    for kernel, program in programs.items()
    if (memory[kernel]["temporary MB"] or 0.0) < most_mb
  }
  results = {kernel: step() for kernel, step in fitting.items()}
  seconds = take_turns(fitting, rounds=rounds, warmup=1)
  plain = results.get("plain")
  for kernel in kernels:
    found, times = results.get(kernel), seconds.get(kernel)
    yield {
      "kernel": kernel,
      "ms": statistics.median(times) * 1e3 if times else None,
      "temporary MB": memory[kernel]["temporary MB"],
      "apart": _apart(found, plain) if found and plain else None,
    }


def _step(kernel: str, shape: Sequence[int]) -> Callable[..., Results]:
  """(query, keys, values, direction) -> value and gradients."""
  length, width = shape[2:]
  segments = jnp.where(jnp.arange(length) < length // 2, 1, 2)[None]
  mask = Mask(segments, segments, causal=True)

  def step(
    query: Array, keys: Array, values: Array, direction: Array
  ) -> Results:
    def value(query: Array, keys: Array, values: Array) -> Array:
      return attend(query, keys, values, mask, scale=width**-0.5, kernel=kernel)

    out, pull_back = jax.vjp(value, query, keys, values)
    return out, *pull_back(direction)

  return Partitioner().on_mesh(step)


def _wait_for(program: Compiled, arrays: Sequence[Array]) -> Results:
  results: Results = jax.block_until_ready(program(*arrays))
  return results


def _apart(found: Results, expected: Results) -> float:
  """Largest difference among arrays, over the largest entry of each."""
  pairs = (
    (np.asarray(x, np.float32), np.asarray(y, np.float32))
    for x, y in zip(found, expected, strict=True)
  )
  return max(float(abs(x - y).max() / abs(y).max()) for x, y in pairs)
