"""COPA: which of two sentences is the cause, or the effect, of a premise.

The premise and a choice form one sentence; the model takes the likelier choice.
"""

import re

from raptr_jax.tasks.downstream import superglue
from raptr_jax.tasks.downstream.task import Example, RankTask, Record

PROMPTS = {"cause": "{premise} because", "effect": "{premise} so"}


def to_example(record: Record) -> Example:
  """The premise with a conjunction, and two clauses that may follow it."""
  premise = record["premise"].strip().rstrip(".")
  return superglue.choice_example(
    PROMPTS[record["question"]].format(premise=premise),
    choices=(_clause(record["choice1"]), _clause(record["choice2"])),
    label=record["label"],
  )


def _clause(sentence: str) -> str:
  """A sentence without its initial capital, unless that is the word I."""
  if re.match(r"I\b", sentence):
    return sentence
  return sentence[:1].lower() + sentence[1:]


TASK = RankTask(
  name="copa",
  tfds_name="super_glue/copa:1.0.2",
  files=superglue.files("COPA", "copa"),
  to_records=superglue.single_record,
  to_example=to_example,
  metrics=("accuracy",),
  compute_scores=superglue.accuracy_scores,
)
