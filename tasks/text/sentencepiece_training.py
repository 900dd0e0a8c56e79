"""Trains SentencePiece vocabularies, reproducibly."""

import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from raptr_jax.tasks.text import vocabulary
from raptr_jax.tasks.text.vocabularies import append_pieces

# More text would hardly change the vocabulary, but take more memory.
MOST_CHARACTERS = 50_000_000
# Nothing is normalised, added or dropped, indentation may be one piece, and a
# newline or tab always is one.
KEEP_WHITESPACE = {
  "normalization_rule_name": "identity",
  "add_dummy_prefix": False,
  "remove_extra_whitespaces": False,
  "allow_whitespace_only_pieces": True,
  "user_defined_symbols": ["\n", "\t"],
}


def train_sentencepiece(
  documents: Iterable[str],
  size: int,
  path: Path,
  *,
  extra_pieces: Sequence[str] = (),
  keep_whitespace: bool = False,
) -> None:
  """Trains a unigram model on the first 50 million characters of documents.

  Ids 0 to 4 are [PAD], [UNK], [CLS], [SEP] and [MASK]; no text encodes to
  them. Characters rarer than one in 20,000 become bytes, so no text is unknown.
  Text is normalised by NFKC, and its white space becomes single spaces, unless
  `keep_whitespace`: then decoding gives back exactly what was encoded, but for
  the character U+2581, which stands for a space.

  Args:
    documents: the text.
    size: V, the number of ids, including special ones and extra pieces. If it
      is an `AtMost`, text that cannot fill so many gets fewer.
    path: the `.model` file to write.
    extra_pieces: pieces for the last ids, such as <extra_id_1>, <extra_id_0>.
      Text encodes to them only where it spells them out.
    keep_whitespace: whether newlines and repeated spaces are part of the text.

  Raises:
    ValueError: there is no text, or `size` is too small or large for it.
  """
  sentences = _beginning(documents)
  first = next(sentences, None)
  if first is None:
    raise ValueError("there is no text to train a vocabulary on")
  sentences = itertools.chain([first], sentences)
  options = KEEP_WHITESPACE if keep_whitespace else {}
  if isinstance(size, vocabulary.AtMost):
    options = {**options, "hard_vocab_limit": False}
  try:
    model = _train(sentences, size - len(extra_pieces), options)
  except RuntimeError as error:
    raise ValueError(
      f"VOCABULARY_SIZE={size} does not suit this text, which "
      f"{_reason(str(error), len(extra_pieces))}: set another "
      f"--gin.VOCABULARY_SIZE (or, in Python, vocabulary_size=AtMost(...))"
    ) from None
  path.write_bytes(append_pieces(model, extra_pieces))


def _train(
  sentences: Iterator[str], size: int, options: Mapping[str, Any]
) -> bytes:
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=sentences,
    model_writer=model,
    model_type="unigram",
    vocab_size=size,
    character_coverage=0.99995,
    byte_fallback=True,
    pad_id=0,
    unk_id=1,
    bos_id=2,
    eos_id=3,
    pad_piece=vocabulary.PAD,
    unk_piece=vocabulary.UNK,
    bos_piece=vocabulary.CLS,
    eos_piece=vocabulary.SEP,
    control_symbols=[vocabulary.MASK],
    max_sentence_length=MOST_CHARACTERS,  # In bytes; skips no document.
    num_threads=1,  # With more threads, float sums depend on timing.
    minloglevel=2,
    **options,
  )
  return model.getvalue()


def _reason(error: str, extra_pieces: int) -> str:
  """What SentencePiece's error says of the text."""
  if most := re.search(r"set it to a value <= (\d+)", error):
    return f"supports at most {int(most[1]) + extra_pieces} ids"
  if least := re.search(r"\d+ vs (\d+)", error):
    return f"needs at least {int(least[1]) + extra_pieces} ids"
  found = error.rpartition("] ")[2].strip()  # After the place in its code.
  return f"SentencePiece refuses ({found or 'it has no characters'})"


def _beginning(documents: Iterable[str]) -> Iterator[str]:
  """Non-empty documents, until they exceed `MOST_CHARACTERS` in total."""
  characters = 0
  for document in documents:
    if document:
      yield document
    characters += len(document)
    if characters >= MOST_CHARACTERS:
      return
