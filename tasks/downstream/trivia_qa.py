"""Closed-book TriviaQA (arXiv 1705.03551): questions without evidence.

Uses the unfiltered questions, as GPT-3's evaluation does. References are all
aliases of the answer, and human answers where the file has them.
"""

from collections.abc import Iterator, Sequence

from raptr_jax.tasks.downstream import metrics
from raptr_jax.tasks.downstream.task import (
  Answer,
  Example,
  GenerationTask,
  Record,
  Scores,
)

PROMPT = """\
question: {question}
answer:"""


def to_records(document: Record) -> Iterator[Record]:
  """The records of a file, in TFDS's form."""
  for row in document["Data"]:
    answer = row["Answer"]
    yield {
      "question": row["Question"].strip(),
      "answer": {
        "value": answer["Value"].strip(),
        "normalized_aliases": [
          *answer["NormalizedAliases"],
          *answer.get("HumanAnswers", []),
        ],
      },
    }


def to_example(record: Record) -> Example:
  """The example of a record."""
  answer = record["answer"]
  return Example(
    prompt=PROMPT.format_map(record),
    answer=answer["value"],
    references=tuple(answer["normalized_aliases"]),
  )


def compute_scores(
  examples: Sequence[Example], answers: Sequence[Answer]
) -> Scores:
  """Exact match and F1, against the best-matching alias."""
  exact, f1 = metrics.exact_and_f1(
    [answer.text for answer in answers],
    [example.references for example in examples],
    normalize=metrics.normalize_trivia_qa,
  )
  return {"exact": 100 * exact, "f1": 100 * f1}


TASK = GenerationTask(
  name="trivia_qa",
  tfds_name="trivia_qa/unfiltered.nocontext:1.1.0",
  files={
    "train": (
      "triviaqa-unfiltered/unfiltered-web-train.json",
      "unfiltered-web-train.json",
    ),
    "validation": (
      "triviaqa-unfiltered/unfiltered-web-dev.json",
      "unfiltered-web-dev.json",
    ),
  },
  to_records=to_records,
  to_example=to_example,
  metrics=("exact", "f1"),
  compute_scores=compute_scores,
  max_new_tokens=24,
  next_cue="question:",
)
