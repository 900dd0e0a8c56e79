"""Streams: the batches of prepared records, and where each host goes on."""

import dataclasses
import itertools
import threading

import jax
import numpy as np
import pytest

from raptr_jax.contracts import StreamedDataset
from raptr_jax.data import row_stream
from raptr_jax.data.order import Order
from raptr_jax.data.prepared import PreparedDataset
from raptr_jax.data.streaming import StreamingDataset
from raptr_jax.tasks.mixture import Mixture
from raptr_jax.tasks.objectives.packing import BLOCK_DOCUMENTS, Row
from raptr_jax.tasks.objectives.ul2 import UL2
from raptr_jax.tasks.prepared.prepare import prepare
from raptr_jax.tasks.task import NotPreparedError, TextTask
from raptr_jax.tasks.text import text_files
from raptr_jax.tasks.text.sources import TextFolder
from tests.small_task import (
  BATCH_SIZE,
  LENGTHS,
  assert_batches_equal,
  make_task,
  open_dataset,
  take,
  write_corpus,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """Real chapters, and so many short lines that there are several blocks."""
  folder = write_corpus(tmp_path_factory.mktemp("streaming") / "corpus")
  lines = [f"This is line {i * i} of many." for i in range(2 * BLOCK_DOCUMENTS)]
  (folder / "c.txt").write_text("\n".join(lines), encoding="utf-8")
  return folder


@pytest.fixture(scope="module")
def task(corpus):
  """A task on several parts."""
  source = TextFolder(str(corpus), 6, "line")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text_files, "RANGE_BYTES", 20_000)
    assert source.num_parts() > 4
  return make_task(corpus, source=source)


@pytest.fixture(scope="module")
def data_dir(task, tmp_path_factory):
  path = tmp_path_factory.mktemp("prepared")
  prepare(task=task, feature_lengths=LENGTHS, data_dir=str(path))
  return path


@pytest.fixture(scope="module")
def mixture(task, data_dir):
  path = data_dir / task.name / "vocabulary.model"
  parts = [
    dataclasses.replace(task, name=name, vocabulary_path=str(path))
    for name in ("one", "two")
  ]
  return Mixture(name="both", tasks=parts, rates=(3, 1))


@pytest.fixture
def streamed(task, data_dir):
  """Makes a stream, shuffled in small windows unless it is to be otherwise."""

  def make(**changes):
    arguments = {"task": task, "shuffle": True, "shuffle_window": 100}
    return open_dataset(StreamingDataset, data_dir, **arguments | changes)

  return make


@pytest.fixture
def on_host(monkeypatch):
  """Makes this process number `host` of `hosts`."""

  def become(host, hosts):
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    monkeypatch.setattr(jax, "process_index", lambda: host)

  return become


def _examples(batches):
  """The examples of batches, as bytes."""
  return [
    b"".join(batch[name][i].tobytes() for name in sorted(batch))
    for batch in batches
    for i in range(len(next(iter(batch.values()))))
  ]


def test_in_order_a_stream_gives_the_batches_of_records(task, data_dir):
  prepared = open_dataset(PreparedDataset, data_dir, task=task)
  count = prepared.num_examples // BATCH_SIZE + 5  # Into the second epoch.
  streamed = open_dataset(StreamingDataset, data_dir, task=task)
  assert_batches_equal(take(streamed, count), take(prepared, count))
  assert_batches_equal(take(streamed, 2, 7), take(prepared, 2, 7))


@pytest.mark.parametrize(
  ("layout", "lengths"),
  [
    ("decoder", {"tokens": 32}),
    ("encoder_decoder", {"inputs": 24, "targets": 20}),
  ],
)
def test_ul2_streams_as_prepared(layout, lengths, data_dir, task, tmp_path):
  ul2_task = dataclasses.replace(
    task,
    name=f"ul2_{layout}",
    objective=UL2(layout),
    vocabulary_path=str(data_dir / task.name / "vocabulary.model"),
    extra_ids=20,
    vocabulary_size=task.vocabulary_size + 20,
  )
  prepare(task=ul2_task, feature_lengths=lengths, data_dir=str(tmp_path))
  arguments = {"task": ul2_task, "feature_lengths": lengths}
  prepared, streamed = (
    take(open_dataset(kind, tmp_path, **arguments), 30)
    for kind in (PreparedDataset, StreamingDataset)
  )
  assert_batches_equal(streamed, prepared)


def test_mixtures_stream_as_prepared(mixture, tmp_path):
  prepare(task=mixture, feature_lengths=LENGTHS, data_dir=str(tmp_path))
  prepared, streamed = (
    take(open_dataset(kind, tmp_path, task=mixture), 2, start=3)
    for kind in (PreparedDataset, StreamingDataset)
  )
  assert_batches_equal(streamed, prepared)


def test_an_epoch_is_a_permutation_of_all_rows(streamed, task, data_dir):
  prepared = open_dataset(PreparedDataset, data_dir, task=task)
  rows = prepared.num_examples
  count = rows // BATCH_SIZE
  batches = take(streamed(), 2 * count)
  # Masks hide tokens, so rows are told apart by the lengths of their pieces.
  one, two = (
    sorted(
      tuple(np.bincount(row, minlength=9))
      for batch in part
      for row in batch["segment_ids"]
    )
    for part in (batches[:count], take(prepared, count))
  )
  missing = rows - count * BATCH_SIZE
  assert len(set(map(tuple, two)) - set(map(tuple, one))) <= missing
  assert _examples(batches[:count]) != _examples(take(prepared, count))
  # Another epoch, another order, other masks.
  assert not set(_examples(batches[:count])) & set(_examples(batches[count:]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_from_any_place(streamed, mixture, workers):
  unbroken = take(streamed(task=mixture), 60)
  for stopped in (1, 13, 40) if not workers else (13,):
    dataset = streamed(task=mixture, workers=workers)
    batches = dataset.batches(0)
    before = list(itertools.islice(batches, stopped))
    place = batches.get_state()
    batches.close()
    assert place.shape == (2, 5)
    after = dataset.resume(stopped, place[None])
    np.testing.assert_array_equal(after.get_state(), place)
    rest = list(itertools.islice(after, 60 - stopped))
    assert_batches_equal([*before, *rest], unbroken)


def test_to_go_on_encodes_a_window_and_what_is_ahead_of_it(
  streamed, monkeypatch
):
  """However far a stream has come, in parts that it skips and epochs."""
  dataset = streamed(shuffle_window=1)
  batches = dataset.batches(0)
  list(itertools.islice(batches, 400))
  place = batches.get_state()
  batches.close()
  assert place[0, 0] > dataset.task.source.num_parts()  # A later epoch.
  encoded, rows = [], TextTask.rows
  monkeypatch.setattr(
    TextTask,
    "rows",
    lambda *args: encoded.append(1) or rows(*args),
  )
  after = dataset.resume(400, place[None])
  next(after)
  after.close()
  # This window, one read ahead and one that waits, for five batches at most.
  assert len(encoded) < 10


def test_hosts_read_an_epoch_once(streamed, task, data_dir, on_host):
  parts = task.source.num_parts()
  hosts, read = 3, []
  for host in range(hosts):
    on_host(host, hosts)
    dataset = streamed(batch_size=3, shuffle_window=1)
    batches = dataset.batches(0)
    while batches.get_state()[0, 0] < parts:
      read += _examples([next(batches)])
      last = int(batches.get_state()[0, 0])
    assert last % hosts == host
    read.pop()  # Of the next epoch.
    batches.close()
  on_host(0, 1)
  rows = open_dataset(PreparedDataset, data_dir, task=task).num_examples
  assert len(read) == len(set(read)) == rows


def test_each_host_reads_parts_of_its_own_and_goes_on(streamed, on_host):
  """Hosts that stop and start go on exactly, each for itself."""
  unbroken, places = [], []
  for host in range(2):
    on_host(host, 2)
    unbroken.append(take(streamed(), 30))
    batches = streamed().batches(0)
    list(itertools.islice(batches, 17))
    places.append(batches.get_state())
    batches.close()
  assert not set(_examples(unbroken[0])) & set(_examples(unbroken[1]))
  for host in range(2):
    on_host(host, 2)
    after = streamed().resume(17, np.stack(places))
    rest = list(itertools.islice(after, 13))
    assert_batches_equal(rest, unbroken[host][17:])


@pytest.mark.parametrize("hosts", [1, 3, 4])
def test_other_hosts_begin_parts_that_nobody_has_begun(
  streamed, on_host, hosts
):
  places = np.zeros((2, 1, 5), int)
  places[:, 0, 0] = 6, 5
  places[:, 0, 4] = 8, 5  # The first host's window ends in part 8.
  begun = []
  for host in range(hosts):
    on_host(host, hosts)
    state = streamed(batch_size=12).resume(5, places).get_state()
    assert list(state[0, 1:]) == [0, 0, 0, -1]
    begun.append(int(state[0, 0]))
  assert begun == [9 + host for host in range(hosts)]


def test_shared_batches_do_not_depend_on_hosts(streamed, on_host):
  (whole,) = take(streamed(shared=True), 1, 2)
  on_host(1, 2)
  dataset = streamed(shared=True)
  (part,) = take(dataset, 1, 2)
  half = {key: value[8:] for key, value in whole.items()}
  assert_batches_equal([part], [half])
  place = dataset.batches(0).get_state()
  (part,) = itertools.islice(dataset.resume(0, place[None]), 1)
  (first,) = take(streamed(shared=True), 1)
  assert_batches_equal([part], [first])


def test_windows_are_whole_blocks(task, data_dir):
  vocabulary = task.vocabulary(str(data_dir))
  stream = row_stream.RowStream(
    source=task.source,
    split="train",
    order=Order(seed=3, shuffle=True),
    encode=lambda texts: list(task.rows(iter(texts), vocabulary, LENGTHS)),
    window=40,
    host=0,
    hosts=1,
    closed=threading.Event(),
  )
  windows = itertools.islice(stream.windows(row_stream.Place(0)), 5)
  for window, again in itertools.pairwise(windows):
    assert len(window.rows) >= 40
    indices = [row.number for row in window.rows]
    begin = window.place.row
    assert indices != sorted(indices)
    assert sorted(indices) == [*range(begin, begin + len(indices))]
    (same,) = itertools.islice(stream.windows(again.place), 1)
    assert [row.number for row in same.rows] == [r.number for r in again.rows]


@dataclasses.dataclass(frozen=True)
class FewParts:
  """Ten parts, of which one has text."""

  splits: tuple[str, ...] = ("train",)

  def description(self):
    return "few parts"

  def num_parts(self):
    return 10

  def documents(self, split, part=None):
    return iter(["some text"] if part in (None, 4) else [])


def few_parts(**changes):
  arguments = {"shuffle": True, "host": 0, "hosts": 1} | changes
  return row_stream.RowStream(
    source=FewParts(),
    split="train",
    order=Order(seed=1, shuffle=arguments.pop("shuffle")),
    encode=lambda texts: [Row(np.arange(3), np.array([3]))] * len(texts),
    window=1,
    closed=threading.Event(),
    **arguments,
  )


def test_parts_without_text_are_passed_over():
  windows = few_parts().windows(row_stream.Place(0))
  epochs = [next(windows).rows[0].epoch for _ in range(20)]
  assert epochs == [*range(20)]
  in_order = few_parts(shuffle=False, host=1, hosts=2)
  with pytest.raises(
    OSError, match="few parts has no text, or none for host 1"
  ):
    next(in_order.windows(row_stream.Place(1)))


def test_a_place_knows_the_last_part_of_its_window(streamed, on_host):
  dataset = streamed(shuffle_window=600)
  batches = dataset.batches(0)
  next(batches)
  place = batches.get_state()
  assert place[0, 4] > place[0, 0]
  on_host(1, 2)
  after = streamed().resume(1, place[None]).get_state()
  assert after[0, 0] == place[0, 4] + 2  # Host 0 begins the part before.


def test_a_stream_without_text_is_refused(streamed, monkeypatch):
  monkeypatch.setattr(
    TextFolder, "documents", lambda self, split, part=None: iter(())
  )
  with pytest.raises(OSError, match="the train split of text .* no text"):
    next(streamed().batches(0))


def test_wrong_arguments_are_refused(streamed, task, mixture):
  with pytest.raises(ValueError, match=r"shuffle_window=0 must be at least 1"):
    streamed(shuffle_window=0)
  with pytest.raises(ValueError, match=r"DATA_WORKERS=-1 must not be negative"):
    streamed(workers=-1)
  with pytest.raises(ValueError, match="MAX_TOKENS=5, but small_bert is str"):
    streamed(task=dataclasses.replace(task, max_tokens=5))
  with pytest.raises(
    ValueError, match=r"TEXT_SHARE=0\.5, .*--gin.TEXT_SHARE=1"
  ):
    streamed(task=dataclasses.replace(task, text_share=0.5))
  with pytest.raises(FileExistsError, match="places in 1 tasks, expected 2"):
    streamed(task=mixture).resume(0, np.zeros((1, 1, 5), int))


def test_a_stream_needs_a_vocabulary(task, tmp_path):
  with pytest.raises(NotPreparedError, match=r"raptr --run_mode=prepare"):
    open_dataset(StreamingDataset, tmp_path, task=task)


def test_only_streams_have_places(streamed, task, data_dir):
  assert isinstance(streamed(), StreamedDataset)
  prepared = open_dataset(PreparedDataset, data_dir, task=task)
  assert not isinstance(prepared, StreamedDataset)
