"""Tasks by prompt: their examples, and how answers are scored.

There are two kinds. In a `RankTask` a model chooses the text with the greatest
log-likelihood after the prompt, summed over its tokens and not divided by their
number; scores called `..._norm` divide it by the number of characters. In a
`GenerationTask` it writes.

One space joins prompt and answer. A record is one example as TFDS stores it, in
plain Python; original files are converted to that form, so all later code is
shared.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from raptr_jax.tasks.downstream import sources

Record: TypeAlias = Mapping[str, Any]
Scores: TypeAlias = dict[str, float]  # By metric, 0 to 100.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
  """One question.

  Attributes:
    prompt: what the model reads, without shots and trailing space.
    answer: what follows the prompt if the example serves as a shot.
    choices: texts to choose from; () if the model writes.
    label: number of the right choice; None unless exactly one is right.
    candidates: what the choices stand for, if metrics compare other texts.
    references: right answers; () if the right answer is to abstain.
    group: what a metric groups by, such as a question or a language.
  """

  prompt: str
  answer: str
  choices: tuple[str, ...] = ()
  label: int | None = None
  candidates: tuple[str, ...] = ()
  references: tuple[str, ...] = ()
  group: str = ""


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a model wrote.

  Attributes:
    text: the new text, which may continue past the answer.
    no_answer_score: log-likelihood, after the prompt, of the task's `no_answer`
      minus that of the answer in `text`, in nats; 0 if the task has none.
  """

  text: str
  no_answer_score: float = 0.0


def joined(prompt: str, answer: str) -> str:
  """A prompt and its answer, as one text."""
  return f"{prompt} {answer}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptTask:
  """A data set that a model answers by prompt.

  Attributes:
    name: name of the task.
    tfds_name: the TFDS set, with its version.
    files: for each split, the original files that may hold it, as relative
      paths; the first one that exists is read.
    to_records: turns a line of a `.jsonl`, or all of a `.json`, into records.
    to_example: turns a record into an example.
    metrics: the official metrics; their mean is the task's score.
    details: further scores to show in tables.
    dependent_groups: whether the examples of a group depend on each other, as
      candidates of one question; standard errors leave them out together.
  """

  name: str
  tfds_name: str
  files: Mapping[str, tuple[str, ...]]
  to_records: Callable[[Any], Iterator[Record]]
  to_example: Callable[[Record], Example]
  metrics: tuple[str, ...]
  details: tuple[str, ...] = ()
  dependent_groups: bool = False

  def examples_from_folder(self, folder: str, split: str) -> list[Example]:
    """The examples of a split, from the original files.

    Args:
      folder: folder of the original files.
      split: "train" or "validation".

    Raises:
      FileNotFoundError: none of the split's `files` exists.
      ValueError: the split is unknown, or the file is not in its original
        format, has no labels, or is empty.
    """
    self._check_split(split)
    path = sources.find_file(folder, self.files[split])
    try:
      examples = [
        self.to_example(record)
        for row in sources.rows(path)
        for record in self.to_records(row)
      ]
    except (KeyError, ValueError) as error:
      raise ValueError(
        f"{path} is not a file of {self.name} with labels in its original "
        f"format ({error!r}): correct it, or --gin.DOWNSTREAM_DIR"
      ) from error
    if not examples:
      raise ValueError(
        f"{path} has no examples: correct it, or --gin.DOWNSTREAM_DIR"
      )
    return examples

  def examples_from_tfds(
    self, split: str, data_dir: str | None = None
  ) -> list[Example]:
    """The examples of a split, from TensorFlow Datasets.

    Args:
      split: "train" or "validation".
      data_dir: folder of the prepared sets; None for TFDS's default.

    Raises:
      FileNotFoundError: the set is not prepared there.
      ValueError: the split is unknown.
    """
    self._check_split(split)
    records = sources.tfds_records(self.tfds_name, split, data_dir)
    return [self.to_example(record) for record in records]

  def _check_split(self, split: str) -> None:
    if split not in self.files:
      raise ValueError(
        f"split {split!r} is not one of {tuple(self.files)}, the splits with "
        f"labels in {self.name}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankTask(PromptTask):
  """A task in which a model chooses among the choices of an example.

  Attributes:
    compute_scores: metrics, given examples and the numbers of chosen choices.
  """

  compute_scores: Callable[[Sequence[Example], Sequence[int]], Scores]

  def score(self, examples: Sequence[Example], chosen: Sequence[int]) -> Scores:
    """Metrics by name, from 0 to 100, including those in `metrics`.

    Args:
      examples: some or all examples of a split.
      chosen: for each, the number of its choice of greatest log-likelihood.

    Raises:
      ValueError: there are no examples, or the lengths differ.
    """
    _check_lengths(examples, chosen)
    return self.compute_scores(examples, chosen)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationTask(PromptTask):
  """A task in which a model writes, greedily.

  Attributes:
    compute_scores: metrics, given examples and answers trimmed by `answer_in`.
    max_new_tokens: tokens that suffice for an answer; our choice.
    next_cue: how prompts begin. A model that continues with another question
      writes this, which ends its answer, as a line break does.
    no_answer: what the prompt tells the model to write if there is no answer;
      None if there always is one.
  """

  compute_scores: Callable[[Sequence[Example], Sequence[Answer]], Scores]
  max_new_tokens: int
  next_cue: str
  no_answer: str | None = None

  @property
  def stop_strings(self) -> tuple[str, ...]:
    """What ends an answer: a line break, or another question."""
    return "\n", self.next_cue

  def answer_in(self, text: str) -> str:
    """The answer in what a model wrote, without any text after it.

    It ends at a line break or at `next_cue`, since many vocabularies have no
    line breaks.
    """
    line = text.strip().partition("\n")[0]
    return line.partition(self.next_cue)[0].strip()

  def score(
    self, examples: Sequence[Example], answers: Sequence[Answer]
  ) -> Scores:
    """Metrics by name, from 0 to 100, including those in `metrics`.

    Args:
      examples: some or all examples of a split.
      answers: what a model wrote for each.

    Raises:
      ValueError: there are no examples, or the lengths differ.
    """
    _check_lengths(examples, answers)
    return self.compute_scores(
      examples,
      [
        dataclasses.replace(answer, text=self.answer_in(answer.text))
        for answer in answers
      ],
    )


DownstreamTask: TypeAlias = RankTask | GenerationTask


def _check_lengths(examples: Sequence[Any], predictions: Sequence[Any]) -> None:
  if not examples or len(examples) != len(predictions):
    raise ValueError(
      f"{len(predictions)} predictions for {len(examples)} examples, expected "
      "one for each, and at least one"
    )
