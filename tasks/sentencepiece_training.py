"""Trains a SentencePiece vocabulary, the same from the same text."""

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece

from tasks import vocabulary
from tasks.vocabularies import append_pieces

# Beyond this the vocabulary hardly changes, but the memory grows.
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
  them. Characters rarer than one in 20,000 are spelt in bytes, so that no
  text is unknown. Text is normalised by NFKC.

  Args:
    documents: the text; the first ones are used.
    size: V, number of ids, special ones and extra pieces included.
    path: the `.model` file to write.
    extra_pieces: pieces with the last ids, such as <extra_id_1>, <extra_id_0>.
      A text encodes to them only where it spells them out.

  Raises:
    ValueError: there is no text, or `size` does not suit it.
  """
  sentences = _beginning(documents)
  first = next(sentences, None)
  if first is None:
    raise ValueError("there is no text to train a vocabulary on")
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=itertools.chain([first], sentences),
      model_writer=model,
      model_type="unigram",
      vocab_size=size - len(extra_pieces),
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
      max_sentence_length=MOST_CHARACTERS,  # In bytes; nothing is left out.
      num_threads=1,  # With more, the sums of floats depend on the timing.
      minloglevel=2,
    )
  except RuntimeError as error:
    raise ValueError(
      f"VOCABULARY_SIZE={size} does not suit this text "
      f"({str(error).splitlines()[-1]}): set another --gin.VOCABULARY_SIZE"
    ) from error
  path.write_bytes(append_pieces(model.getvalue(), extra_pieces))


def _beginning(documents: Iterable[str]) -> Iterator[str]:
  """Documents up to `MOST_CHARACTERS` characters, empty ones left out."""
  characters = 0
  for document in documents:
    if document:
      yield document
    characters += len(document)
    if characters >= MOST_CHARACTERS:
      return
