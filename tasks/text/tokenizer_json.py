"""Tokenizers of Hugging Face: any that a `tokenizer.json` describes."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from raptr_jax.tasks import extras
from raptr_jax.tasks.text.vocabulary import (
  CLS,
  MASK,
  PAD,
  SEP,
  UNK,
  Vocabulary,
)

ENDS = ("[SEP]", "</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>")
# What models call our special tokens, in this order of preference.
NAMES = {
  PAD: ("[PAD]", "<pad>", "<|pad|>", *ENDS),
  UNK: ("[UNK]", "<unk>"),
  CLS: ("[CLS]", "<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>"),
  SEP: ENDS,
  MASK: ("[MASK]", "<mask>"),
}


@dataclasses.dataclass(frozen=True)
class TokenizerJsonVocabulary(Vocabulary):
  """A `tokenizer.json`.

  Attributes:
    path: the file.
  """

  @functools.cached_property
  def _tokenizer(self) -> Any:
    tokenizers = extras.require("tokenizers")
    text = self.file.read_text(encoding="utf-8")
    try:
      tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # The library raises no narrower type.
      raise ValueError(
        f"VOCABULARY_PATH={self.path!r} is no tokenizer.json ({error}): set"
        " --gin.VOCABULARY_PATH to one, or None to train a vocabulary"
      ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # In a text, they are plain text.
    return tokenizer

  def encode(self, text: str) -> list[int]:
    found: list[int] = self._tokenizer.encode(
      text, add_special_tokens=False
    ).ids
    return found

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    found = self._tokenizer.encode_batch_fast(
      list(texts), add_special_tokens=False
    )
    return [np.array(part.ids, np.int32) for part in found]

  def decode(self, ids: Sequence[int]) -> str:
    """The text of token ids, without special ones."""
    return str(self._tokenizer.decode([int(i) for i in ids]))

  def spell(self, ids: Sequence[int]) -> str:
    return str(
      self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)
    )

  @property
  def size(self) -> int:
    """One more than the highest id."""
    return self._size

  @functools.cached_property
  def _size(self) -> int:
    return 1 + max(self._tokenizer.get_vocab().values())

  @functools.cached_property
  def special_ids(self) -> tuple[int, ...]:
    """Ids of tokens that the file calls special, and of [UNK], ascending."""
    added = self._tokenizer.get_added_tokens_decoder()
    found = {number for number, token in added.items() if token.special}
    unknown = self._find(UNK)
    return tuple(sorted(found if unknown is None else found | {unknown}))

  def to_seqio(self) -> Any:
    raise NotImplementedError(
      f"seqio has no vocabulary for {self.path}: use a SentencePiece .model or a"
      " BERT vocab.txt"
    )

  def _find(self, piece: str) -> int | None:
    ids = (
      self._tokenizer.token_to_id(name) for name in NAMES.get(piece, (piece,))
    )
    return next((number for number in ids if number is not None), None)
