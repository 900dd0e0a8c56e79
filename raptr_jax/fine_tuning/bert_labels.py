"""BERT on labelled texts: a head on [CLS] names the class, or the number."""

import collections
import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raptr_jax.contracts import Params
from raptr_jax.data.examples import in_batches
from raptr_jax.fine_tuning.form import TRAIN, Predictor, check_texts
from raptr_jax.models.bert import BertMaskedLM
from raptr_jax.models.bert_heads import (
  BertClassifier,
  BertForLabels,
  BertRegressor,
)
from raptr_jax.models.masked_stack import full_paths
from raptr_jax.tasks.labelled.bert_rows import token_features
from raptr_jax.tasks.labelled.task import Label, LabelledExample, LabelledTask
from raptr_jax.tasks.text.vocabulary import Vocabulary
from raptr_jax.training.partitioning import Partitioner

PREDICTED = 64  # Rows at once, for each device; our choice.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BertLabels:
  """A `Form`: GLUE's tasks, and others of labelled texts, for BERT.

  Attributes:
    task: the task.
    pretrained: the pretrained model.
    vocabulary: its own.
    length: T, tokens of a row; longer texts are cut.
    folder: of the original files; None reads TFDS.
    tfds_data_dir: folder of the prepared TFDS sets; None for TFDS's default.
    num_examples: of training, the first ones; None for all.
  """

  task: LabelledTask
  pretrained: BertMaskedLM
  vocabulary: Vocabulary
  length: int
  folder: str | None = None
  tfds_data_dir: str | None = None
  num_examples: int | None = None
  _read: dict[str, list["Encoded"]] = dataclasses.field(
    default_factory=dict, init=False
  )

  @property
  def name(self) -> str:
    return self.task.name

  @functools.cached_property
  def model(self) -> BertForLabels:
    config, block = self.pretrained.config, self.pretrained.block
    if self.task.classes:
      return BertClassifier(config, block, len(self.task.classes))
    return BertRegressor(config, block)

  @property
  def fresh_parts(self) -> tuple[str, ...]:
    has_pooler = self.pretrained.config.pooler
    return ("label_head",) if has_pooler else ("label_head", "pooler")

  @property
  def metrics(self) -> tuple[str, ...]:
    return tuple(self.task.metrics)

  @property
  def validation_splits(self) -> tuple[str, ...]:
    return self.task.validation_splits

  @property
  def test_splits(self) -> tuple[str, ...]:
    return self.task.test_splits

  def examples(self, split: str) -> Sequence["Encoded"]:
    """The examples of a split, as token ids; read once."""
    if split not in self._read:
      self._read[split] = self._encoded(split)
    return self._read[split]

  def _encoded(self, split: str) -> list["Encoded"]:
    if self.folder is None:
      found = self.task.examples_from_tfds(split, self.tfds_data_dir)
    else:
      found = self.task.examples_from_folder(self.folder, split)
    found = found[: self.num_examples] if split == TRAIN else found
    texts = [text for example in found for text in example.texts]
    ids = iter(self.vocabulary.encode_batch(texts))
    return [
      Encoded(example, tuple(next(ids) for _ in example.texts))
      for example in found
    ]

  def features(self, example: "Encoded") -> Mapping[str, np.ndarray]:
    """Tokens and label of an example."""
    label = example.source.label
    dtype = np.int32 if self.task.classes else np.float32
    tokens = token_features(example.texts, self.vocabulary, self.length)
    return tokens | {
      "targets": np.array([0 if label is None else label], dtype),
      "target_weights": np.ones(1, np.float32),
    }

  def predictor(self, partitioner: Partitioner) -> Predictor:
    """Predicts labels, with all layers."""
    jitted = partitioner.jit(self.model.predict)
    paths = partitioner.put_replicated(full_paths(self.model.stacks))
    size = PREDICTED * partitioner.batch_shards

    def predict(params: Params, examples: Sequence[Encoded]) -> list[Label]:
      found: list[Label] = []
      for batch, count in in_batches(examples, self.features, size):
        outputs = jitted(params, partitioner.put_split(batch), paths)
        found += self._labels(np.asarray(outputs)[:count])
      return found

    return predict

  def read(self, texts: Sequence[str], number: int) -> Sequence["Encoded"]:
    """One example, of one text or two."""
    check_texts(texts, self.task.texts)
    ids = self.vocabulary.encode_batch(texts)
    source = LabelledExample(tuple(texts), None, number)
    return [Encoded(source, tuple(ids))]

  def shown(
    self, examples: Sequence["Encoded"], predictions: Sequence[Any]
  ) -> list[str]:
    """Classes by name, or numbers."""
    return [self.task.shown(guess) for guess in predictions]

  def scores(
    self, split: str, predictions: Sequence[Any]
  ) -> Mapping[str, float]:
    """The task's metrics."""
    return self.task.scores(self._known(split), predictions)

  def baseline(self) -> Mapping[str, float]:
    """Scores of the commonest class, or of the mean number, of training."""
    labels = self._known(TRAIN)
    guess: Label
    if self.task.classes:
      guess = collections.Counter(labels).most_common(1)[0][0]
    else:
      guess = statistics.fmean(labels)
    known = self._known(self.validation_splits[0])
    return self.task.scores(known, [guess] * len(known))

  def lines(
    self, split: str, predictions: Sequence[Any]
  ) -> Sequence[Mapping[str, Any]]:
    """Texts, label and prediction of each example."""
    return [
      {
        "index": example.source.index,
        "texts": example.source.texts,
        "prediction": self.task.shown(guess),
        **self._label_shown(example.source),
      }
      for example, guess in zip(self.examples(split), predictions, strict=True)
    ]

  def submission(
    self, split: str, predictions: Sequence[Any]
  ) -> tuple[str, str]:
    """GLUE's form: the index of an example, and its label."""
    rows = [
      f"{example.source.index}\t{self.task.shown(guess)}\n"
      for example, guess in zip(self.examples(split), predictions, strict=True)
    ]
    text = "index\tprediction\n" + "".join(rows)
    return self.task.splits[split].submission, text

  def _labels(self, outputs: np.ndarray) -> list[Label]:
    """Predictions, from the outputs [rows, outputs] of a model."""
    if self.task.classes:
      return [int(number) for number in outputs.argmax(-1)]
    return [float(x) for x in np.clip(outputs[:, 0], *self.task.bounds)]

  def _known(self, split: str) -> list[Label]:
    labels = [example.source.label for example in self.examples(split)]
    return [label for label in labels if label is not None]

  def _label_shown(self, example: LabelledExample) -> Mapping[str, str]:
    if example.label is None:
      return {}
    return {"label": self.task.shown(example.label)}


@dataclasses.dataclass(frozen=True)
class Encoded:
  """An example, and the token ids of its texts."""

  source: LabelledExample
  texts: tuple[np.ndarray, ...]
