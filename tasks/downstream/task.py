"""What a task by prompt is: its examples, and how answers to them score.

Tasks are of two kinds. In a `RankTask` a model chooses among given texts: the
one of greatest log-likelihood after the prompt, summed over its tokens and
not divided by their number. In a `GenerationTask` it writes.

Prompt and answer are joined by one space, see `joined`. A record is what TFDS
has of one example, as plain Python; the original files are brought to the same
form, so that everything after it is shared.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from tasks.downstream import sources

Record: TypeAlias = Mapping[str, Any]
Scores: TypeAlias = dict[str, float]  # By metric, 0 to 100.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
  """One question to a model.

  Attributes:
    prompt: what the model reads, without shots and without space at its end.
    answer: what follows the prompt where the example serves as a shot.
    choices: texts to choose from; () where the model writes.
    label: the right choice; None where not exactly one is right.
    candidates: what the choices stand for, if metrics compare other texts.
    references: texts that are right; () if that is to give no answer.
    group: what a metric groups by: a question, a language.
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
    text: the new text, which may run on past the answer.
    no_answer_score: log-likelihood after the prompt of the task's `no_answer`
      minus that of the answer in `text`, in nats; 0 where the task has none.
  """

  text: str
  no_answer_score: float = 0.0


def joined(prompt: str, answer: str) -> str:
  """A prompt and what follows it, as one text."""
  return f"{prompt} {answer}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptTask:
  """A data set whose examples are put to a model as text.

  Attributes:
    name: name of the task.
    tfds_name: the TFDS set, with its version.
    files: of each split, the original files that may hold it, as paths in a
      folder; the first that exists is read.
    to_records: the records of a row of such a file, which is a line of a
      `.jsonl`, or all that is in a `.json`.
    to_example: the example of a record.
    metrics: the official metrics, of which the mean stands for the task.
  """

  name: str
  tfds_name: str
  files: Mapping[str, tuple[str, ...]]
  to_records: Callable[[Any], Iterator[Record]]
  to_example: Callable[[Record], Example]
  metrics: tuple[str, ...]

  def examples_from_folder(self, folder: str, split: str) -> list[Example]:
    """The examples of a split, from the original files.

    Args:
      folder: where they are.
      split: "train" or "validation".

    Raises:
      FileNotFoundError: none of `files` is there.
      ValueError: there is no such split, or the file is not in its original
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
        f"{path} is no file of {self.name} with labels in its original format "
        f"({error!r}): correct it, or --gin.DOWNSTREAM_DIR"
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
      data_dir: folder of the prepared sets; None for the default of TFDS.

    Raises:
      FileNotFoundError: the set is not prepared there.
      ValueError: there is no such split.
    """
    self._check_split(split)
    records = sources.tfds_records(self.tfds_name, split, data_dir)
    return [self.to_example(record) for record in records]

  def _check_split(self, split: str) -> None:
    if split not in self.files:
      raise ValueError(
        f"split {split!r} is none of {tuple(self.files)}, which have labels in "
        f"{self.name}: correct the gin binding of `split`"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankTask(PromptTask):
  """A task in which a model chooses among the choices of an example.

  Attributes:
    compute_scores: metrics of examples and the numbers of the chosen choices.
  """

  compute_scores: Callable[[Sequence[Example], Sequence[int]], Scores]

  def score(self, examples: Sequence[Example], chosen: Sequence[int]) -> Scores:
    """Metrics by name, 0 to 100; `metrics` are among them.

    Args:
      examples: the examples of a split, or some of them.
      chosen: of each, the number of the choice of greatest log-likelihood.

    Raises:
      ValueError: there are no examples, or not as many of both.
    """
    _check_lengths(examples, chosen)
    return self.compute_scores(examples, chosen)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationTask(PromptTask):
  """A task in which a model writes, greedily.

  Attributes:
    compute_scores: metrics of examples and answers, of which only the answer
      itself is left.
    max_new_tokens: so many tokens hold an answer; our choice.
    next_cue: how a prompt begins. A model that goes on to the next question
      writes it, and has ended its answer; a line's end does so, too.
    no_answer: what a prompt tells to write if there is no answer; None if
      there always is one.
  """

  compute_scores: Callable[[Sequence[Example], Sequence[Answer]], Scores]
  max_new_tokens: int
  next_cue: str
  no_answer: str | None = None

  def answer_in(self, text: str) -> str:
    """The answer in what a model wrote, without what it wrote after it.

    Line ends are looked for and so is `next_cue`, since many vocabularies
    have no line ends.
    """
    line = text.strip().partition("\n")[0]
    return line.partition(self.next_cue)[0].strip()

  def score(
    self, examples: Sequence[Example], answers: Sequence[Answer]
  ) -> Scores:
    """Metrics by name, 0 to 100; `metrics` are among them.

    Args:
      examples: the examples of a split, or some of them.
      answers: what a model wrote for each.

    Raises:
      ValueError: there are no examples, or not as many of both.
    """
    _check_lengths(examples, answers)
    return self.compute_scores(
      examples,
      [
        dataclasses.replace(answer, text=self.answer_in(answer.text))
        for answer in answers
      ],
    )


def _check_lengths(examples: Sequence[Any], predictions: Sequence[Any]) -> None:
  if not examples or len(examples) != len(predictions):
    raise ValueError(
      f"{len(predictions)} predictions for {len(examples)} examples: one is "
      "needed for each, and at least one"
    )
