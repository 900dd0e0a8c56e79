"""TyDiQA-GoldP (arXiv 2003.05002): questions about passages, in nine languages.

Each language is scored as in SQuAD 1.1; the official numbers are means over the
languages other than English. Shots may be in any language.
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
passage: {context}
question: {question}
answer:"""


def to_example(record: Record) -> Example:
  """The example of a record, grouped by the language in its id."""
  references = record["answers"]["text"]
  if not references:
    raise ValueError(f"the question {record['id']} has no answer")
  return Example(
    prompt=PROMPT.format_map(record),
    answer=references[0],
    references=tuple(references),
    group=record["id"].split("-")[0],
  )


def compute_scores(
  examples: Sequence[Example], answers: Sequence[Answer]
) -> Scores:
  """Exact match and F1: official, over all questions, and by language.

  The official ones are NaN if all examples are English.
  """
  exact, f1 = _scores(examples, answers)
  scores = {"exact_all": exact, "f1_all": f1}
  languages = sorted({example.group for example in examples})
  for language in languages:
    pairs = [p for p in zip(examples, answers) if p[0].group == language]
    exact, f1 = _scores(*zip(*pairs))
    scores |= {f"exact_{language}": exact, f"f1_{language}": f1}
  others = [language for language in languages if language != "english"]
  official = {
    name: metrics.mean(scores[f"{name}_{language}"] for language in others)
    for name in ("exact", "f1")
  }
  return official | scores


def _scores(
  examples: Sequence[Example], answers: Sequence[Answer]
) -> tuple[float, float]:
  exact, f1 = metrics.exact_and_f1(
    [answer.text for answer in answers],
    [example.references for example in examples],
    normalize=metrics.normalize_squad,
  )
  return 100 * exact, 100 * f1


TASK = GenerationTask(
  name="tydi_qa",
  tfds_name="tydi_qa/goldp:3.0.0",
  files={
    "train": ("tydiqa-goldp-v1.1-train.json",),
    "validation": ("tydiqa-goldp-v1.1-dev.json",),
  },
  to_records=squad_format.to_records,
  to_example=to_example,
  metrics=("exact", "f1"),
  details=("exact_english", "f1_english", "exact_all", "f1_all"),
  compute_scores=compute_scores,
  max_new_tokens=48,
  next_cue="passage:",
)
