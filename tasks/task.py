"""A task: a source of text, how it is tokenised, and what is learned."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from raptr_jax.tasks import files
from raptr_jax.tasks.files import AnyPath
from raptr_jax.tasks.objectives.objective import Objective
from raptr_jax.tasks.objectives.packing import Row, pack
from raptr_jax.tasks.text import vocabularies
from raptr_jax.tasks.text.sources import Source
from raptr_jax.tasks.text.vocabulary import AtMost, Vocabulary

ROWS_VERSION = 1  # Raise it when the same text no longer gives the same rows.
BATCH_CHARACTERS = 500_000  # To encode at once.
# What a vocabulary must give back if white space is to be kept.
WHITESPACE_SAMPLE = "a\n\n  b\tc "


class NotPreparedError(FileNotFoundError):
  """What preparation writes is not there; the message says how to prepare."""

  def __init__(self, problem: str):
    super().__init__(
      f"{problem}: run `raptr --run_mode=prepare` with the same flags"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTask:
  """An objective on the text of a source.

  Attributes:
    name: name of the task, its folder and its seqio task.
    source: where documents come from.
    objective: what a model learns from them.
    vocabulary_size: V, the number of token ids; an `AtMost` until a vocabulary
      is trained whose size is to fit the text.
    vocabulary_path: a SentencePiece `.model` or a BERT `vocab.txt`; None
      trains a SentencePiece vocabulary on the source.
    extra_ids: number of sentinels to append to a given SentencePiece model
      (T5 appends 100); they count towards `vocabulary_size`.
    lower_case: whether a `vocab.txt` expects lower-cased text.
    max_tokens: how many tokens of training text to prepare, of random parts of
      the source; None for all. Held-out text is that of the same parts.
    text_share: share of the training documents to prepare, 0 to 1; of a long
      document, of its pieces. Held-out text stays whole. With `max_tokens`, so
      many tokens of that share.
  """

  name: str
  source: Source
  objective: Objective
  vocabulary_size: int
  vocabulary_path: str | None = None
  extra_ids: int = 0
  lower_case: bool = True
  max_tokens: int | None = None
  text_share: float = 1.0

  def __post_init__(self):
    files.check_name("MIXTURE_OR_TASK_NAME", self.name)
    if self.extra_ids < 0 or (self.extra_ids and not self.vocabulary_path):
      raise ValueError(
        f"extra_ids={self.extra_ids} must be the number of sentinels to append "
        f"to VOCABULARY_PATH={self.vocabulary_path!r}, and 0 if that is None: "
        "set --gin.task.TextTask.extra_ids or --gin.VOCABULARY_PATH"
      )
    if self.max_tokens is not None and self.max_tokens < 1:
      raise ValueError(
        f"MAX_TOKENS={self.max_tokens} must be at least 1, or None for all: "
        "set --gin.MAX_TOKENS"
      )
    if not 0 < self.text_share <= 1:
      raise ValueError(
        f"TEXT_SHARE={self.text_share} must be more than 0, and at most 1 for "
        "all: set --gin.TEXT_SHARE"
      )

  @property
  def parts(self) -> "tuple[TextTask, ...]":
    """The task itself, as if it were a mixture of one."""
    return (self,)

  @property
  def rates(self) -> tuple[float, ...]:
    """Its share of the examples, all of them."""
    return (1.0,)

  @property
  def limits(self) -> list[str]:
    """The settings by which not all text is prepared, like "MAX_TOKENS=500"."""
    limits = []
    if self.max_tokens is not None:
      limits.append(f"MAX_TOKENS={self.max_tokens}")
    if self.text_share < 1:
      limits.append(f"TEXT_SHARE={self.text_share}")
    return limits

  def documents(self, split: str, part: int | None = None) -> Iterator[str]:
    """The documents of a split: of one of its parts, or of all.

    The share of the training documents that are prepared is chosen by their
    text: a smaller share is part of a larger one.

    Args:
      split: a split of the source.
      part: number of a part. If only so many tokens are prepared, parts come in
        another order than in the source, a random one that never changes.
    """
    if part is not None and self.max_tokens is not None:
      part = _shuffled(self.source.num_parts())[part]
    documents = self.source.documents(split, part)
    if split == "train" and self.text_share < 1:
      return (text for text in documents if _place(text) < self.text_share)
    return documents

  def folder(self, data_dir: str) -> AnyPath:
    """This task's folder in that of all prepared tasks."""
    return files.path("DATA_DIR", data_dir) / self.name

  def vocabulary(self, data_dir: str) -> Vocabulary:
    """The given vocabulary, else the prepared one.

    Args:
      data_dir: folder of all prepared tasks.

    Raises:
      NotPreparedError: neither exists.
      ValueError: its size is not `vocabulary_size`, or it does not keep the
        white space that the source keeps.
    """
    folder = self.folder(data_dir)
    given = self.vocabulary_path
    # The machine may have only the copy that was prepared with the records.
    gone = given and not files.path("VOCABULARY_PATH", given).is_file()
    if not given or (gone and (folder / self.vocabulary_file).is_file()):
      return self.prepared_vocabulary(folder)
    return self._open_vocabulary(given)

  def prepared_vocabulary(self, folder: AnyPath) -> Vocabulary:
    """The vocabulary in the task's folder.

    Raises:
      NotPreparedError: it does not exist.
      ValueError: as for `vocabulary`.
    """
    path = folder / self.vocabulary_file
    if not path.is_file():
      raise NotPreparedError(f"{path} does not exist")
    return self._open_vocabulary(path)

  def given_vocabulary(self) -> Vocabulary | None:
    """The vocabulary at `vocabulary_path`; None if one is to be trained.

    Raises:
      FileNotFoundError: it does not exist.
      ValueError: as for `vocabulary`.
    """
    if self.vocabulary_path is None:
      return None
    return self._open_vocabulary(self.vocabulary_path)

  def fitted(self, data_dir: str) -> "TextTask":
    """This task with the size of the vocabulary that fits its text.

    Args:
      data_dir: folder of all prepared tasks, with this one's vocabulary.
    """
    if not isinstance(self.vocabulary_size, AtMost):
      return self
    folder = self.folder(data_dir)
    found = vocabularies.open_vocabulary(
      folder / self.vocabulary_file, self.lower_case, extra_ids=self.extra_ids
    )
    return dataclasses.replace(self, vocabulary_size=found.size)

  def _open_vocabulary(self, path: str | AnyPath) -> Vocabulary:
    vocabulary = vocabularies.open_vocabulary(
      path, self.lower_case, extra_ids=self.extra_ids
    )
    if vocabulary.size != self.vocabulary_size:
      if isinstance(self.vocabulary_size, AtMost) and not self.vocabulary_path:
        raise NotPreparedError(
          f"{files.path('DATA_DIR', path).parent} was not yet prepared when this run was built"
        )
      raise ValueError(
        f"the vocabulary {path} has {vocabulary.size} ids, but "
        f"VOCABULARY_SIZE={self.vocabulary_size}: set "
        f"--gin.VOCABULARY_SIZE={vocabulary.size}"
      )
    if self.source.keeps_whitespace:
      _check_whitespace(vocabulary)
    return vocabulary

  @property
  def vocabulary_file(self) -> str:
    """File name of the vocabulary in the task's folder."""
    return (
      "vocabulary" + PurePath(self.vocabulary_path or "trained.model").suffix
    )

  def settings(self, feature_lengths: Mapping[str, int]) -> dict[str, Any]:
    """Everything that prepared rows depend on, as JSON values."""
    size: int | str = self.vocabulary_size
    if isinstance(size, AtMost):
      size = f"at most {size}"
    settings: dict[str, Any] = {
      "version": ROWS_VERSION,
      "task": self.name,
      "source": self.source.description(),
      "objective": type(self.objective).__name__,
      "feature_lengths": dict(feature_lengths),
      "vocabulary_size": size,
      "vocabulary_file": self.vocabulary_file,
      "lower_case": self.lower_case,
      "given_vocabulary": None,
    }
    row_length = self.objective.row_length(feature_lengths)
    if row_length != sum(feature_lengths.values()):
      settings["row_length"] = row_length  # The lengths do not imply it.
    if self.extra_ids:
      settings["extra_ids"] = self.extra_ids
    if self.max_tokens is not None:
      settings["max_tokens"] = self.max_tokens
    if self.text_share < 1:
      settings["text_share"] = self.text_share
    fingerprint = self.source.fingerprint()
    if fingerprint:
      settings["source_files"] = fingerprint
    if self.vocabulary_path:
      # The machine may have only the copy that was prepared with the records.
      del settings["given_vocabulary"]
      if files.path("VOCABULARY_PATH", self.vocabulary_path).is_file():
        given = vocabularies.open_vocabulary(self.vocabulary_path)
        settings["given_vocabulary"] = given.fingerprint()
    return settings

  def rows(
    self,
    documents: Iterator[str],
    vocabulary: Vocabulary,
    feature_lengths: Mapping[str, int],
  ) -> Iterator[Row]:
    """Encodes, cuts and packs documents."""
    encoded = itertools.chain.from_iterable(
      map(vocabulary.encode_batch, _batches(documents))
    )
    return pack(
      encoded,
      framing=self.objective.framing(vocabulary),
      length=self.objective.row_length(feature_lengths),
    )


@functools.lru_cache
def _shuffled(count: int) -> list[int]:
  """The numbers up to a count, in an order that depends on nothing else."""
  return sorted(
    range(count), key=lambda n: hashlib.sha256(b"part %d" % n).digest()
  )


def _place(text: str) -> float:
  """A number from 0 to 1 that depends on the text alone, as if drawn."""
  digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
  return int.from_bytes(digest) / 2**64


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
  """Documents in lists of about `BATCH_CHARACTERS`."""
  batch: list[str] = []
  size = 0
  for document in documents:
    batch.append(document)
    size += len(document)
    if size >= BATCH_CHARACTERS:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def _check_whitespace(vocabulary: Vocabulary) -> None:
  """Raises ValueError if a vocabulary changes white space."""
  ids = vocabulary.encode(WHITESPACE_SAMPLE)
  if vocabulary.decode(ids) != WHITESPACE_SAMPLE:
    raise ValueError(
      f"TEXT_WHITESPACE='keep', but the vocabulary {vocabulary.path} does not "
      "keep newlines and repeated spaces: set "
      "--gin.TEXT_WHITESPACE=\"'collapse'\", or --gin.VOCABULARY_PATH=None to "
      "train one that does"
    )
