"""Writes the parts of a task's text, in one process, several, or a cluster.

A part of the source becomes a shard of each split, and its tally: how much was
in it. Parts do not depend on each other, so any number of processes writes the
same files, and a restart writes the parts that have no tally yet.
"""

import concurrent.futures
import dataclasses
import functools
import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias
from zipfile import BadZipFile

import numpy as np

from raptr_jax.tasks.files import AnyPath, replacing
from raptr_jax.tasks.objectives.packing import Row
from raptr_jax.tasks.prepared import records
from raptr_jax.tasks.progress import Progress
from raptr_jax.tasks.task import TextTask
from raptr_jax.tasks.text.vocabularies import open_vocabulary
from raptr_jax.tasks.text.vocabulary import Vocabulary, file_fingerprint

LOG_SECONDS = 10.0  # Between two lines of a log.
SIZES = ("documents", "rows", "tokens", "characters")


@dataclasses.dataclass(frozen=True)
class Tally:
  """How much is in a part, or in several.

  Attributes:
    sizes: int64[splits, 4], numbers of `SIZES`, in the order of the splits.
    counts: int64[V], occurrences of each token in the train split.
  """

  sizes: np.ndarray
  counts: np.ndarray

  def __add__(self, other: "Tally") -> "Tally":
    return Tally(self.sizes + other.sizes, self.counts + other.counts)


# Calls a function with each of some parts, and yields those that are done.
Run: TypeAlias = Callable[[Callable[[int], int], Sequence[int]], Iterator[int]]


def tally_path(folder: AnyPath, part: int) -> AnyPath:
  """Where the tally of a part is, until the task is complete."""
  return folder / f"part-{part:05}.npz"


def load_tally(folder: AnyPath, part: int) -> Tally:
  """The tally of a part that is done.

  Raises:
    OSError: it is damaged.
  """
  path = tally_path(folder, part)
  try:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
      return Tally(found["sizes"], found["counts"])
  except (EOFError, KeyError, TypeError, ValueError, BadZipFile) as error:
    raise OSError(
      f"{path} is damaged: delete it, and start the same command again, which "
      "writes it anew"
    ) from error


def write_parts(
  task: TextTask,
  feature_lengths: Mapping[str, int],
  folder: AnyPath,
  count: int,
  run: Run,
) -> None:
  """Writes the first parts, but for those that are there; shows progress.

  Args:
    task: its vocabulary is in the folder.
    feature_lengths: lengths of the features of a batch.
    folder: the task's folder.
    count: number of parts.
    run: such as `in_processes`.
  """
  missing = [part for part in range(count) if not is_there(task, folder, part)]
  done = count - len(missing)
  write = functools.partial(write_part, task, feature_lengths, folder)
  began, tokens = time.monotonic(), 0
  with Progress(
    count, done=done, unit="part", log_seconds=LOG_SECONDS
  ) as progress:
    for number, part in enumerate(run(write, missing), 1):
      tally = load_tally(folder, part)
      tokens += int(tally.sizes[:, SIZES.index("tokens")].sum())
      seconds = time.monotonic() - began
      progress.update(
        done + number,
        f"{tokens:,} tokens, {tokens / seconds:,.0f}/s",
        (len(missing) - number) * seconds / number,
      )


def is_there(task: TextTask, folder: AnyPath, part: int) -> bool:
  """Whether a part has its shards, and the tally of an unfinished task."""
  is_known = (folder / records.METADATA).is_file()
  return (is_known or tally_path(folder, part).is_file()) and all(
    records.shard_path(folder, split, part).is_file()
    for split in task.source.splits
  )


def in_processes(workers: int) -> Run:
  """Writes with so many processes; 1 is this one.

  Raises:
    ValueError: there are none.
  """
  if workers < 1:
    raise ValueError(f"workers={workers} must be at least 1: set --workers")
  return functools.partial(_in_processes, workers)


def _in_processes(
  workers: int, write: Callable[[int], int], parts: Sequence[int]
) -> Iterator[int]:
  if workers == 1 or len(parts) < 2:
    yield from map(write, parts)
    return
  # Not forked: the program's threads would be missing in the copies.
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(
    min(workers, len(parts)), context
  ) as pool:
    try:
      futures = [pool.submit(write, part) for part in parts]
      for future in concurrent.futures.as_completed(futures):
        yield future.result()
    finally:
      pool.shutdown(wait=True, cancel_futures=True)


def write_part(
  task: TextTask,
  feature_lengths: Mapping[str, int],
  folder: AnyPath,
  part: int,
  *,
  most_tokens: float = math.inf,
) -> int:
  """Writes one part: its shards, and then its tally; returns its number.

  Args:
    task: its vocabulary is in the folder.
    feature_lengths: lengths of the features of a batch.
    folder: the task's folder.
    part: number of the part.
    most_tokens: of the train split; later rows are left out.
  """
  path = folder / task.vocabulary_file
  vocabulary = _vocabulary(
    path, task.lower_case, task.extra_ids, file_fingerprint(path)
  )
  counters = []
  for split in task.source.splits:
    counter = _Counter(vocabulary.size)
    documents = counter.documents(task.documents(split, part))
    rows = task.rows(documents, vocabulary, feature_lengths)
    if split == "train":
      rows = _within(rows, most_tokens)
    rows = counter.rows(rows)
    records.write_shard(records.shard_path(folder, split, part), rows)
    counters.append(counter)
  sizes = [[counter.sizes[name] for name in SIZES] for counter in counters]
  train = task.source.splits.index("train")
  tally = Tally(np.array(sizes, np.int64), counters[train].counts)
  with (
    replacing(tally_path(folder, part)) as partial,
    partial.open("wb") as file,
  ):
    np.savez_compressed(file, sizes=tally.sizes, counts=tally.counts)
  return part


@functools.lru_cache(maxsize=1)
def _vocabulary(
  path: AnyPath, lower_case: bool, extra_ids: int, fingerprint: str
) -> Vocabulary:
  """Opened once for all parts that a process writes."""
  del fingerprint  # Another file at the same place is opened anew.
  return open_vocabulary(path, lower_case, extra_ids=extra_ids)


def _within(rows: Iterable[Row], most_tokens: float) -> Iterator[Row]:
  """The first rows that have no more tokens than these."""
  tokens = 0
  for row in rows:
    tokens += len(row.tokens)
    if tokens > most_tokens:
      return
    yield row


class _Counter:
  """Counts documents that are read, and rows that are written.

  Attributes:
    sizes: numbers, by `SIZES`.
    counts: int64[V], occurrences of each token.
  """

  def __init__(self, vocabulary_size: int):
    self.sizes = dict.fromkeys(SIZES, 0)
    self.counts = np.zeros(vocabulary_size, np.int64)

  def documents(self, documents: Iterable[str]) -> Iterator[str]:
    """Passes documents through, counting them."""
    for document in documents:
      yield document
      self.sizes["documents"] += 1
      self.sizes["characters"] += len(document)

  def rows(self, rows: Iterable[Row]) -> Iterator[Row]:
    """Passes rows through, counting them and their tokens."""
    for row in rows:
      self.sizes["rows"] += 1
      self.sizes["tokens"] += len(row.tokens)
      np.add.at(self.counts, row.tokens, 1)
      yield row
