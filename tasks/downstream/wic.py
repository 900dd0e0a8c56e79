"""WiC (arXiv 1808.09121): whether a word means the same in two sentences."""

from raptr_jax.tasks.downstream import superglue
from raptr_jax.tasks.downstream.task import Example, RankTask, Record

PROMPT = """\
{sentence1}
{sentence2}
question: Does the word "{word}" mean the same in both sentences?
answer:"""
CHOICES = ("no", "yes")


def to_example(record: Record) -> Example:
  """The example of a record."""
  return superglue.choice_example(
    PROMPT.format_map(record), choices=CHOICES, label=record["label"]
  )


TASK = RankTask(
  name="wic",
  tfds_name="super_glue/wic:1.0.2",
  files=superglue.files("WiC", "wic"),
  to_records=superglue.single_record,
  to_example=to_example,
  metrics=("accuracy",),
  compute_scores=superglue.accuracy_scores,
)
