"""The programs of a run, compiled before they are needed."""

import concurrent.futures
import contextlib
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.stages import Compiled, Wrapped
from jaxtyping import PyTree

from raptr_jax.contracts import BatchSpec, DeviceBatch, Draws, Metrics
from raptr_jax.methods.draws import DrawTable
from raptr_jax.training.partitioning import Partitioner

State = TypeVar("State")


class CompiledSteps(contextlib.AbstractContextManager["CompiledSteps"]):
  """A step function, compiled for each form of draw that a run will meet.

  Under `gather` that is one program for each path length, or for each bucket of
  them; see `path_buckets.py`. A background thread compiles programs in the
  order of their first use, those of other functions among them, so that
  training waits for them in its first steps, and later only if a stage begins
  before its program is ready.
  """

  def __init__(
    self,
    step_fn: Wrapped,
    abstract_state: PyTree,
    abstract_batch: BatchSpec,
    draws: DrawTable,
    *,
    start: int,
    partitioner: Partitioner,
    limited: bool = False,
    others: Sequence[tuple[int, Callable[[], object]]] = (),
  ):
    """Starts to compile the programs of steps `start`, `start + 1`, ...

    Args:
      step_fn: a jitted (state, batch, draws) -> (state, metrics).
      abstract_state: shapes, types and placement of the state.
      abstract_batch: those of a batch.
      draws: of the whole run.
      start: first step that will run.
      partitioner: places the draws.
      limited: whether the step takes a `loss_limit`.
      others: functions that compile something else, each with the step before
        which the run needs it.
    """
    self._draws = draws
    self._partitioner = partitioner
    self._limited = limited
    self._pool = concurrent.futures.ThreadPoolExecutor(1, "compile")

    def compile_for(draws: Draws) -> Compiled:
      abstract, limit = (
        abstract_copies(x, partitioner.replicated)
        for x in (draws, self._limit(0.0))
      )
      lowered = step_fn.lower(abstract_state, abstract_batch, abstract, **limit)
      return lowered.compile()

    others = sorted(others, key=lambda other: other[0])
    self._programs: dict[int, concurrent.futures.Future[Compiled]] = {}
    for step in draws.first_steps(start):
      while others and others[0][0] <= step:
        self._pool.submit(others.pop(0)[1])
      program = draws.program(step)
      example = draws.example(program)
      self._programs[program] = self._pool.submit(compile_for, example)
    for _, compile_other in others:
      self._pool.submit(compile_other)

  def __call__(
    self,
    step: int,
    state: State,
    batch: DeviceBatch,
    loss_limit: float = math.inf,
  ) -> tuple[State, Metrics]:
    """Runs `step` without waiting for its results; the state is donated."""
    draws = self._partitioner.put_replicated(self._draws.at(step))
    limit = self._partitioner.put_replicated(self._limit(loss_limit))
    program = self.program(step)
    with jax.transfer_guard("disallow"):
      state, metrics = program(state, batch, draws, **limit)
    return state, metrics

  def _limit(self, value: float) -> dict[str, np.ndarray]:
    """A limit of the loss, for steps that take one."""
    return (
      {"loss_limit": np.asarray(value, np.float32)} if self._limited else {}
    )

  def ready(self, step: int) -> bool:
    """Whether the program of `step` is compiled."""
    return self._programs[self._draws.program(step)].done()

  def program(self, step: int) -> Compiled:
    """The program of `step`; waits until it is compiled."""
    return self._programs[self._draws.program(step)].result()

  def __exit__(
    self, error_type: type[BaseException] | None, *error: object
  ) -> None:
    """Cancels what has not been compiled yet; an interrupt does not wait."""
    self._pool.shutdown(wait=error_type is None, cancel_futures=True)


def abstract_copies(tree: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
  """Shapes, types and placement of arrays of which devices have copies."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
  )
