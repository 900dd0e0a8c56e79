"""MultiRC: whether a candidate answers a question about a paragraph.

A question has several candidates, any number of them right; each is a separate
example. The official score is the mean of F1 over all candidates and exact
match per question.
"""

from collections.abc import Iterator, Sequence

from raptr_jax.tasks.downstream import metrics, superglue
from raptr_jax.tasks.downstream.task import Example, RankTask, Record, Scores

PROMPT = """\
{paragraph}
question: {question}
candidate: {answer}
Is the candidate a right answer?
answer:"""
CHOICES = ("no", "yes")


def to_records(row: Record) -> Iterator[Record]:
  """A record for each candidate answer to each question."""
  for question in row["passage"]["questions"]:
    for answer in question["answers"]:
      yield {
        "paragraph": row["passage"]["text"],
        "question": question["question"],
        "answer": answer["text"],
        "label": answer["label"],
        "idx": {"paragraph": row["idx"], "question": question["idx"]},
      }


def to_example(record: Record) -> Example:
  """The example of a record."""
  number = record["idx"]
  return superglue.choice_example(
    PROMPT.format_map(record),
    choices=CHOICES,
    label=record["label"],
    group=f"{number['paragraph']}-{number['question']}",
  )


def compute_scores(
  examples: Sequence[Example], chosen: Sequence[int]
) -> Scores:
  """F1 of the class of right candidates, and share of flawless questions."""
  labels = superglue.labels_of(examples)
  groups = [example.group for example in examples]
  right = [label == choice for label, choice in zip(labels, chosen)]
  return {
    "f1a": 100 * metrics.f1(labels, chosen, of=1),
    "exact": 100 * metrics.grouped_exact(groups, right),
  }


TASK = RankTask(
  name="multirc",
  tfds_name="super_glue/multirc:1.0.2",
  files=superglue.files("MultiRC", "multirc"),
  to_records=to_records,
  to_example=to_example,
  metrics=("f1a", "exact"),
  compute_scores=compute_scores,
  dependent_groups=True,
)
