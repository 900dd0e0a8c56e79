"""SQuAD 2.0 (arXiv 1806.03822): questions about passages, half unanswerable.

A model abstains by writing NO_ANSWER, or if its no-answer score is above 0: it
finds NO_ANSWER likelier than what it wrote.
"""

from collections.abc import Sequence

from raptr_jax.tasks.downstream import metrics, squad_format
from raptr_jax.tasks.downstream.task import (
  Answer,
  Example,
  GenerationTask,
  Record,
  Scores,
)

PROMPT = """\
title: {title}
passage: {context}
question: {question} (If the passage does not say, answer "unanswerable".)
answer:"""
NO_ANSWER = "unanswerable"


def to_example(record: Record) -> Example:
  """The example of a record."""
  references = record["answers"]["text"]
  return Example(
    prompt=PROMPT.format_map({**record, "title": _spaced(record["title"])}),
    answer=references[0] if references else NO_ANSWER,
    references=tuple(references),
  )


def _spaced(title: str) -> str:
  """A title with spaces instead of the files' underscores."""
  return title.replace("_", " ")


def compute_scores(
  examples: Sequence[Example], answers: Sequence[Answer]
) -> Scores:
  """Exact match and F1 at threshold 0, and at the best threshold.

  Those at threshold 0 are also told of the questions with an answer (HasAns)
  and of those without (NoAns), if there are any.
  """
  texts = [_given(answer.text) for answer in answers]
  answerable = [bool(example.references) for example in examples]
  scores = {}
  for name, metric in (
    ("exact", metrics.exact_match),
    ("f1", metrics.token_f1),
  ):
    raw = [
      metrics.squad_match(metric, text, example.references)
      for text, example in zip(texts, examples)
    ]
    final = [
      float(not has_answer) if answer.no_answer_score > 0 else score
      for score, answer, has_answer in zip(raw, answers, answerable)
    ]
    scores[name] = 100 * metrics.mean(final)
    for half, has in (("HasAns", True), ("NoAns", False)):
      if has in answerable:
        scores[f"{half}_{name}"] = 100 * metrics.mean(
          score for score, is_in in zip(final, answerable) if is_in == has
        )
    scores[f"best_{name}"] = 100 * metrics.best_threshold_mean(
      raw,
      no_answer_scores=[answer.no_answer_score for answer in answers],
      answerable=answerable,
      answered=[bool(text) for text in texts],
    )
  return scores


def _given(text: str) -> str:
  """What a model answered; empty if it wrote NO_ANSWER."""
  return "" if metrics.normalize_squad(text) == NO_ANSWER else text


TASK = GenerationTask(
  name="squad_v2",
  tfds_name="squad/v2.0:3.0.0",
  files={
    "train": ("train-v2.0.json",),
    "validation": ("dev-v2.0.json",),
  },
  to_records=squad_format.to_records,
  to_example=to_example,
  metrics=("exact", "f1"),
  details=("HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1"),
  compute_scores=compute_scores,
  max_new_tokens=32,
  next_cue="title:",
  no_answer=NO_ANSWER,
)
