"""What needs TensorFlow: its datasets, and vocabularies inside seqio."""

import itertools

import numpy as np
import pytest

from raptr_jax.data.prepared import PreparedDataset
from raptr_jax.data.streaming import StreamingDataset
from raptr_jax.tasks.prepared.prepare import prepare
from raptr_jax.tasks.text import tfds_source
from raptr_jax.tasks.text.tfds_source import TfdsCorpus, merge_order
from raptr_jax.tasks.text.vocabularies import open_vocabulary
from tests.small_task import (
  LENGTHS,
  assert_batches_equal,
  make_task,
  open_dataset,
  take,
  write_corpus,
)

seqio = pytest.importorskip("seqio")
tf = pytest.importorskip("tensorflow")
tfds = pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return write_corpus(tmp_path_factory.mktemp("text") / "corpus")


@pytest.fixture(scope="module")
def data_dir(corpus, tmp_path_factory):
  """Where a task on the corpus is prepared, with its vocabulary."""
  path = tmp_path_factory.mktemp("prepared")
  task = make_task(corpus)
  prepare(task=task, feature_lengths=LENGTHS, data_dir=str(path))
  return path / task.name


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
  "The cat's sät, \tthe CAT!", "STRASSE Straße ὈΔΥΣΣΕΎΣ", "数学 is [MASK] fun",
  "x" * 120, "", "\u200bzero\x00width and ﬁne",
]  # fmt: skip


def _write_word_pieces(folder, pieces):
  path = folder / "vocab.txt"
  path.write_text("\n".join([*SPECIAL, *pieces]), encoding="utf-8")
  return path


@pytest.mark.parametrize("lower_case", [True, False])
def test_word_pieces_are_the_same_inside_seqio(tmp_path, lower_case):
  pytest.importorskip("tokenizers")
  letters = "abcdefghijklmnopqrstuvwxyzßσςδυεόύä"
  pieces = [*letters, *(f"##{letter}" for letter in letters), "the", "##at"]
  path = _write_word_pieces(tmp_path, pieces)
  vocabulary = open_vocabulary(path, lower_case)
  in_seqio = vocabulary.to_seqio()
  assert isinstance(in_seqio, seqio.BertWordPieceVocabulary)
  dataset = tf.data.Dataset.from_tensor_slices({"inputs": TEXTS})
  features = {"inputs": seqio.Feature(in_seqio, add_eos=False)}
  tokenized = seqio.preprocessors.tokenize(dataset, features)
  for text, example in zip(TEXTS, tokenized.as_numpy_iterator()):
    assert list(example["inputs"]) == vocabulary.encode(text)
  assert in_seqio.vocab_size == vocabulary.size


def test_word_piece_task_streams_as_prepared(corpus, tmp_path):
  pytest.importorskip("tokenizers")
  letters = "abcdefghijklmnopqrstuvwxyz0123456789.,;:?!()-’'"
  pieces = [*letters, *(f"##{letter}" for letter in letters), "the", "##nd"]
  path = _write_word_pieces(tmp_path, pieces)
  size = len(SPECIAL) + len(pieces)
  task = make_task(corpus, vocabulary_path=str(path), vocabulary_size=size)
  prepare(task=task, feature_lengths=LENGTHS, data_dir=str(tmp_path))
  prepared, streamed = (
    take(open_dataset(kind, tmp_path, task=task, split="validation"), 3)
    for kind in (PreparedDataset, StreamingDataset)
  )
  assert_batches_equal(streamed, prepared)


class _Numbered(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A set of numbered documents."""

  VERSION = tfds.core.Version("1.0.0")
  code_path = None  # TFDS finds it with a package that not everybody has.

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict({self.FEATURE: tfds.features.Text()}),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(self.COUNT):
      yield i, {self.FEATURE: f"{self.name} document {i}"}


class Small(_Numbered, skip_registration=True):
  FEATURE, COUNT = "text", 200


class Books(_Numbered, skip_registration=True):
  FEATURE, COUNT = "book", 50


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
  """Two sets on disk, of 200 and 50 documents in three files each."""
  path = tmp_path_factory.mktemp("tfds")
  config = tfds.download.DownloadConfig(num_shards=3)
  for builder in (Small, Books):
    builder(data_dir=path).download_and_prepare(download_config=config)
  assert len(list(path.glob("*/*/*.tfrecord*"))) == 6
  return str(path)


def test_tfds_documents_by_split(tfds_dir):
  source = TfdsCorpus({"small": "text"}, tfds_dir, validation_percent=3)
  assert list(source.documents("validation")) == [
    f"small document {i}" for i in range(6)
  ]
  train = list(source.documents("train"))
  assert train == [f"small document {i}" for i in range(6, 200)]


def test_tensorflow_sees_no_gpu(tfds_dir):
  list(TfdsCorpus({"small": "text"}, tfds_dir).documents("validation"))
  assert not tf.config.get_visible_devices("GPU")


def test_tfds_sets_are_merged_in_proportion(tfds_dir, monkeypatch):
  source = TfdsCorpus({"small": "text", "books": "book"}, tfds_dir)
  train = list(source.documents("train"))
  assert len(train) == 198 + 49
  for name, first in (("small", 2), ("books", 1)):
    part = [text for text in train if text.startswith(name)]
    assert part == [f"{name} document {first + i}" for i in range(len(part))]
  with monkeypatch.context() as patch:
    patch.setattr(tfds_source, "PART_DOCUMENTS", 100)
    assert source.num_parts() == 3
    for part in range(3):
      expected = train[100 * part : 100 * (part + 1)]
      assert list(source.documents("train", part)) == expected
    held_out = [source.documents("validation", part) for part in range(3)]
    assert list(map(len, map(list, held_out))) == [1, 1, 1]
    held_out = [source.documents("validation", part) for part in range(3)]
    assert list(itertools.chain(*held_out)) == list(
      source.documents("validation")
    )
  books = [text.startswith("books") for text in train]
  assert max(np.diff(np.flatnonzero(books))) <= 6


def test_merge_order_by_hand():
  assert list(merge_order([4, 2])) == [0, 1, 0, 0, 1, 0]
  assert list(merge_order([1, 1])) == [0, 1]
  assert list(merge_order([0, 2])) == [1, 1]


def test_tfds_task_streams_as_prepared(tfds_dir, data_dir, tmp_path):
  vocabulary = data_dir / "vocabulary.model"
  source = TfdsCorpus({"small": "text", "books": "book"}, tfds_dir)
  tfds_task = make_task(
    tmp_path, name="of_tfds", source=source, vocabulary_path=str(vocabulary)
  )
  prepare(task=tfds_task, feature_lengths=LENGTHS, data_dir=str(tmp_path))
  prepared, streamed = (
    take(open_dataset(kind, tmp_path, task=tfds_task), 8)
    for kind in (PreparedDataset, StreamingDataset)
  )
  assert_batches_equal(streamed, prepared)


@pytest.mark.parametrize("name", ["no_such_set", "wikipedia/20230601.en"])
def test_missing_tfds_set_says_how_to_prepare_it(tmp_path, name):
  source = TfdsCorpus({name: "text"}, str(tmp_path))
  with pytest.raises(FileNotFoundError, match=rf"tfds build {name} --data_dir"):
    source.documents("train")


def test_wrong_tfds_arguments_are_refused(tfds_dir):
  with pytest.raises(ValueError, match=r"no feature 'words', .* \['text'\]"):
    TfdsCorpus({"small": "words"}, tfds_dir).documents("train")
  with pytest.raises(ValueError, match=r"--gin.TFDS_CORPORA"):
    TfdsCorpus({})
  with pytest.raises(ValueError, match=r"validation_percent=0"):
    TfdsCorpus({"small": "text"}, validation_percent=0)
