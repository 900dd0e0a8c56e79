"""Prints what a run would do and cost; reads no data, trains nothing."""

from collections.abc import Mapping

import numpy as np
from rich.console import Console
from rich.table import Table

from raptr_jax import execution
from raptr_jax import plan as plans
from raptr_jax.contracts import Draws
from raptr_jax.experiment import Experiment
from raptr_jax.state import TrainState


def print_plan(experiment: Experiment) -> None:
  """Prints parameters, stages, FLOPs, memory, tokens and epochs of a run."""
  console = Console(highlight=False, soft_wrap=True)
  plan = plans.make_plan(experiment)
  abstract = plans.abstract_state(experiment)
  dense_step = plan.step_flops.step(plan.stacks)
  facts = {
    "parameters": f"{plans.parameter_count(abstract):,}",
    "FLOPs of a dense step": f"{dense_step:.4g}",
    "FLOPs of the run": f"{plan.flops_spent(plan.total_steps):.4g}"
    f" (dense: {plan.dense_flops:.4g})",
    "FLOP factor over dense, blocks": f"{plan.flop_factor_nominal:.3f} nominal,"
    f" {plan.flop_factor_spent:.3f} with this seed's draws",
    "FLOP factor, embeddings and head too": f"{plan.flop_factor_whole_step:.3f}",
    "solved for the FLOP factor": _solved(experiment),
    "tokens": f"{plan.total_steps * plan.batch_tokens:,}"
    f" ({plan.batch_tokens:,} a step)",
    "epochs": _epochs(experiment),
  }
  for name, value in facts.items():
    console.print(f"{name:<44}{value}")
  console.print(_stage_table(plan))
  console.print("compiling the step ...")
  for name, figure in _memory(experiment, plan, abstract).items():
    console.print(f"{name:<44}{figure}")


def _solved(experiment: Experiment) -> str:
  """The method's free number, if a FLOP factor has decided it."""
  solved = experiment.solved.items()
  return ", ".join(f"{name} = {value:.4g}" for name, value in solved) or "-"


def _epochs(experiment: Experiment) -> str:
  size = experiment.train_dataset.num_examples
  if size is None:
    return "not known before the data is prepared, or streamed"
  examples = experiment.total_steps * experiment.train_dataset.batch_size
  return f"{examples / size:.2f} of {size:,} examples"


def _stage_table(plan: plans.Plan) -> Table:
  caption = " / ".join(plan.stacks) if len(plan.stacks) > 1 else None
  table = Table(
    "stage",
    "from step",
    "steps",
    "p",
    "path length",
    "FLOPs a step",
    caption=caption,
  )
  for column in table.columns[1:]:
    column.justify = "right"
  for stage, (start, steps, lengths) in enumerate(plan.stage_table(), 1):
    chances = (x[start : start + steps] for x in plan.inclusion.values())
    table.add_row(
      str(stage),
      f"{start:,}",
      f"{steps:,}",
      " / ".join(map(_probability, chances)),
      " / ".join(f"{length:.2f}" for length in lengths.values()),
      f"{plan.step_flops.step(lengths):.4g}",
    )
  return table


def _probability(inclusion: np.ndarray) -> str:
  """Inclusion probability of the layers that may or may not run."""
  chance = (inclusion > 0) & (inclusion < 1)
  free = np.unique(np.round(inclusion[chance], 4))
  if free.size == 0:
    return "1"
  return " - ".join(f"{p:.4g}" for p in np.unique(free[[0, -1]]))


def _memory(
  experiment: Experiment, plan: plans.Plan, abstract: TrainState
) -> dict[str, str]:
  """XLA's memory figures of the step, for the shortest and the full path."""
  shortest = int(plan.draws.path_lengths.argmin())
  lengths = {name: x[shortest] for name, x in plan.draws.stack_lengths.items()}
  if experiment.execution == "cond":
    cases = {"any path": plan.stacks}
  else:  # One case, if there are no shorter paths.
    cases = {"shortest path": lengths, "full path": plan.stacks}
    if lengths == plan.stacks:
      del cases["shortest path"]
  step = plans.jitted_step(experiment, abstract)
  batch = plans.abstract_batch(experiment)
  figures = {}
  for name, kept in cases.items():
    draws = execution.abstract_draw(
      _lowest_layers(plan, kept, experiment.execution),
      experiment.partitioner.replicated,
    )
    memory = step.lower(abstract, batch, draws).compile().memory_analysis()
    layers = sum(kept.values())
    figures[f"memory of a step, {name} ({layers} layers)"] = (
      f"{memory.temp_size_in_bytes / 2**20:,.0f} MiB temporary,"
      f" {memory.argument_size_in_bytes / 2**20:,.0f} MiB state and batch"
    )
  return figures


def _lowest_layers(
  plan: plans.Plan, kept: Mapping[str, int], form: str
) -> Draws:
  masks = {n: np.arange(size) < kept[n] for n, size in plan.stacks.items()}
  return {
    name: execution.as_executed(mask, mask.astype(np.float32), form)
    for name, mask in masks.items()
  }
