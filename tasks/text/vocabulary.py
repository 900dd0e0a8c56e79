"""The interface of vocabularies: text to token ids and back."""

import abc
import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from raptr_jax.tasks import extras, files
from raptr_jax.tasks.files import AnyPath

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
NLU, NLG, S2S = "[NLU]", "[NLG]", "[S2S]"  # UL2's mode tokens.


class AtMost(int):
  """An upper bound on V for a vocabulary that is not trained yet.

  Too little text yields fewer ids. Otherwise it behaves as the int.
  """


def sentinel(number: int) -> str:
  """Name of the sentinel that replaces span `number`, counted from 0."""
  return f"<extra_id_{number}>"


@dataclasses.dataclass(frozen=True)
class Vocabulary(abc.ABC):
  """Tokenises text, as a file defines it.

  Attributes:
    path: the file.
  """

  path: str

  @property
  def file(self) -> AnyPath:
    """The file, to be read."""
    return files.path("VOCABULARY_PATH", self.path)

  @property
  @abc.abstractmethod
  def size(self) -> int:
    """V, the number of ids, special ones included."""

  @property
  @abc.abstractmethod
  def special_ids(self) -> tuple[int, ...]:
    """Ids that stand for no text, ascending.

    They are never predicted or drawn as random tokens.
    """

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """Token ids of a text.

    [UNK] is the only special id that text encodes to, except that SentencePiece
    also encodes sentinels and mode tokens where the text spells them out.
    """

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of several texts, int32[...] each; faster than one by one."""
    return [np.array(self.encode(text), np.int32) for text in texts]

  @abc.abstractmethod
  def decode(self, ids: Sequence[int]) -> str:
    """The text of token ids."""

  @abc.abstractmethod
  def spell(self, ids: Sequence[int]) -> str:
    """The text of token ids, with special ones by name."""

  @abc.abstractmethod
  def to_seqio(self) -> Any:
    """The same vocabulary as a seqio.Vocabulary."""

  @abc.abstractmethod
  def _find(self, piece: str) -> int | None:
    """Id of a piece; None if the vocabulary lacks it."""

  def fingerprint(self) -> str:
    """SHA-256 of the file, as hexadecimal digits."""
    return file_fingerprint(self.file)

  @property
  def pad_id(self) -> int:
    """Id of [PAD], which fills a row after its end."""
    return self._id_of(PAD)

  @property
  def unk_id(self) -> int:
    """Id of [UNK], which stands for text that cannot be encoded."""
    return self._id_of(UNK)

  @property
  def cls_id(self) -> int:
    """Id of [CLS], which begins a piece of text."""
    return self._id_of(CLS)

  @property
  def sep_id(self) -> int:
    """Id of [SEP], which ends a piece of text."""
    return self._id_of(SEP)

  @property
  def eos_id(self) -> int:
    """Id that ends inputs and targets."""
    return self.sep_id

  @property
  def mask_id(self) -> int:
    """Id of [MASK], which hides a token."""
    return self._id_of(MASK)

  @property
  def sentinel_ids(self) -> tuple[int, ...]:
    """Ids of <extra_id_0>, <extra_id_1>, ..., as many as there are.

    Raises:
      ValueError: there are none.
    """
    ids = []
    for number in itertools.count():
      found = self._find(sentinel(number))
      if found is None:
        break
      ids.append(found)
    if not ids:
      raise ValueError(
        f"the vocabulary {self.path} has no {sentinel(0)}, which this task "
        "needs: append sentinels to a SentencePiece model with "
        "--gin.task.TextTask.extra_ids=100, or set another "
        "--gin.VOCABULARY_PATH, or None to train one"
      )
    return tuple(ids)

  def mode_ids(self, mode: str) -> tuple[int, ...]:
    """Id of a mode token such as [NLU], else the ids of its spelling."""
    found = self._find(mode)
    return tuple(self.encode(mode)) if found is None else (found,)

  def _id_of(self, piece: str) -> int:
    found = self._find(piece)
    if found is None:
      raise ValueError(
        f"the vocabulary {self.path} has no {piece}, which this task needs: "
        "set another --gin.VOCABULARY_PATH, or None to train one"
      )
    return found


def file_fingerprint(path: AnyPath) -> str:
  """SHA-256 of a file, as hexadecimal digits."""
  return hashlib.sha256(path.read_bytes()).hexdigest()


def encoding_alike(seqio_class: type, vocabulary: Vocabulary) -> type:
  """A seqio vocabulary class that encodes in tf.data as `vocabulary` does.

  TensorFlow Text implements both algorithms differently: it breaks ties in
  SentencePiece another way, folds other characters than BERT's tokenizer (such
  as the German sharp s), and returns words as a padded matrix.
  """
  tf = extras.require("tensorflow")

  def encode(text: bytes) -> np.ndarray:
    return np.array(vocabulary.encode(text.decode()), np.int32)

  class EncodingAlike(seqio_class):  # type: ignore[valid-type, misc]
    @property
    def _base_vocab_size(self):
      return vocabulary.size  # TensorFlow Text adds a bucket for unknowns.

    def _encode_tf(self, s):
      ids = tf.numpy_function(encode, [s], tf.int32)
      ids.set_shape([None])
      return ids

  return EncodingAlike
