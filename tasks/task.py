"""A task: where its text comes from, how it is tokenised, what is learnt."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from tasks import extras, records, vocabularies
from tasks.packing import Framing, Row, pack
from tasks.sources import Source
from tasks.vocabulary import Vocabulary

Corruption: TypeAlias = Callable[
  [Row, np.random.Generator], dict[str, np.ndarray]
]


class Objective(Protocol):
  """What a model learns from a row: how rows are made and corrupted."""

  @property
  def kinds(self) -> tuple[str, ...]:
    """Names of what feature `kind` counts from 0; empty if there is none."""

  def extra_pieces(self, feature_lengths: Mapping[str, int]) -> tuple[str, ...]:
    """Pieces that a vocabulary trained for it ends with, by ascending id."""

  def framing(self, vocabulary: Vocabulary) -> Framing:
    """What stands around the pieces of a row."""

  def row_length(self, feature_lengths: Mapping[str, int]) -> int:
    """Most tokens in a row, for these lengths of a batch's features."""

  def features(
    self, feature_lengths: Mapping[str, int]
  ) -> dict[str, tuple[int, type]]:
    """Length and type of each feature of an example."""

  def corruption(
    self, vocabulary: Vocabulary, feature_lengths: Mapping[str, int]
  ) -> Corruption:
    """The function from a row and a generator to an example."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTask:
  """An objective on the text of a source.

  Attributes:
    name: name of the task, of its folder and of its seqio task.
    source: where the documents come from.
    objective: what is learnt from them.
    vocabulary_size: V, the number of token ids.
    vocabulary_path: a SentencePiece `.model` or a BERT `vocab.txt`; None
      trains a SentencePiece vocabulary on the source.
    extra_ids: sentinels appended to a given SentencePiece model, as T5's 100;
      they count in `vocabulary_size`.
    lower_case: whether a `vocab.txt` goes with lowered text.
  """

  name: str
  source: Source
  objective: Objective
  vocabulary_size: int
  vocabulary_path: str | None = None
  extra_ids: int = 0
  lower_case: bool = True

  def __post_init__(self):
    if self.extra_ids < 0 or (self.extra_ids and not self.vocabulary_path):
      raise ValueError(
        f"VOCABULARY_EXTRA_IDS={self.extra_ids} must be the number of "
        "sentinels that a given vocabulary lacks, and 0 for one that is "
        "trained: set --gin.VOCABULARY_EXTRA_IDS or --gin.VOCABULARY_PATH"
      )

  def documents(self, split: str) -> Iterator[str]:
    """The documents of a split."""
    return self.source.documents(split)

  def vocabulary(self, data_dir: str) -> Vocabulary:
    """The given vocabulary, or else the one that is prepared.

    Args:
      data_dir: folder of all prepared tasks.

    Raises:
      FileNotFoundError: there is neither.
      ValueError: its size is not `vocabulary_size`.
    """
    folder = Path(data_dir).expanduser() / self.name
    given = self.vocabulary_path
    # Records may have moved to a machine that has only their own copy.
    gone = given and not Path(given).expanduser().is_file()
    if not given or (gone and (folder / self.vocabulary_file).is_file()):
      return self.prepared_vocabulary(folder)
    return self._open_vocabulary(given)

  def prepared_vocabulary(self, folder: Path) -> Vocabulary:
    """The vocabulary in the task's own folder.

    Raises:
      FileNotFoundError: it is not there.
      ValueError: its size is not `vocabulary_size`.
    """
    path = folder / self.vocabulary_file
    if not path.is_file():
      raise FileNotFoundError(
        f"{path} does not exist: run `python scripts/prepare.py` with the "
        "same --gin_file and --gin flags"
      )
    return self._open_vocabulary(path)

  def given_vocabulary(self) -> Vocabulary | None:
    """The vocabulary of `vocabulary_path`; None if it is to be trained.

    Raises:
      FileNotFoundError: it is not there.
      ValueError: its size is not `vocabulary_size`.
    """
    if self.vocabulary_path is None:
      return None
    return self._open_vocabulary(self.vocabulary_path)

  def _open_vocabulary(self, path: str | Path) -> Vocabulary:
    vocabulary = vocabularies.open_vocabulary(
      path, self.lower_case, extra_ids=self.extra_ids
    )
    if vocabulary.size != self.vocabulary_size:
      raise ValueError(
        f"the vocabulary {path} has {vocabulary.size} ids, but "
        f"VOCABULARY_SIZE={self.vocabulary_size}: set "
        f"--gin.VOCABULARY_SIZE={vocabulary.size}"
      )
    return vocabulary

  @property
  def vocabulary_file(self) -> str:
    """Name of the vocabulary in the task's folder."""
    return "vocabulary" + Path(self.vocabulary_path or "trained.model").suffix

  def settings(self, feature_lengths: Mapping[str, int]) -> dict[str, Any]:
    """What prepared rows depend on, as JSON can hold it."""
    settings: dict[str, Any] = {
      "version": records.VERSION,
      "task": self.name,
      "source": self.source.description(),
      "objective": type(self.objective).__name__,
      "feature_lengths": dict(feature_lengths),
      "vocabulary_size": self.vocabulary_size,
      "vocabulary_file": self.vocabulary_file,
      "lower_case": self.lower_case,
      "given_vocabulary": None,
    }
    row_length = self.objective.row_length(feature_lengths)
    if row_length != sum(feature_lengths.values()):
      settings["row_length"] = row_length  # The lengths do not say it.
    if self.extra_ids:
      settings["extra_ids"] = self.extra_ids
    fingerprint = self.source.fingerprint()
    if fingerprint:
      settings["source_files"] = fingerprint
    if self.vocabulary_path:
      # Records may have moved to a machine that has only their own copy.
      del settings["given_vocabulary"]
      if Path(self.vocabulary_path).expanduser().is_file():
        given = vocabularies.open_vocabulary(self.vocabulary_path)
        settings["given_vocabulary"] = given.fingerprint()
    return settings

  def rows(
    self,
    documents: Iterator[str],
    vocabulary: Vocabulary,
    feature_lengths: Mapping[str, int],
  ) -> Iterator[Row]:
    """The rows of documents: encoded, cut and packed; without TensorFlow."""
    return self._pack(
      map(vocabulary.encode, documents),
      vocabulary,
      self.objective.row_length(feature_lengths),
    )

  def seqio_task(self, vocabulary: Vocabulary) -> Any:
    """Registers this task with seqio, under its name, and returns it.

    An example is a row: `inputs` int32[n], `segment_lengths` int32[s] and
    `index` int64, the number of the row in its split. The rows, unshuffled,
    are those of `rows`, if the sequence length of `inputs` is that of a row.
    Registering again replaces the task.

    Args:
      vocabulary: this task's vocabulary.
    """
    seqio = extras.require("seqio")
    if self.name in seqio.TaskRegistry.names():
      seqio.TaskRegistry.remove(self.name)
    return seqio.TaskRegistry.add(
      self.name,
      source=seqio.FunctionDataSource(
        self._document_dataset, splits=self.source.splits
      ),
      preprocessors=[
        functools.partial(
          seqio.preprocessors.tokenize, copy_pretokenized=False
        ),
        functools.partial(self._row_dataset, vocabulary=vocabulary),
      ],
      output_features={
        "inputs": seqio.Feature(vocabulary.to_seqio(), add_eos=False)
      },
    )

  def _document_dataset(self, split: str, shuffle_files: bool) -> Any:
    """A tf.data.Dataset of {"inputs": text}, always in the source's order."""
    del shuffle_files  # The order of training is that of `tasks.order`.
    tf = extras.require("tensorflow")
    return tf.data.Dataset.from_generator(
      lambda: ({"inputs": text} for text in self.source.documents(split)),
      output_signature={"inputs": tf.TensorSpec((), tf.string)},
    )

  def _row_dataset(
    self,
    dataset: Any,
    sequence_length: Mapping[str, int],
    vocabulary: Vocabulary,
  ) -> Any:
    """Packs a tf.data.Dataset of tokenised documents into rows."""
    tf = extras.require("tensorflow")

    def rows():
      documents = (d["inputs"] for d in dataset.as_numpy_iterator())
      packed = self._pack(documents, vocabulary, sequence_length["inputs"])
      for index, row in enumerate(packed):
        yield {
          "inputs": row.tokens,
          "segment_lengths": row.segment_lengths,
          "index": index,
        }

    return tf.data.Dataset.from_generator(
      rows,
      output_signature={
        "inputs": tf.TensorSpec((None,), tf.int32),
        "segment_lengths": tf.TensorSpec((None,), tf.int32),
        "index": tf.TensorSpec((), tf.int64),
      },
    )

  def _pack(self, documents, vocabulary, length) -> Iterator[Row]:
    framing = self.objective.framing(vocabulary)
    return pack(documents, framing=framing, length=length)
