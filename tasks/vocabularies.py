"""Vocabularies: text to token ids and back, by the file that defines them."""

import abc
import dataclasses
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from tasks import extras

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SENTINEL = re.compile(r"▁?<extra_id_\d+>")


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
    """Token ids of a text; of the special ones, only [UNK] can occur."""

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
  def mask_id(self) -> int:
    """Id of [MASK], which hides a token."""
    return self._id_of(MASK)

  def _id_of(self, piece: str) -> int:
    found = self._find(piece)
    if found is None:
      raise ValueError(
        f"the vocabulary {self.path} has no {piece}, which this task needs: "
        "choose another --gin.VOCABULARY_PATH, or None to train one"
      )
    return found


@dataclasses.dataclass(frozen=True)
class SentencePieceVocabulary(Vocabulary):
  """A SentencePiece model (Kudo and Richardson, arXiv:1808.06226).

  Attributes:
    path: the `.model` file.
  """

  @functools.cached_property
  def _processor(self) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=self.path)

  def encode(self, text: str) -> list[int]:
    """Token ids of a text; what the model does not know becomes bytes."""
    return self._processor.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    """The text of token ids; special ones vanish."""
    return self._processor.decode([int(i) for i in ids])

  @property
  def size(self) -> int:
    """Number of ids V."""
    return self._processor.get_piece_size()

  @property
  def pad_id(self) -> int:
    """Id after the end of a row."""
    return self._processor.pad_id()

  @property
  def unk_id(self) -> int:
    """Id of what cannot be encoded."""
    return self._processor.unk_id()

  @functools.cached_property
  def special_ids(self) -> tuple[int, ...]:
    """Ids of control pieces, of [UNK] and of sentinels, ascending."""
    model = self._processor
    return tuple(
      i
      for i in range(self.size)
      if model.is_control(i)
      or model.is_unknown(i)
      or SENTINEL.fullmatch(model.id_to_piece(i))
    )

  def to_seqio(self) -> Any:
    """The same file as a seqio.SentencePieceVocabulary."""
    seqio = extras.require("seqio")
    return _encoding_alike(seqio.SentencePieceVocabulary, self)(self.path)

  def _find(self, piece: str) -> int | None:
    found = self._processor.piece_to_id(piece)
    return None if found == self.unk_id and piece != UNK else found


@dataclasses.dataclass(frozen=True)
class WordPieceVocabulary(Vocabulary):
  """A WordPiece vocabulary with the text normalisation of BERT.

  Attributes:
    path: the `vocab.txt`, one token a line; the line number is the id.
    lower_case: whether text is lowered and stripped of accents.
  """

  lower_case: bool = True

  @functools.cached_property
  def _ids(self) -> dict[str, int]:
    lines = Path(self.path).read_text(encoding="utf-8").splitlines()
    return {token.rstrip(): number for number, token in enumerate(lines)}

  @functools.cached_property
  def _tokenizer(self) -> Any:
    tokenizers = extras.require("tokenizers")
    # No token is registered as special: "[MASK]" in a text is plain text.
    tokenizer = tokenizers.Tokenizer(
      tokenizers.models.WordPiece(self._ids, unk_token=UNK)
    )
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
      lowercase=self.lower_case
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    return tokenizer

  def encode(self, text: str) -> list[int]:
    """Token ids of a text; a word with an unknown part becomes [UNK]."""
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int]) -> str:
    """The text of token ids, special ones by their names."""
    return self._tokenizer.decode(
      [int(i) for i in ids], skip_special_tokens=False
    )

  @property
  def size(self) -> int:
    """Number of ids V."""
    return len(self._ids)

  @functools.cached_property
  def special_ids(self) -> tuple[int, ...]:
    """Ids of the bracketed names, as [MASK] and [unused7], ascending."""
    return tuple(
      number
      for token, number in sorted(self._ids.items(), key=lambda item: item[1])
      if len(token) > 2 and token[0] == "[" and token[-1] == "]"
    )

  def to_seqio(self) -> Any:
    """The same file as a seqio.BertWordPieceVocabulary."""
    seqio = extras.require("seqio")
    return _encoding_alike(seqio.BertWordPieceVocabulary, self)(
      self.path,
      lower_case=self.lower_case,
      pad_id=self.pad_id,
      start_of_sequence_id=self.cls_id,
      end_of_sequence_id=self.sep_id,
    )

  def _find(self, piece: str) -> int | None:
    return self._ids.get(piece)


def _encoding_alike(seqio_class: type, vocabulary: Vocabulary) -> type:
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


def open_vocabulary(path: str | Path, lower_case: bool = True) -> Vocabulary:
  """The vocabulary of a file, SentencePiece or WordPiece by its ending.

  Args:
    path: a SentencePiece `.model` or a BERT `vocab.txt`.
    lower_case: whether WordPiece lowers the text first; SentencePiece has
      its own normalisation in the file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the ending is neither.
  """
  path = Path(path).expanduser()
  if path.suffix not in (".model", ".txt"):
    raise ValueError(
      f"VOCABULARY_PATH={str(path)!r} must end in .model (SentencePiece) or "
      ".txt (WordPiece): set --gin.VOCABULARY_PATH"
    )
  if not path.is_file():
    raise FileNotFoundError(
      f"VOCABULARY_PATH={str(path)!r} is no file: set --gin.VOCABULARY_PATH "
      "to a SentencePiece .model or a BERT vocab.txt"
    )
  if path.suffix == ".model":
    return SentencePieceVocabulary(str(path))
  return WordPieceVocabulary(str(path), lower_case)
