"""SQuAD 1.1 and 2.0 for models that point at answers in their passages.

For those that write, 2.0 is a task by prompt, and 1.1 is one here, whose prompt
follows T5 (arXiv 1910.10683, appendix D).

The original files are `train-v1.1.json`, `dev-v1.1.json` and those of v2.0.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from raptr_jax.tasks.downstream import metrics, sources, squad_format
from raptr_jax.tasks.downstream.task import (
  Answer,
  Example,
  GenerationTask,
  Record,
)

MATCHES = {"exact": metrics.exact_match, "f1": metrics.token_f1}
METRICS = tuple(MATCHES)
MACROS = "FINE_TUNING"
PROMPT = "question: {question} context: {context}"


@dataclasses.dataclass(frozen=True)
class SpanExample:
  """A question, and where its passage has the answer.

  Attributes:
    id: of the question.
    question: its text.
    passage: its text.
    answers: right ones, each as it stands in the passage; () if there is none.
    start: index in the passage of the first answer's first character; -1 if
      there is none.
  """

  id: str
  question: str
  passage: str
  answers: tuple[str, ...]
  start: int


@dataclasses.dataclass(frozen=True)
class SpanTask:
  """Questions whose answers are in their passages.

  Attributes:
    name: of the task.
    version: of SQuAD, such as "v1.1".
  """

  name: str
  version: str

  @property
  def always_answered(self) -> bool:
    """Whether every question has an answer."""
    return self.version == "v1.1"

  def examples_from_folder(self, folder: str, split: str) -> list[SpanExample]:
    """The questions of a split, from the original file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not in its original format, or is empty.
    """
    official = {"train": "train", "validation": "dev"}[split]
    path = sources.find_file(
      folder, (f"{official}-{self.version}.json",), macros=MACROS
    )
    try:
      examples = [
        _example(record)
        for row in sources.rows(path)
        for record in squad_format.to_records(row)
      ]
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(
        f"{path} is not a file of SQuAD {self.version} in its original format"
        f" ({error!r}): correct it, or --gin.FINE_TUNING_DIR"
      ) from error
    if not examples:
      raise ValueError(
        f"{path} has no questions: correct it, or --gin.FINE_TUNING_DIR"
      )
    return examples

  def examples_from_tfds(
    self, split: str, data_dir: str | None = None
  ) -> list[SpanExample]:
    """The questions of a split, from TensorFlow Datasets.

    Raises:
      FileNotFoundError: the set is not prepared.
    """
    name = f"squad/{self.version}:3.0.0"
    records = sources.tfds_records(name, split, data_dir, macros=MACROS)
    return [_example(record) for record in records]

  def scores(
    self, examples: Sequence[SpanExample], predictions: Sequence[str]
  ) -> dict[str, float]:
    """Exact match and F1, times 100, by the official rules.

    Args:
      examples: the questions.
      predictions: the answer to each; "" for none.
    """
    found = {
      name: 100
      * metrics.mean(
        metrics.squad_match(metric, guess, x.answers)
        for x, guess in zip(examples, predictions, strict=True)
      )
      for name, metric in MATCHES.items()
    }
    return found | {"score": metrics.mean(found[name] for name in METRICS)}


def _example(record: Any) -> SpanExample:
  answers = record["answers"]
  texts = tuple(answers["text"])
  starts = answers["answer_start"]
  example = SpanExample(
    id=record["id"],
    question=record["question"],
    passage=record["context"],
    answers=texts,
    start=int(starts[0]) if texts else -1,
  )
  if texts and not example.passage[example.start :].startswith(texts[0]):
    raise ValueError(
      f"question {example.id}: the passage does not have {texts[0]!r} at"
      f" character {example.start}"
    )
  return example


TASKS = {
  task.name: task
  for task in (SpanTask("squad", "v1.1"), SpanTask("squad_v2", "v2.0"))
}


def _in_words(record: Record) -> Example:
  texts = tuple(record["answers"]["text"])
  return Example(
    prompt=PROMPT.format_map(record), answer=texts[0], references=texts
  )


def _score_words(
  examples: Sequence[Example], answers: Sequence[Answer]
) -> dict[str, float]:
  return {
    name: 100
    * metrics.mean(
      metrics.squad_match(metric, answer.text, example.references)
      for example, answer in zip(examples, answers)
    )
    for name, metric in MATCHES.items()
  }


IN_WORDS = GenerationTask(
  name="squad",
  tfds_name="squad/v1.1:3.0.0",
  files={"train": ("train-v1.1.json",), "validation": ("dev-v1.1.json",)},
  to_records=squad_format.to_records,
  to_example=_in_words,
  metrics=METRICS,
  compute_scores=_score_words,
  max_new_tokens=32,
  next_cue="question:",
)
