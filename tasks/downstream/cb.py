"""CommitmentBank: whether a text entails or contradicts one of its own clauses.

The official score is the mean of accuracy and macro-averaged F1.
"""

from collections.abc import Sequence

from raptr_jax.tasks.downstream import metrics, superglue
from raptr_jax.tasks.downstream.task import Example, RankTask, Record, Scores

PROMPT = """\
{premise}
question: {hypothesis}. True, false or neither?
answer:"""
LABELS = ("entailment", "contradiction", "neutral")
CHOICES = ("true", "false", "neither")


def to_example(record: Record) -> Example:
  """The example of a record."""
  return superglue.choice_example(
    PROMPT.format_map(record),
    choices=CHOICES,
    label=record["label"],
    label_names=LABELS,
  )


def compute_scores(
  examples: Sequence[Example], chosen: Sequence[int]
) -> Scores:
  """Accuracy, and F1 averaged over the three classes."""
  labels = superglue.labels_of(examples)
  f1 = metrics.macro_f1(labels, chosen, num_classes=len(CHOICES))
  return {**superglue.accuracy_scores(examples, chosen), "f1": 100 * f1}


TASK = RankTask(
  name="cb",
  tfds_name="super_glue/cb:1.0.2",
  files=superglue.files("CB", "cb"),
  to_records=superglue.single_record,
  to_example=to_example,
  metrics=("accuracy", "f1"),
  compute_scores=compute_scores,
)
