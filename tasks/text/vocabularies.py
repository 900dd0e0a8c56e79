"""The kinds of vocabulary: SentencePiece, WordPiece, and `tokenizer.json`."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import sentencepiece

from raptr_jax.tasks import extras, files
from raptr_jax.tasks.files import AnyPath
from raptr_jax.tasks.text.tokenizer_json import TokenizerJsonVocabulary
from raptr_jax.tasks.text.vocabulary import (
  CLS,
  NLG,
  NLU,
  S2S,
  SEP,
  UNK,
  Vocabulary,
  encoding_alike,
  sentinel,
)

SENTINEL = re.compile(r"▁?<extra_id_\d+>")
MOST_WORDS = 1_000_000  # About 100 MB of them.
USER_DEFINED = 4  # ModelProto.SentencePiece.Type


def append_pieces(model: bytes, pieces: Iterable[str]) -> bytes:
  """Appends pieces to a SentencePiece model, at the last ids.

  The trainer would put such symbols first. Text encodes to them only where it
  spells them out.
  """
  # Bytes after a serialised message add to its repeated fields. Its own classes
  # ask for a newer protobuf than Beam has.
  return model + b"".join(map(_serialised, pieces))


def _serialised(piece: str) -> bytes:
  """One of `pieces`, field 1 of a ModelProto: its text, score and type.

  Names of pieces are short, so that each length is a single byte.
  """
  text = piece.encode()
  fields = (
    *(0x0A, len(text), *text),  # Field 1, of a length.
    *(0x15, 0, 0, 0, 0),  # Field 2, a float: 0.
    *(0x18, USER_DEFINED),  # Field 3, a number.
  )
  return bytes([0x0A, len(fields), *fields])


@dataclasses.dataclass(frozen=True)
class SentencePieceVocabulary(Vocabulary):
  """A SentencePiece model (Kudo and Richardson, arXiv 1808.06226).

  Attributes:
    path: the `.model` file.
    extra_ids: number of sentinels appended to the file's pieces, with
      <extra_id_0> last.
  """

  extra_ids: int = 0

  @functools.cached_property
  def _processor(self) -> sentencepiece.SentencePieceProcessor:
    sentinels = map(sentinel, reversed(range(self.extra_ids)))
    model = append_pieces(self.file.read_bytes(), sentinels)
    try:
      return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
      if not self.extra_ids:
        raise ValueError(
          f"VOCABULARY_PATH={self.path!r} is no SentencePiece model: set "
          "--gin.VOCABULARY_PATH to one, or None to train one"
        ) from error
      raise ValueError(
        f"extra_ids={self.extra_ids} cannot be appended to {self.path} "
        f"({error}): set --gin.task.TextTask.extra_ids=0 for a vocabulary that "
        "already has sentinels"
      ) from error

  def encode(self, text: str) -> list[int]:
    """Token ids of a text; unknown characters become bytes."""
    return self._processor.encode(text)

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    found = self._processor.encode(list(texts), num_threads=1)
    return [np.array(ids, np.int32) for ids in found]

  def decode(self, ids: Sequence[int]) -> str:
    """The text of token ids, without control pieces."""
    return self._processor.decode([int(i) for i in ids])

  def spell(self, ids: Sequence[int]) -> str:
    """The text of token ids, with special ones by name between spaces."""
    parts: list[str] = []
    for is_special, run in itertools.groupby(
      ids, self.special_ids.__contains__
    ):
      found = [int(i) for i in run]
      names = self._processor.id_to_piece(found)
      parts += names if is_special else [self.decode(found)]
    return " ".join(parts)

  @property
  def size(self) -> int:
    return self._processor.get_piece_size()

  @property
  def pad_id(self) -> int:
    """The file's own; without one, that of the end."""
    found = self._processor.pad_id()
    return self.eos_id if found < 0 else found

  @property
  def cls_id(self) -> int:
    """[CLS], or else the file's beginning of a sentence."""
    found, begin = self._find(CLS), self._processor.bos_id()
    return begin if found is None and begin >= 0 else self._id_of(CLS)

  @property
  def sep_id(self) -> int:
    """[SEP], or else the file's end of a sentence."""
    found = self._find(SEP)
    return self.eos_id if found is None else found

  @property
  def unk_id(self) -> int:
    return self._processor.unk_id()

  @property
  def eos_id(self) -> int:
    """The file's own end-of-sentence piece, which ends inputs and targets."""
    found = self._processor.eos_id()
    if found < 0:
      raise ValueError(
        f"the vocabulary {self.path} has no end-of-sentence piece, which this "
        "task needs: set another --gin.VOCABULARY_PATH, or None to train one"
      )
    return found

  @functools.cached_property
  def special_ids(self) -> tuple[int, ...]:
    """Ids of control pieces, [UNK], sentinels and mode tokens, ascending."""
    model = self._processor
    return tuple(
      i
      for i in range(self.size)
      if model.is_control(i)
      or model.is_unknown(i)
      or SENTINEL.fullmatch(model.id_to_piece(i))
      or model.id_to_piece(i) in (NLU, NLG, S2S)
    )

  def to_seqio(self) -> Any:
    seqio = extras.require("seqio")
    in_seqio = encoding_alike(seqio.SentencePieceVocabulary, self)
    return in_seqio(str(files.local_copy(self.file)), extra_ids=self.extra_ids)

  def _find(self, piece: str) -> int | None:
    # In some files, such as mT5's, sentinels begin with a word boundary.
    names = (piece, f"▁{piece}") if SENTINEL.fullmatch(piece) else (piece,)
    found = (self._processor.piece_to_id(name) for name in names)
    return next((i for i in found if i != self.unk_id or piece == UNK), None)


class _Words(dict[str, bytes]):
  """The ids of words, int32 each; most words come again and again.

  The tokenizer is several times slower, since it also tracks where in a text
  each character has been.
  """

  def __init__(self, tokenizer: Any):
    super().__init__()
    self._tokenizer = tokenizer

  def __missing__(self, word: str) -> bytes:
    if len(self) >= MOST_WORDS:
      self.clear()
    ids = self._tokenizer.encode(word, add_special_tokens=False).ids
    found = self[word] = np.array(ids, np.int32).tobytes()
    return found


@dataclasses.dataclass(frozen=True)
class WordPieceVocabulary(Vocabulary):
  """A WordPiece vocabulary with BERT's text normalisation.

  Attributes:
    path: the `vocab.txt`, one token per line; the line number is the id.
    lower_case: whether to lower-case text and strip its accents.
  """

  lower_case: bool = True

  @functools.cached_property
  def _ids(self) -> dict[str, int]:
    # Not `splitlines`: a token may be a Unicode line separator.
    try:
      text = self.file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
      raise ValueError(
        f"VOCABULARY_PATH={self.path!r} is not text in UTF-8 ({error.reason}): "
        "set --gin.VOCABULARY_PATH to a BERT vocab.txt"
      ) from error
    lines = [token.rstrip() for token in text.removesuffix("\n").split("\n")]
    ids = {token: number for number, token in enumerate(lines)}
    if len(ids) != len(lines):
      twice = next(t for i, t in enumerate(lines) if ids[t] != i)
      raise ValueError(
        f"VOCABULARY_PATH={self.path!r} has the token {twice!r} twice; expected"
        " one token per line, each once"
      )
    return ids

  @functools.cached_property
  def _tokenizer(self) -> Any:
    return self.tokenizer()

  def tokenizer(self) -> Any:
    """A new `tokenizers.Tokenizer` of the vocabulary."""
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
    """Token ids of a text; a word with any unknown part becomes [UNK]."""
    found: list[int] = self._encode(text).tolist()
    return found

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [self._encode(text) for text in texts]

  def _encode(self, text: str) -> np.ndarray:
    # A space always ends a word, and no word depends on another one.
    words = text.split(" ")
    return np.frombuffer(
      b"".join(map(self._words.__getitem__, words)), np.int32
    )

  @functools.cached_property
  def _words(self) -> "_Words":
    return _Words(self._tokenizer)

  def decode(self, ids: Sequence[int]) -> str:
    """The text of token ids, with special tokens by name."""
    return self._tokenizer.decode(
      [int(i) for i in ids], skip_special_tokens=False
    )

  def spell(self, ids: Sequence[int]) -> str:
    return self.decode(ids)

  @property
  def size(self) -> int:
    return len(self._ids)

  @functools.cached_property
  def special_ids(self) -> tuple[int, ...]:
    """Ids of sentinels and of bracketed names such as [MASK], ascending."""
    return tuple(
      number
      for token, number in sorted(self._ids.items(), key=lambda item: item[1])
      if SENTINEL.fullmatch(token)
      or (len(token) > 2 and token[0] == "[" and token[-1] == "]")
    )

  def to_seqio(self) -> Any:
    seqio = extras.require("seqio")
    return encoding_alike(seqio.BertWordPieceVocabulary, self)(
      str(files.local_copy(self.file)),
      lower_case=self.lower_case,
      pad_id=self.pad_id,
      start_of_sequence_id=self.cls_id,
      end_of_sequence_id=self.sep_id,
    )

  def _find(self, piece: str) -> int | None:
    return self._ids.get(piece)


def open_vocabulary(
  path: str | AnyPath, lower_case: bool = True, *, extra_ids: int = 0
) -> Vocabulary:
  """Opens a vocabulary, SentencePiece or WordPiece by the file's ending.

  Args:
    path: a SentencePiece `.model`, a BERT `vocab.txt` or a `tokenizer.json`.
    lower_case: whether WordPiece lower-cases text first; a SentencePiece file
      has its own normalisation.
    extra_ids: number of sentinels to append to a SentencePiece model.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: the ending is none of these, or `extra_ids` is set for another
      kind than SentencePiece.
  """
  path = files.path("VOCABULARY_PATH", path)
  if path.suffix not in (".model", ".txt", ".json"):
    raise ValueError(
      f"VOCABULARY_PATH={str(path)!r} must end in .model (SentencePiece), .txt "
      "(WordPiece) or .json (tokenizer.json): set --gin.VOCABULARY_PATH"
    )
  if not path.is_file():
    raise FileNotFoundError(
      f"VOCABULARY_PATH={str(path)!r} is not a file: set "
      "--gin.VOCABULARY_PATH to a SentencePiece .model or a BERT vocab.txt"
    )
  if path.suffix == ".model":
    return SentencePieceVocabulary(str(path), extra_ids)
  if extra_ids:
    raise ValueError(
      f"extra_ids={extra_ids} can only be appended to a SentencePiece .model, "
      f"not to {str(path)!r}: add <extra_id_0>, ... to that file, and set "
      " --gin.task.TextTask.extra_ids=0"
    )
  if path.suffix == ".json":
    return TokenizerJsonVocabulary(str(path))
  return WordPieceVocabulary(str(path), lower_case)
