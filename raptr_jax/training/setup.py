"""What a run allocates and compiles: shared by planning and training."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
from jax.stages import Wrapped
from jaxtyping import Array, Bool, Int, Key, PyTree

from raptr_jax.contracts import BatchSpec, Params
from raptr_jax.methods.growth import grow
from raptr_jax.training.checkpoint import CheckpointFolder
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.state import Progress, TrainState, init_state
from raptr_jax.training.train_step import train_step


def abstract_state(experiment: Experiment) -> TrainState:
  """Shapes, types and placement of the state, without allocating it."""
  boxed = jax.eval_shape(_init(experiment), experiment.keys()["params"])
  sharding = experiment.partitioner.state_sharding(boxed)
  abstract: TrainState = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    nn.unbox(boxed),
    sharding,
  )
  return abstract


def fresh_state(experiment: Experiment, abstract: TrainState) -> TrainState:
  """The state of step 0; each part is created on the devices that hold it."""
  init = _init(experiment)
  unboxed = jax.jit(
    lambda key: nn.unbox(init(key)), out_shardings=_placement(abstract)
  )
  state: TrainState = unboxed(experiment.keys()["params"])
  return state


def initial_state(
  experiment: Experiment,
  checkpoints: CheckpointFolder,
  abstract: TrainState,
  note: Callable[[str], None],
) -> tuple[TrainState, Progress]:
  """The state that a run starts from; `checkpoint.py` says which.

  Args:
    experiment: the run.
    checkpoints: its own.
    abstract: see `abstract_state`.
    note: called with a message about where the state comes from.

  Returns:
    The state, and its progress.

  Raises:
    FileNotFoundError: if the configured initial checkpoint does not exist.
  """
  step = checkpoints.latest_step()
  if step is not None:
    note(f"resuming from the checkpoint of step {step}")
    return checkpoints.restore(abstract)
  state = fresh_state(experiment, abstract)
  params = checkpoints.restore_initial(abstract.params)
  if params is not None:
    note("starting from the parameters of the initial checkpoint")
    state = dataclasses.replace(state, params=dict(state.params) | params)
  return state, {}


def abstract_batch(experiment: Experiment) -> BatchSpec:
  """Shapes, types and placement of a global batch."""
  sharding = experiment.partitioner.batch_sharding
  return {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    for name, x in experiment.train_dataset.batch_spec().items()
  }


def jitted_step(experiment: Experiment, abstract: TrainState) -> Wrapped:
  """`train_step` for this run; it donates the state and keeps its placement."""
  step = functools.partial(
    train_step,
    model=experiment.model,
    optimizer=experiment.optimizer,
    dropout_key=experiment.keys()["dropout"],
    num_microbatches=experiment.num_microbatches,
    replica_axes=experiment.partitioner.replica_axes,
  )
  return jax.jit(
    experiment.partitioner.on_mesh(step),
    donate_argnums=0,
    out_shardings=(_placement(abstract), experiment.partitioner.replicated),
  )


def jitted_grow(abstract: TrainState) -> Wrapped:
  """(state, sources, resets) -> the state with its layers rearranged.

  The arguments are those of `growth.grow`; the state is donated.
  """

  def grown(
    state: TrainState,
    sources: Mapping[str, Int[Array, "L"]],
    resets: Mapping[str, Bool[Array, "L"]],
  ) -> TrainState:
    params, opt_state = grow(state.params, state.opt_state, sources, resets)
    return TrainState(state.step, params, opt_state)

  return jax.jit(grown, donate_argnums=0, out_shardings=_placement(abstract))


def parameter_count(params: Params) -> int:
  """Number of parameters in a tree of arrays or of their shapes."""
  return sum(x.size for x in jax.tree.leaves(params))


def _init(experiment: Experiment) -> Callable[[Key[Array, ""]], TrainState]:
  return functools.partial(
    init_state, model=experiment.model, optimizer=experiment.optimizer
  )


def _placement(abstract: TrainState) -> PyTree:
  return jax.tree.map(lambda x: x.sharding, abstract)
