"""Begins to compile all that a run will need, in the order of first use."""

import functools
from collections.abc import Callable, Iterator

from jax.stages import Wrapped

from raptr_jax.methods.growth import row_moves
from raptr_jax.training import setup
from raptr_jax.training.compiled_steps import CompiledSteps
from raptr_jax.training.digests import compile_digests
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.held_out import HeldOutEvaluator
from raptr_jax.training.plan import Plan
from raptr_jax.training.state import TrainState


def compile_ahead(
  experiment: Experiment,
  plan: Plan,
  *,
  abstract: TrainState,
  evaluator: HeldOutEvaluator,
  grow: Wrapped,
  start: int,
) -> CompiledSteps:
  """The steps of a run; what it runs between them is compiled in turn.

  Args:
    experiment: the run.
    plan: has its draws.
    abstract: shapes, types and placement of its state.
    evaluator: of its model.
    grow: see `setup.jitted_grow`.
    start: first step that will run.
  """

  def others() -> Iterator[tuple[int, Callable[[], object]]]:
    yield evaluator.next_due(start), evaluation(start)
    yield (
      experiment.checkpointer.next_due(start),
      functools.partial(compile_digests, abstract),
    )
    for step in experiment.boundaries if experiment.growths else ():
      if step >= start:
        yield step, functools.partial(compile_growth, step)
        yield step, evaluation(step)

  def evaluation(step: int) -> Callable[[], object]:
    depths = experiment.depths(step)
    return functools.partial(evaluator.compile, abstract.params, depths)

  def compile_growth(step: int) -> None:
    put = experiment.partitioner.put_replicated
    moves = map(put, row_moves(experiment.growths, step))
    grow.lower(abstract, *moves).compile()

  return CompiledSteps(
    setup.jitted_step(experiment, abstract),
    abstract,
    setup.abstract_batch(experiment),
    plan.draws,
    start=start,
    partitioner=experiment.partitioner,
    limited=experiment.loss_watch is not None,
    others=list(others()),
  )
