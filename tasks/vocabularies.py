"""The two kinds of vocabulary, and which of them a file holds."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from tasks import extras
from tasks.vocabulary import (
  NLG,
  NLU,
  S2S,
  UNK,
  Vocabulary,
  encoding_alike,
  sentinel,
)

SENTINEL = re.compile(r"▁?<extra_id_\d+>")
ModelProto: Any = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]


def append_pieces(model: bytes, pieces: Iterable[str]) -> bytes:
  """A SentencePiece model with further pieces, at its last ids.

  The trainer would put such symbols first. A text encodes to them only where
  it spells them out.
  """
  proto = ModelProto.FromString(model)
  for piece in pieces:
    proto.pieces.add(
      piece=piece, score=0.0, type=ModelProto.SentencePiece.USER_DEFINED
    )
  return proto.SerializeToString(deterministic=True)


@dataclasses.dataclass(frozen=True)
class SentencePieceVocabulary(Vocabulary):
  """A SentencePiece model (Kudo and Richardson, arXiv:1808.06226).

  Attributes:
    path: the `.model` file.
    extra_ids: sentinels that follow the pieces of the file, <extra_id_0> last.
  """

  extra_ids: int = 0

  @functools.cached_property
  def _processor(self) -> sentencepiece.SentencePieceProcessor:
    sentinels = map(sentinel, reversed(range(self.extra_ids)))
    model = append_pieces(Path(self.path).read_bytes(), sentinels)
    try:
      return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
      raise ValueError(
        f"VOCABULARY_EXTRA_IDS={self.extra_ids} does not suit {self.path} "
        f"({error}): set --gin.VOCABULARY_EXTRA_IDS=0 for a vocabulary that "
        "has sentinels of its own"
      ) from error

  def encode(self, text: str) -> list[int]:
    """Token ids of a text; what the model does not know becomes bytes."""
    return self._processor.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    """The text of token ids; control pieces vanish."""
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

  @property
  def eos_id(self) -> int:
    """Id that ends inputs and targets: the file's own."""
    found = self._processor.eos_id()
    if found < 0:
      raise ValueError(
        f"the vocabulary {self.path} has no end-of-sentence piece, which this "
        "task needs: choose another --gin.VOCABULARY_PATH, or None to train one"
      )
    return found

  @functools.cached_property
  def special_ids(self) -> tuple[int, ...]:
    """Ids of control pieces, [UNK], sentinels and modes, ascending."""
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
    """The same file as a seqio.SentencePieceVocabulary."""
    seqio = extras.require("seqio")
    in_seqio = encoding_alike(seqio.SentencePieceVocabulary, self)
    return in_seqio(self.path, extra_ids=self.extra_ids)

  def _find(self, piece: str) -> int | None:
    # Sentinels of some files, as mT5's, begin with a word boundary.
    names = (piece, f"▁{piece}") if SENTINEL.fullmatch(piece) else (piece,)
    found = (self._processor.piece_to_id(name) for name in names)
    return next((i for i in found if i != self.unk_id or piece == UNK), None)


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
    # Not `splitlines`: a token may be a line separator of Unicode.
    text = Path(self.path).read_text(encoding="utf-8")
    lines = [token.rstrip() for token in text.removesuffix("\n").split("\n")]
    ids = {token: number for number, token in enumerate(lines)}
    if len(ids) != len(lines):
      twice = next(t for i, t in enumerate(lines) if ids[t] != i)
      raise ValueError(
        f"VOCABULARY_PATH={self.path!r} has the token {twice!r} twice; expected"
        " one token a line, each once"
      )
    return ids

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
    """Ids of sentinels and of bracketed names, as [MASK], ascending."""
    return tuple(
      number
      for token, number in sorted(self._ids.items(), key=lambda item: item[1])
      if SENTINEL.fullmatch(token)
      or (len(token) > 2 and token[0] == "[" and token[-1] == "]")
    )

  def to_seqio(self) -> Any:
    """The same file as a seqio.BertWordPieceVocabulary."""
    seqio = extras.require("seqio")
    return encoding_alike(seqio.BertWordPieceVocabulary, self)(
      self.path,
      lower_case=self.lower_case,
      pad_id=self.pad_id,
      start_of_sequence_id=self.cls_id,
      end_of_sequence_id=self.sep_id,
    )

  def _find(self, piece: str) -> int | None:
    return self._ids.get(piece)


def open_vocabulary(
  path: str | Path, lower_case: bool = True, *, extra_ids: int = 0
) -> Vocabulary:
  """The vocabulary of a file, SentencePiece or WordPiece by its ending.

  Args:
    path: a SentencePiece `.model` or a BERT `vocab.txt`.
    lower_case: whether WordPiece lowers the text first; SentencePiece has
      its own normalisation in the file.
    extra_ids: sentinels appended to a SentencePiece model.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the ending is neither, or WordPiece is to get sentinels.
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
    return SentencePieceVocabulary(str(path), extra_ids)
  if extra_ids:
    raise ValueError(
      f"VOCABULARY_EXTRA_IDS={extra_ids}: sentinels are appended only to a "
      f"SentencePiece .model, not to {str(path)!r}; give it <extra_id_0>, ... "
      "as lines of its own, and set --gin.VOCABULARY_EXTRA_IDS=0"
    )
  return WordPieceVocabulary(str(path), lower_case)
