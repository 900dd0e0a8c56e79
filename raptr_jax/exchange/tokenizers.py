"""Tokenizers of Hugging Face's folders, in and out.

In: a BERT's `vocab.txt`, a SentencePiece model (`spiece.model`,
`tokenizer.model`), or else any `tokenizer.json`. Out: the vocabulary's own file
under the name that it has there, and a `tokenizer.json` of the same tokens,
which all versions of `transformers` load.
"""

import dataclasses
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raptr_jax.exchange.tensor_map import ExchangeError
from raptr_jax.tasks import extras, files
from raptr_jax.tasks.text.tokenizer_json import TokenizerJsonVocabulary
from raptr_jax.tasks.text.vocabularies import (
  SentencePieceVocabulary,
  WordPieceVocabulary,
  append_pieces,
  open_vocabulary,
)
from raptr_jax.tasks.text.vocabulary import (
  CLS,
  MASK,
  PAD,
  SEP,
  UNK,
  Vocabulary,
  sentinel,
)

CONFIG = "tokenizer_config.json"
WORDPIECE, JSON = "vocab.txt", "tokenizer.json"
SENTENCEPIECE = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
SPACE = "▁"  # What stands for a space in pieces.
T5_SENTINELS = 100  # That a T5's folder does not count, if it does not say.


@dataclasses.dataclass(frozen=True)
class FoundTokenizer:
  """The tokenizer of a folder.

  Attributes:
    file: that has it.
    lower_case: whether a `vocab.txt` expects lower-cased text.
    extra_ids: sentinels to append to a SentencePiece model.
  """

  file: Path
  lower_case: bool = True
  extra_ids: int = 0

  def vocabulary(self) -> Vocabulary:
    """The vocabulary, opened.

    Raises:
      ValueError: the file is damaged.
    """
    return open_vocabulary(
      str(self.file), self.lower_case, extra_ids=self.extra_ids
    )


def find_tokenizer(
  folder: Path, rows: int, *, has_sentinels: bool
) -> FoundTokenizer:
  """The tokenizer of a folder.

  Args:
    folder: of Hugging Face.
    rows: of the model's embedding.
    has_sentinels: whether the model is a T5, whose SentencePiece model lacks
      its sentinels.

  Raises:
    ExchangeError: there is none, or it has more tokens than the model has rows,
      or is damaged.
  """
  config = _config(folder)
  found = _file(folder)
  if found.name == WORDPIECE:
    lower_case = bool(config.get("do_lower_case", True))
    tokenizer = FoundTokenizer(found, lower_case)
  else:
    tokenizer = FoundTokenizer(found)
  try:
    if found.name in SENTENCEPIECE and has_sentinels:
      tokenizer = _with_sentinels(tokenizer, config)
    size = tokenizer.vocabulary().size
  except ValueError as error:
    raise ExchangeError(f"{found} is damaged ({error})") from error
  if size > rows:
    raise ExchangeError(
      f"{found} has {size:,} tokens, but the model {rows:,} rows: expected the"
      " model's own tokenizer"
    )
  return tokenizer


def write_tokenizer(
  folder: Path,
  vocabulary: Vocabulary,
  *,
  before: Sequence[int] = (),
  after: Sequence[int] = (),
) -> None:
  """Writes the files of a vocabulary into a folder that becomes Hugging Face's.

  Args:
    folder: where to write.
    vocabulary: the vocabulary.
    before: ids that the model reads before a text.
    after: ids that it reads after one.

  Raises:
    ExchangeError: it cannot be written as a `tokenizer.json`.
  """
  tokenizers = extras.require("tokenizers")
  if isinstance(vocabulary, WordPieceVocabulary):
    (folder / WORDPIECE).write_bytes(vocabulary.file.read_bytes())
    tokenizer = _wordpiece(vocabulary)
  elif isinstance(vocabulary, SentencePieceVocabulary):
    names = map(sentinel, reversed(range(vocabulary.extra_ids)))
    whole = append_pieces(vocabulary.file.read_bytes(), names)
    (folder / SENTENCEPIECE[1]).write_bytes(whole)
    tokenizer = _sentencepiece(whole, vocabulary)
  elif isinstance(vocabulary, TokenizerJsonVocabulary):
    text = vocabulary.file.read_text(encoding="utf-8")
    tokenizer = tokenizers.Tokenizer.from_str(text)
  else:
    raise ExchangeError(
      f"{type(vocabulary).__name__}, expected one of this package's"
      " vocabularies: Hugging Face has no others of ours"
    )
  first, last = (list(map(tokenizer.id_to_token, x)) for x in (before, after))
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single=" ".join([*first, "$A", *last]),
    special_tokens=list(zip([*first, *last], [*before, *after])),
  )
  files.write_text(folder / JSON, tokenizer.to_str(pretty=True))
  fields = _fields(vocabulary)
  if not (before and after):  # All but BERT have no types of tokens.
    fields["model_input_names"] = ["input_ids", "attention_mask"]
  files.write_json(folder / CONFIG, fields)


def _with_sentinels(
  tokenizer: FoundTokenizer, config: Mapping[str, Any]
) -> FoundTokenizer:
  """A T5's tokenizer with its sentinels, which its own file lacks."""
  try:
    _ = tokenizer.vocabulary().sentinel_ids
  except ValueError:
    number = int(config.get("extra_ids", T5_SENTINELS))
    return dataclasses.replace(tokenizer, extra_ids=number)
  return tokenizer


def _file(folder: Path) -> Path:
  """The file that has a folder's tokenizer."""
  names = (WORDPIECE, *SENTENCEPIECE, JSON)
  for name in names:
    if (folder / name).is_file():
      return folder / name
  raise ExchangeError(
    f"{folder} has no tokenizer: expected one of {', '.join(names)}"
  )


def _config(folder: Path) -> Mapping[str, Any]:
  """The tokenizer_config.json of a folder; empty if there is none."""
  path = folder / CONFIG
  if not path.is_file():
    return {}
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ExchangeError(f"{path} is damaged ({error})") from error
  return found if isinstance(found, dict) else {}


def _names(vocabulary: Vocabulary) -> dict[str, str]:
  """What a vocabulary calls the special tokens that it has, by our name."""
  found = {}
  for ours, name in (
    (PAD, "pad_id"),
    (UNK, "unk_id"),
    (CLS, "cls_id"),
    (SEP, "sep_id"),
    (MASK, "mask_id"),
  ):
    try:
      number = getattr(vocabulary, name)
    except ValueError:  # It lacks it.
      continue
    found[ours] = vocabulary.spell([number]).strip()
  return found


def _fields(vocabulary: Vocabulary) -> dict[str, Any]:
  """The tokenizer_config.json of a vocabulary."""
  names = _names(vocabulary)
  roles = {
    "pad_token": PAD,
    "unk_token": UNK,
    "cls_token": CLS,
    "bos_token": CLS,
    "sep_token": SEP,
    "eos_token": SEP,
    "mask_token": MASK,
  }
  tokens = {role: names[ours] for role, ours in roles.items() if ours in names}
  case = {}
  if isinstance(vocabulary, WordPieceVocabulary):
    case = {"do_lower_case": vocabulary.lower_case}
  return {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    **tokens,
    **case,
  }


def _wordpiece(vocabulary: WordPieceVocabulary) -> Any:
  """A `tokenizers.Tokenizer` of BERT's own kind."""
  tokenizers = extras.require("tokenizers")
  tokenizer = vocabulary.tokenizer()
  specials = [
    tokenizers.AddedToken(name, special=True)
    for name in _names(vocabulary).values()
  ]
  tokenizer.add_special_tokens(specials)
  return tokenizer


def _pieces(
  proto: Any, protocol: Any, vocabulary: SentencePieceVocabulary
) -> Any:
  """The model of a `tokenizers.Tokenizer`: unigram, or merges of pairs."""
  tokenizers = extras.require("tokenizers")
  spec = proto.trainer_spec
  if spec.model_type == protocol.TrainerSpec.UNIGRAM:
    return tokenizers.models.Unigram(
      [(piece.piece, piece.score) for piece in proto.pieces],
      unk_id=spec.unk_id,
      byte_fallback=spec.byte_fallback,
    )
  if spec.model_type != protocol.TrainerSpec.BPE:
    raise ExchangeError(
      f"{vocabulary.path} is neither a unigram nor a BPE model: no others can be"
      " written as a tokenizer.json"
    )
  ids = {piece.piece: number for number, piece in enumerate(proto.pieces)}
  return tokenizers.models.BPE(
    ids,
    _merges(proto, protocol, ids),
    unk_token=proto.pieces[spec.unk_id].piece,
    fuse_unk=True,
    byte_fallback=spec.byte_fallback,
  )


def _merges(
  proto: Any, protocol: Any, ids: Mapping[str, int]
) -> list[tuple[str, str]]:
  """The pairs of pieces that are merged, first those of the best score.

  A SentencePiece model has only their results; every pair that gives one may
  be merged to it.
  """
  normal = protocol.ModelProto.SentencePiece.NORMAL
  found = [
    (-piece.score, ids[left], ids[right], (left, right))
    for piece in proto.pieces
    if piece.type == normal
    for cut in range(1, len(piece.piece))
    if (left := piece.piece[:cut]) in ids
    and (right := piece.piece[cut:]) in ids
  ]
  return [pair for *_, pair in sorted(found)]


def _sentencepiece(model: bytes, vocabulary: SentencePieceVocabulary) -> Any:
  """A `tokenizers.Tokenizer` of a SentencePiece model."""
  tokenizers = extras.require("tokenizers")
  # Its classes are made when it is imported.
  protocol: Any = importlib.import_module(
    "sentencepiece.sentencepiece_model_pb2"
  )
  proto = protocol.ModelProto.FromString(model)
  tokenizer = tokenizers.Tokenizer(_pieces(proto, protocol, vocabulary))
  spec = proto.normalizer_spec
  steps: list[Any] = []
  if spec.precompiled_charsmap:
    steps.append(tokenizers.normalizers.Precompiled(spec.precompiled_charsmap))
  if spec.remove_extra_whitespaces:
    steps.append(tokenizers.normalizers.Strip())
    steps.append(tokenizers.normalizers.Replace(tokenizers.Regex(" {2,}"), " "))
  if spec.add_dummy_prefix:  # Even before a space, unlike `Metaspace`.
    steps.append(tokenizers.normalizers.Prepend(SPACE))
  steps.append(tokenizers.normalizers.Replace(" ", SPACE))
  tokenizer.normalizer = tokenizers.normalizers.Sequence(steps)
  scheme = "always" if spec.add_dummy_prefix else "never"
  tokenizer.decoder = tokenizers.decoders.Sequence(
    [
      tokenizers.decoders.ByteFallback(),
      tokenizers.decoders.Metaspace(prepend_scheme=scheme, split=False),
    ]
  )
  specials = {int(i) for i in vocabulary.special_ids}
  added = [
    tokenizers.AddedToken(
      piece.piece, special=number in specials, normalized=False
    )
    for number, piece in enumerate(proto.pieces)
    if number in specials
    or piece.type == protocol.ModelProto.SentencePiece.USER_DEFINED
  ]
  tokenizer.add_tokens(added)
  return tokenizer
