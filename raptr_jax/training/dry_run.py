"""Prints what a run would do and cost; trains nothing."""

import numpy as np
from rich.console import Console
from rich.table import Table

from raptr_jax.tasks.text.vocabulary import AtMost
from raptr_jax.training import setup
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.plan import Plan, make_plan
from raptr_jax.training.programs_page import print_programs
from raptr_jax.training.token_counts import (
  padding,
  real_tokens,
  token_positions,
)


def print_plan(experiment: Experiment, *, every_program: bool = False) -> None:
  """Prints what a run does and costs: FLOPs, stages, tokens, memory.

  Args:
    experiment: the run.
    every_program: whether to compile more of the run's programs than those of
      the shortest and the longest path, see `print_programs`.
  """
  console = Console(highlight=False, soft_wrap=True)
  plan = make_plan(experiment)
  params = setup.abstract_state(experiment).params
  dense_step = plan.step_flops.step(plan.stacks)
  facts = {
    **_vocabulary(experiment),
    "parameters": f"{setup.parameter_count(params):,}",
    "FLOPs of a dense step": f"{dense_step:.4g}",
    "FLOPs of the run": f"{plan.flops_spent(plan.total_steps):.4g}"
    f" (dense: {plan.dense_flops:.4g})",
    "FLOP factor, layers alone": f"{plan.flop_factor_nominal:.3f} nominal,"
    f" {plan.flop_factor_spent:.3f} with this seed's draws",
    "FLOP factor, whole step": f"{plan.flop_factor_whole_step:.3f}",
    "solved for the FLOP factor": _solved_for(experiment),
    "token positions": f"{plan.total_steps * plan.batch_positions:,}"
    f" ({plan.batch_positions:,} a step)",
    "of which padding": _padding(experiment),
    "epochs": _epochs(experiment),
  }
  for name, value in facts.items():
    console.print(f"{name:<35}{value}")
  console.print(_stage_table(plan))
  print_programs(experiment, plan, console, every_program=every_program)


def _vocabulary(experiment: Experiment) -> dict[str, str]:
  """A fact about a vocabulary whose size is not known yet."""
  size = experiment.vocabulary_size
  if not isinstance(size, AtMost):
    return {}
  return {"vocabulary": f"not trained yet; counted with its limit, {size:,}"}


def _solved_for(experiment: Experiment) -> str:
  """The method's free number, if a FLOP factor has decided it."""
  solved_for = experiment.solved_for.items()
  return ", ".join(f"{name} = {value:.4g}" for name, value in solved_for) or "-"


def _epochs(experiment: Experiment) -> str:
  size = experiment.train_dataset.num_examples
  if size is None:
    return "unknown: streamed, or not prepared yet"
  examples = experiment.total_steps * experiment.train_dataset.batch_size
  return f"{examples / size:.2f} of {size:,} examples"


def _padding(experiment: Experiment) -> str:
  """The share of a batch without text, of data that are prepared."""
  dataset = experiment.train_dataset
  if dataset.num_examples is None:
    return "unknown: streamed, or not prepared yet"
  dataset.open()
  batch = next(dataset.batches(0))
  share = padding(float(real_tokens(batch)), token_positions(batch))
  return "unknown" if share is None else f"{share:.1%} (first batch)"


def _stage_table(plan: Plan) -> Table:
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
  for number, stage in enumerate(plan.stages, 1):
    lengths = stage.path_lengths
    table.add_row(
      str(number),
      f"{stage.start:,}",
      f"{stage.steps:,}",
      " / ".join(_probability(stage.chances.get(name)) for name in plan.stacks),
      " / ".join(f"{lengths[name]:.2f}" for name in plan.stacks),
      f"{plan.step_flops.step(lengths):.4g}",
    )
  return table


def _probability(chances: tuple[float, float] | None) -> str:
  """The keep probabilities that are strictly between 0 and 1."""
  if chances is None:
    return "1"
  return " - ".join(f"{p:.4g}" for p in np.unique(np.round(chances, 4)))
