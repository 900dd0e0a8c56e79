"""The training step, compiled ahead of time for every form of draw in a run."""

import concurrent.futures
import contextlib
from typing import TypeVar

import jax
from jax.stages import Compiled, Wrapped
from jaxtyping import PyTree

from raptr_jax.contracts import BatchSpec, DeviceBatch, Draws, Metrics
from raptr_jax.methods.draws import DrawTable
from raptr_jax.training.partitioning import Partitioner

State = TypeVar("State")


class CompiledSteps(contextlib.AbstractContextManager["CompiledSteps"]):
  """A step function, compiled for each form of draw that a run will meet.

  Under `gather` each path length (with several stacks: each combination of
  lengths) has its own program. A background thread compiles them in the order
  of their first use, so that training waits only for the first, unless a stage
  begins before its program is ready.
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
  ):
    """Starts to compile the programs of steps `start`, `start + 1`, ...

    Args:
      step_fn: a jitted (state, batch, draws) -> (state, metrics).
      abstract_state: shapes, types and placement of the state.
      abstract_batch: those of a batch.
      draws: of the whole run.
      start: first step that will run.
      partitioner: places the draws.
    """
    self._draws = draws
    self._partitioner = partitioner
    self._pool = concurrent.futures.ThreadPoolExecutor(1, "compile")
    self._programs: dict[int, concurrent.futures.Future[Compiled]] = {}

    def compile_for(draws: Draws) -> Compiled:
      abstract = abstract_draws(draws, partitioner.replicated)
      return step_fn.lower(abstract_state, abstract_batch, abstract).compile()

    for program in map(draws.program, draws.first_steps(start)):
      future = self._pool.submit(compile_for, draws.example(program))
      self._programs[program] = future

  def __call__(
    self, step: int, state: State, batch: DeviceBatch
  ) -> tuple[State, Metrics]:
    """Runs `step` without waiting for its results; the state is donated."""
    draws = self._partitioner.put_replicated(self._draws.at(step))
    program = self.program(step)
    with jax.transfer_guard("disallow"):
      state, metrics = program(state, batch, draws)
    return state, metrics

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


def abstract_draws(draws: Draws, sharding: jax.sharding.Sharding) -> Draws:
  """Shapes, types and placement of draws."""
  abstract: Draws = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), draws
  )
  return abstract
