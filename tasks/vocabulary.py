"""What a vocabulary is: text to token ids and back, defined by a file."""

import abc
import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks import extras

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
NLU, NLG, S2S = "[NLU]", "[NLG]", "[S2S]"  # Modes of UL2.


def sentinel(number: int) -> str:
  """Name of the sentinel that stands for span `number`, from 0 on."""
  return f"<extra_id_{number}>"


@dataclasses.dataclass(frozen=True)
class Vocabulary(abc.ABC):
  """What tokenises text, defined by a file.

  Attributes:
    path: the file.
  """

  path: str

  @property
  @abc.abstractmethod
  def size(self) -> int:
    """Number of ids V, special ones included."""

  @property
  @abc.abstractmethod
  def special_ids(self) -> tuple[int, ...]:
    """Ids that stand for no text, ascending: neither predicted nor drawn."""

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """Token ids of a text.

    Of the special ones only [UNK] can occur, and sentinels and modes, where a
    SentencePiece vocabulary has them and the text spells them out.
    """

  @abc.abstractmethod
  def decode(self, ids: Sequence[int]) -> str:
    """The text of token ids."""

  @abc.abstractmethod
  def to_seqio(self) -> Any:
    """The same vocabulary as a seqio.Vocabulary."""

  @abc.abstractmethod
  def _find(self, piece: str) -> int | None:
    """Id of a piece; None if there is none."""

  def fingerprint(self) -> str:
    """SHA-256 of the file, in hexadecimal."""
    return hashlib.sha256(Path(self.path).read_bytes()).hexdigest()

  @property
  def pad_id(self) -> int:
    """Id of [PAD], which follows the end of a row."""
    return self._id_of(PAD)

  @property
  def unk_id(self) -> int:
    """Id of [UNK], for what cannot be encoded."""
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
    """Ids of <extra_id_0>, <extra_id_1>, ..., as far as they go.

    Raises:
      ValueError: there is none.
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
        "--gin.VOCABULARY_EXTRA_IDS=100, choose another "
        "--gin.VOCABULARY_PATH, or None to train one"
      )
    return tuple(ids)

  def mode_ids(self, mode: str) -> tuple[int, ...]:
    """Id of a mode as [NLU], or those of its name where it has none."""
    found = self._find(mode)
    return tuple(self.encode(mode)) if found is None else (found,)

  def _id_of(self, piece: str) -> int:
    found = self._find(piece)
    if found is None:
      raise ValueError(
        f"the vocabulary {self.path} has no {piece}, which this task needs: "
        "choose another --gin.VOCABULARY_PATH, or None to train one"
      )
    return found


def encoding_alike(seqio_class: type, vocabulary: Vocabulary) -> type:
  """A seqio vocabulary that encodes in tf.data as `vocabulary` does outside.

  TensorFlow Text has versions of its own of both algorithms: it settles ties
  of SentencePiece otherwise, folds other characters (as the German sharp s)
  than BERT's tokenizer, and gives words as a padded matrix.
  """
  tf = extras.require("tensorflow")

  def encode(text: bytes) -> np.ndarray:
    return np.array(vocabulary.encode(text.decode()), np.int32)

  class EncodingAlike(seqio_class):  # type: ignore[valid-type, misc]
    @property
    def _base_vocab_size(self):
      return vocabulary.size  # TensorFlow Text counts a bucket for unknowns.

    def _encode_tf(self, s):
      ids = tf.numpy_function(encode, [s], tf.int32)
      ids.set_shape([None])
      return ids

  return EncodingAlike
