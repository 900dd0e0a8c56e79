"""Trains SentencePiece vocabularies, reproducibly."""

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece

from raptr_jax.tasks.text import vocabulary
from raptr_jax.tasks.text.vocabularies import append_pieces

# More text would hardly change the vocabulary, but take more memory.
MOST_CHARACTERS = 50_000_000


def train_sentencepiece(
  documents: Iterable[str],
  size: int,
  path: Path,
  *,
  extra_pieces: Sequence[str] = (),
) -> None:
  """Trains a unigram model on the first 50 million characters of documents.

  Ids 0 to 4 are [PAD], [UNK], [CLS], [SEP] and [MASK]; no text encodes to
  them. Characters rarer than one in 20,000 become bytes, so no text is unknown.
  Text is normalised by NFKC.

  Args:
    documents: the text.
    size: V, the number of ids, including special ones and extra pieces.
    path: the `.model` file to write.
    extra_pieces: pieces for the last ids, such as <extra_id_1>, <extra_id_0>.
      Text encodes to them only where it spells them out.

  Raises:
    ValueError: there is no text, or `size` is too small or large for it.
  """
  sentences = _beginning(documents)
  first = next(sentences, None)
  if first is None:
    raise ValueError("there is no text to train a vocabulary on")
  sentences = itertools.chain([first], sentences)
  try:
    model = _train(sentences, size - len(extra_pieces))
  except RuntimeError as error:
    raise ValueError(
      f"VOCABULARY_SIZE={size} does not suit this text "
      f"({str(error).splitlines()[-1]}): set another --gin.VOCABULARY_SIZE"
    ) from error
  path.write_bytes(append_pieces(model, extra_pieces))


def _train(sentences: Iterator[str], size: int) -> bytes:
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
  )
  return model.getvalue()


def _beginning(documents: Iterable[str]) -> Iterator[str]:
  """Non-empty documents, until they exceed `MOST_CHARACTERS` in total."""
  characters = 0
  for document in documents:
    if document:
      yield document
    characters += len(document)
    if characters >= MOST_CHARACTERS:
      return
