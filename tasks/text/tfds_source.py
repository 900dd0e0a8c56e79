"""TensorFlow Datasets as a source of text: one corpus, or several merged."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from raptr_jax.tasks import extras
from raptr_jax.tasks.text import sources

PART_DOCUMENTS = 16_000


@dataclasses.dataclass(frozen=True)
class TfdsCorpus:
  """Text of one or more prepared TFDS sets, in a fixed order.

  Each set is read in its stored order. Several sets, sorted by name, are merged
  in proportion to their sizes, so that every stretch of the stream has the same
  mix. Nothing is downloaded.

  Attributes:
    corpora: maps TFDS names to the names of their text features.
    data_dir: folder of the prepared sets; None for TFDS's default.
    validation_percent: share of each set's train split that is held out, from
      its start.
  """

  corpora: Mapping[str, str]
  data_dir: str | None = None
  validation_percent: int = 1
  splits: tuple[str, ...] = dataclasses.field(
    default=sources.SPLITS, init=False
  )

  keeps_whitespace: ClassVar[bool] = False

  def __post_init__(self):
    if not self.corpora or not isinstance(self.corpora, Mapping):
      raise ValueError(
        f"TFDS_CORPORA={self.corpora!r} must name TFDS sets and their text "
        "features: set --gin.TFDS_CORPORA=\"{'wikipedia/20230601.en': 'text'}\""
      )
    if not 0 < self.validation_percent < 100:
      raise ValueError(
        f"validation_percent={self.validation_percent} must be from 1 to 99: "
        "set --gin.tfds_source.TfdsCorpus.validation_percent"
      )

  def description(self) -> str:
    features = (f"{n} ({f})" for n, f in sorted(self.corpora.items()))
    return (
      f"TFDS {', '.join(features)}, "
      f"validation: the first {self.validation_percent} % of each"
    )

  def fingerprint(self) -> None:
    return None  # A version of a TFDS set never changes.

  def num_bytes(self) -> None:
    return None  # Large.

  def remarks(self) -> Sequence[str]:
    return ()

  def num_parts(self) -> int:
    sizes = (self._num_documents(split) for split in self.splits)
    return -(-max(sizes) // PART_DOCUMENTS)

  def _num_documents(self, split: str) -> int:
    return sum(
      end - begin
      for begin, end in (self._range(b, split) for b in self._builders())
    )

  def documents(self, split: str, part: int | None = None) -> Iterator[str]:
    """The documents of a split, of one part or of all.

    Raises:
      FileNotFoundError: a set is not prepared in `data_dir`.
      ValueError: a set lacks its text feature.
    """
    sources.check_split(split, self)
    builders = self._builders()
    ranges = [self._range(builder, split) for builder in builders]
    start, end = 0, sum(end - begin for begin, end in ranges)
    if part is not None and split == "train":
      start = min(part * PART_DOCUMENTS, end)
      end = min(start + PART_DOCUMENTS, end)
    elif part is not None:  # Each part has its share.
      parts = self.num_parts()
      start, end = part * end // parts, (part + 1) * end // parts
    features = [feature for _, feature in sorted(self.corpora.items())]
    if len(builders) == 1:  # Nothing to merge, and it may be very large.
      begin, _ = ranges[0]
      return _texts(builders[0], features[0], begin + start, begin + end)
    order = merge_order([end - begin for begin, end in ranges])
    before, taken = (
      np.bincount(order[:n], minlength=len(builders)) for n in (start, end)
    )
    texts = [
      _texts(builder, feature, begin + int(first), begin + int(last))
      for builder, feature, (begin, _), first, last in zip(
        builders, features, ranges, before, taken
      )
    ]
    return (next(texts[which]) for which in order[start:end])

  def _builders(self) -> list[Any]:
    return [
      _builder(name, feature, self.data_dir)
      for name, feature in sorted(self.corpora.items())
    ]

  def _range(self, builder: Any, split: str) -> tuple[int, int]:
    """Where a split begins and ends within a set's train split."""
    size = builder.info.splits["train"].num_examples
    held_out = -(-size * self.validation_percent // 100)
    return (0, held_out) if split == "validation" else (held_out, size)


def merge_order(sizes: list[int]) -> np.ndarray:
  """The corpus that each document of a merged stream comes from.

  Document j of a corpus of n belongs (j + 1/2) / n of the way through the
  stream; ties go to the corpus listed first.

  Args:
    sizes: number of documents in each corpus.

  Returns:
    uint8[sum of sizes], indices into `sizes`.
  """
  corpus = np.repeat(np.arange(len(sizes), dtype=np.uint8), sizes)
  if len(sizes) == 1:
    return corpus
  place = np.concatenate([(np.arange(n) + 0.5) / n for n in sizes])
  return corpus[np.argsort(place, kind="stable")]


def _builder(name: str, feature: str, data_dir: str | None) -> Any:
  """The TFDS builder of a prepared set."""
  tfds = extras.require("tensorflow_datasets")
  try:
    builder = tfds.builder(name, data_dir=data_dir)
    prepared = "train" in builder.info.splits
  except tfds.core.DatasetNotFoundError:
    prepared = False
  if not prepared:
    where = f" --data_dir={data_dir}" if data_dir else ""
    raise FileNotFoundError(
      f"the TFDS set {name!r} is not prepared in "
      f"{data_dir or 'the default folder of TFDS'}: run "
      f"`tfds build {name}{where}`, or correct --gin.TFDS_CORPORA or "
      "--gin.TFDS_DATA_DIR"
    )
  if feature not in builder.info.features:
    raise ValueError(
      f"the TFDS set {name!r} has no feature {feature!r}, expected one of "
      f"{sorted(builder.info.features)}: correct --gin.TFDS_CORPORA"
    )
  return builder


def _texts(builder: Any, feature: str, begin: int, end: int) -> Iterator[str]:
  """Texts `begin` to `end` of a set, in its stored order."""
  tfds = extras.require("tensorflow_datasets")
  if begin == end:
    return
  dataset = builder.as_dataset(
    split=f"train[{begin}:{end}]",
    shuffle_files=False,
    # One file at a time: an interleaved order would depend on `begin`.
    read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
  )
  for example in tfds.as_numpy(dataset):
    yield example[feature].decode()
