"""BoolQ (arXiv 1905.10044): a yes/no question about a passage."""

from raptr_jax.tasks.downstream import superglue
from raptr_jax.tasks.downstream.task import Example, RankTask, Record

PROMPT = """\
{passage}
question: {question}?
answer:"""
CHOICES = ("no", "yes")


def to_example(record: Record) -> Example:
  """The example of a record."""
  return superglue.choice_example(
    PROMPT.format_map(record), choices=CHOICES, label=record["label"]
  )


TASK = RankTask(
  name="boolq",
  tfds_name="super_glue/boolq:1.0.2",
  files=superglue.files("BoolQ", "boolq"),
  to_records=superglue.single_record,
  to_example=to_example,
  metrics=("accuracy",),
  compute_scores=superglue.accuracy_scores,
)
