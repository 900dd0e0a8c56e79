"""RTE: whether a text entails a hypothesis."""

from raptr_jax.tasks.downstream import superglue
from raptr_jax.tasks.downstream.task import Example, RankTask, Record

PROMPT = """\
{premise}
question: {hypothesis} True or false?
answer:"""
LABELS = ("entailment", "not_entailment")
CHOICES = ("true", "false")


def to_example(record: Record) -> Example:
  """The example of a record."""
  return superglue.choice_example(
    PROMPT.format_map(record),
    choices=CHOICES,
    label=record["label"],
    label_names=LABELS,
  )


TASK = RankTask(
  name="rte",
  tfds_name="super_glue/rte:1.0.2",
  files=superglue.files("RTE", "rte"),
  to_records=superglue.single_record,
  to_example=to_example,
  metrics=("accuracy",),
  compute_scores=superglue.accuracy_scores,
)
