"""The two kinds of vocabulary, and which of them a file holds."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from tasks import extras
from tasks.vocabulary import UNK, Vocabulary, encoding_alike

SENTINEL = re.compile(r"▁?<extra_id_\d+>")


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
    return encoding_alike(seqio.SentencePieceVocabulary, self)(self.path)

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
    """Ids of the bracketed names, as [MASK] and [unused7], ascending."""
    return tuple(
      number
      for token, number in sorted(self._ids.items(), key=lambda item: item[1])
      if len(token) > 2 and token[0] == "[" and token[-1] == "]"
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
