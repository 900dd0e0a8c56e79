"""BERT on SQuAD: it points at the first and the last token of an answer.

A passage that does not fit into a row is read in windows that overlap by half
(arXiv 1810.04805, section 4.2, and its code). Departures: words are split at
punctuation before they are tokenised, so that an answer is cut out of its
passage as it stands; and of a token that several windows read, each of them may
point at it, not only the one with the most context.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from raptr_jax.contracts import Params
from raptr_jax.data.examples import in_batches
from raptr_jax.fine_tuning.form import TRAIN, Predictor
from raptr_jax.models.bert import BertMaskedLM
from raptr_jax.models.bert_heads import BertSpanFinder
from raptr_jax.models.masked_stack import full_paths
from raptr_jax.tasks.labelled.bert_rows import token_features
from raptr_jax.tasks.labelled.squad import METRICS, SpanExample, SpanTask
from raptr_jax.tasks.text.vocabulary import Vocabulary
from raptr_jax.training.partitioning import Partitioner

PREDICTED = 32  # Rows at once, for each device; our choice.
QUESTION = 64  # Most tokens of a question, as in BERT's code ...
ANSWER = 30  # ... and of an answer.
WORD = re.compile(r"\w+|[^\w\s]")


class Span(NamedTuple):
  """What a window says.

  Attributes:
    text: the likeliest answer in it.
    score: its log-odds: the sum of the outputs at its ends.
    nothing: the same of no answer.
  """

  text: str
  score: float
  nothing: float


@dataclasses.dataclass(frozen=True)
class Window:
  """A question with a part of its passage.

  Attributes:
    number: of the question in its split.
    example: the question.
    question: its token ids.
    tokens: ids of the part.
    places: first and end character in the passage of each of these tokens.
    target: first and last token of the answer among them; None if it has none.
  """

  number: int
  example: SpanExample
  question: np.ndarray
  tokens: np.ndarray
  places: Sequence[tuple[int, int]]
  target: tuple[int, int] | None

  @property
  def offset(self) -> int:
    """Tokens of the row before the part: [CLS], the question, [SEP]."""
    return len(self.question) + 2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BertSpans:
  """A `Form`: questions whose answers are in their passages, for BERT.

  The examples of a split are windows; scores are those of questions.

  Attributes:
    task: the task.
    pretrained: the pretrained model.
    vocabulary: its own.
    length: T, tokens of a row.
    folder: of the original files; None reads TFDS.
    tfds_data_dir: folder of the prepared TFDS sets; None for TFDS's default.
    num_examples: questions of training, the first ones; None for all.
  """

  task: SpanTask
  pretrained: BertMaskedLM
  vocabulary: Vocabulary
  length: int
  folder: str | None = None
  tfds_data_dir: str | None = None
  num_examples: int | None = None
  fresh_parts: tuple[str, ...] = ("label_head",)
  metrics: tuple[str, ...] = METRICS
  validation_splits: tuple[str, ...] = ("validation",)
  test_splits: tuple[str, ...] = ()
  _read: dict[str, list[Window]] = dataclasses.field(
    default_factory=dict, init=False
  )

  @property
  def name(self) -> str:
    return self.task.name

  @functools.cached_property
  def model(self) -> BertSpanFinder:
    return BertSpanFinder(self.pretrained.config, self.pretrained.block)

  def examples(self, split: str) -> Sequence[Window]:
    """The windows of a split, read once."""
    if split not in self._read:
      if self.folder is None:
        found = self.task.examples_from_tfds(split, self.tfds_data_dir)
      else:
        found = self.task.examples_from_folder(self.folder, split)
      found = found[: self.num_examples] if split == TRAIN else found
      self._read[split] = [
        window
        for number, example in enumerate(found)
        for window in self._windows(number, example)
      ]
    return self._read[split]

  def features(self, example: Window) -> Mapping[str, np.ndarray]:
    """Tokens of a window, and the ends of its answer; [CLS] stands for none."""
    texts = (example.question, example.tokens)
    ends = (0, 0)
    if example.target is not None:
      first, last = example.target
      ends = first + example.offset, last + example.offset
    return token_features(texts, self.vocabulary, self.length) | {
      "targets": np.array(ends, np.int32),
      "target_weights": np.ones(2, np.float32),
    }

  def predictor(self, partitioner: Partitioner) -> Predictor:
    """Finds the likeliest answer of each window, with all layers."""
    jitted = partitioner.jit(self.model.predict)
    paths = partitioner.put_replicated(full_paths(self.model.stacks))
    size = PREDICTED * partitioner.batch_shards

    def predict(params: Params, examples: Sequence[Window]) -> list[Span]:
      found: list[Span] = []
      for batch, count in in_batches(examples, self.features, size):
        outputs = jitted(params, partitioner.put_split(batch), paths)
        rows = np.asarray(outputs)[:count]
        found += [
          best_span(window, row)
          for window, row in zip(examples[len(found) :], rows)
        ]
      return found

    return predict

  def scores(
    self, split: str, predictions: Sequence[Span]
  ) -> Mapping[str, float]:
    """Exact match and F1, by question."""
    examples, answers = self._by_question(split, predictions)
    return self.task.scores(examples, answers)

  def baseline(self) -> Mapping[str, float]:
    """Scores of never answering."""
    examples, _ = self._by_question(self.validation_splits[0], None)
    return self.task.scores(examples, [""] * len(examples))

  def lines(
    self, split: str, predictions: Sequence[Span]
  ) -> Sequence[Mapping[str, Any]]:
    """Question and answers; one line for each question."""
    examples, answers = self._by_question(split, predictions)
    return [
      {
        "id": example.id,
        "question": example.question,
        "prediction": answer,
        "references": list(example.answers),
      }
      for example, answer in zip(examples, answers)
    ]

  def submission(
    self, split: str, predictions: Sequence[Any]
  ) -> tuple[str, str]:
    raise NotImplementedError("SQuAD's test set is not public")

  def _by_question(
    self, split: str, predictions: Sequence[Span] | None
  ) -> tuple[list[SpanExample], list[str]]:
    """The questions of a split, and the answer of their windows to each.

    A question has no answer if that is likelier than the best one, in every
    window; SQuAD 1.1 always has one.
    """
    windows = self.examples(split)
    examples = {window.number: window.example for window in windows}
    if predictions is None:
      return list(examples.values()), []
    spans: dict[int, list[Span]] = {}
    for window, span in zip(windows, predictions, strict=True):
      spans.setdefault(window.number, []).append(span)
    must = self.task.always_answered
    return list(examples.values()), [
      answer_of(found, must_answer=must) for found in spans.values()
    ]

  def _windows(self, number: int, example: SpanExample) -> Iterator[Window]:
    """The windows of a question."""
    question = np.array(self.vocabulary.encode(example.question), np.int32)
    question = question[:QUESTION]
    tokens, places = self._tokens(example.passage)
    answer = _token_span(example, places)
    room = self.length - len(question) - 3
    step = max(room // 2, 1)
    for begin in range(0, max(len(tokens) - room, 0) + step, step):
      end = min(begin + room, len(tokens))
      target = None
      if answer is not None and begin <= answer[0] and answer[1] < end:
        target = answer[0] - begin, answer[1] - begin
      yield Window(
        number, example, question, tokens[begin:end], places[begin:end], target
      )
      if end == len(tokens):
        return

  def _tokens(self, passage: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Token ids of a passage, and the characters of each one's word."""
    words = list(WORD.finditer(passage))
    ids = self.vocabulary.encode_batch([word.group() for word in words])
    places = [word.span() for word, part in zip(words, ids) for _ in part]
    joined = np.concatenate([np.zeros(0, np.int32), *ids])
    return joined, places


def best_span(window: Window, outputs: np.ndarray) -> Span:
  """The likeliest answer in a window.

  Args:
    window: the window.
    outputs: float32[T, 2], of each token as the first and as the last.
  """
  nothing = float(outputs[0].sum())
  count = len(window.tokens)
  part = outputs[window.offset : window.offset + count]
  sums = part[:, :1] + part[None, :, 1]  # [first, last]
  distance = np.arange(count)[None] - np.arange(count)[:, None]
  sums = np.where((distance >= 0) & (distance < ANSWER), sums, -np.inf)
  if not count:
    return Span("", nothing, nothing)
  first, last = divmod(int(sums.argmax()), count)
  begin, end = window.places[first][0], window.places[last][1]
  text = window.example.passage[begin:end]
  return Span(text, float(sums[first, last]), nothing)


def answer_of(spans: Sequence[Span], *, must_answer: bool) -> str:
  """The answer to a question by its windows; "" for none."""
  best = max(spans, key=lambda span: span.score)
  if must_answer or best.score > min(span.nothing for span in spans):
    return best.text
  return ""


def _token_span(
  example: SpanExample, places: Sequence[tuple[int, int]]
) -> tuple[int, int] | None:
  """First and last token of the first answer; None if there is none."""
  if not example.answers:
    return None
  begin = example.start
  end = begin + len(example.answers[0])
  inside = [i for i, (a, b) in enumerate(places) if a < end and b > begin]
  return (inside[0], inside[-1]) if inside else None
