"""WSC: whether a pronoun refers to a noun; *stars* mark the pronoun."""

from collections.abc import Iterator

from raptr_jax.tasks.downstream import superglue
from raptr_jax.tasks.downstream.task import Example, RankTask, Record

PROMPT = """\
{text}
question: Does "{span2_text}" stand for "{span1_text}" here?
answer:"""
CHOICES = ("no", "yes")


def to_records(row: Record) -> Iterator[Record]:
  """The record of a line, with its nested spans flattened."""
  yield {**row, **row["target"]}


def to_example(record: Record) -> Example:
  """The example of a record."""
  pronoun = record["span2_text"]
  words = record["text"].split()
  place = record["span2_index"]
  words[place] = words[place].replace(pronoun, f"*{pronoun}*", 1)
  return superglue.choice_example(
    PROMPT.format_map({**record, "text": " ".join(words)}),
    choices=CHOICES,
    label=record["label"],
  )


TASK = RankTask(
  name="wsc",
  tfds_name="super_glue/wsc.fixed:1.0.2",
  files=superglue.files("WSC", "wsc"),
  to_records=to_records,
  to_example=to_example,
  metrics=("accuracy",),
  compute_scores=superglue.accuracy_scores,
)
