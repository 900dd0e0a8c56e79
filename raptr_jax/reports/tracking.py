"""Sends the entries of a run to its trackers, in the background."""

import contextlib
import json
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from raptr_jax.reports import run_files
from raptr_jax.reports.trackers import Record, Tracker
from raptr_jax.tasks import files
from raptr_jax.tasks.files import AnyPath

# Ids of a run's records, by the name of the tracker.
IDS_FILE = "trackers.json"
# A network may be down, and a cluster that ends a run does not wait for long.
CLOSE_SECONDS = 60.0


class TrackerError(OSError):
  """A tracker cannot start."""


class Tracking(contextlib.AbstractContextManager["Tracking"]):
  """The records that the trackers of a run keep of it.

  Args:
    trackers: none, or several of different kinds.
    folder: the run's folder, which keeps the ids of its records.
    recorded: entries of an earlier process of the run, those after the
      checkpoint included. They are not sent again. None: a new record begins.
    config: the run's configuration.
    note: prints a line.

  Raises:
    TrackerError: a tracker cannot start.
  """

  def __init__(
    self,
    trackers: Sequence[Tracker],
    folder: AnyPath,
    *,
    recorded: Iterable[run_files.Entry] | None,
    config: str,
    note: Callable[[str], None],
  ):
    self._sent = {_key(entry) for entry in recorded or ()}
    self._senders: list[_Sender] = []
    path = folder / IDS_FILE
    ids: dict[str, str] = {}
    if recorded is not None and path.exists():
      ids = json.loads(path.read_text(encoding="utf-8"))
    for tracker in trackers:
      kind = type(tracker).__name__
      try:
        record = tracker.open(
          name=files.absolute(folder).name, run_id=ids.get(kind), config=config
        )
      except Exception as error:
        self._close(failed=True)
        raise TrackerError(_why_not(tracker, error)) from error
      ids[kind] = record.run_id
      self._senders.append(_Sender(kind, record, note))
      note(f"{kind}: {record.place}")
    if trackers:
      files.write_json(path, ids)

  def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
    # A run that was stopped, to be resumed later, has not failed.
    stopped = kind is None or issubclass(kind, KeyboardInterrupt)
    self._close(failed=not stopped)

  def write(self, entry: run_files.Entry) -> None:
    """Sends the numbers of an entry, unless they have been sent."""
    if _key(entry) not in self._sent:
      for sender in self._senders:
        sender.send(entry["step"], run_files.numbers(entry))

  def _close(self, *, failed: bool) -> None:
    for sender in self._senders:
      sender.close(failed=failed)


class _Sender:
  """Writes to one record, in a thread, so that no network delays a step."""

  def __init__(self, name: str, record: Record, note: Callable[[str], None]):
    self._name, self._record, self._note = name, record, note
    # None ends the thread.
    self._new: queue.SimpleQueue[tuple[int, Mapping[str, float]] | None]
    self._new = queue.SimpleQueue()
    self._waiting: list[tuple[int, Mapping[str, float]]] = []
    self._cut_off = False
    self._failed = False
    # A daemon: a program that ends does not wait for it.
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def send(self, step: int, numbers: Mapping[str, float]) -> None:
    """Sends numbers as soon as what came before has been sent."""
    self._new.put((step, numbers))

  def close(self, *, failed: bool) -> None:
    """Waits for what is on its way, but not for ever."""
    self._failed = failed
    self._new.put(None)
    self._thread.join(CLOSE_SECONDS)
    waiting = list(self._waiting)
    if self._thread.is_alive() or waiting:
      first = f" from step {waiting[0][0]} on" if waiting else ""
      self._note(
        f"{self._name} may lack what happened{first}:"
        f" {run_files.METRICS_FILE} has it"
      )

  def _run(self) -> None:
    while (row := self._new.get()) is not None:
      self._waiting.append(row)
      self._send_waiting()
    self._send_waiting()
    try:
      self._record.close(failed=self._failed)
    except Exception as error:
      self._note(f"{self._name} could not be closed ({error})")

  def _send_waiting(self) -> None:
    """Sends rows in their order; those that fail wait for the next one."""
    try:
      while self._waiting:
        self._record.write(*self._waiting[0])
        del self._waiting[0]
    except Exception as error:
      if not self._cut_off:
        self._note(
          f"{self._name} does not take a row ({error}): the run goes on, and"
          " tries again with each row"
        )
      self._cut_off = True
    else:
      if self._cut_off:
        self._note(f"{self._name} has all rows again")
      self._cut_off = False


def _key(entry: run_files.Entry) -> tuple[Any, ...]:
  return entry["step"], entry.get("split"), entry.get("layers")


def _why_not(tracker: Tracker, error: Exception) -> str:
  how = "set it up, or leave it out of --gin.TRACKERS"
  if isinstance(error, ImportError):
    how = f"pip install 'raptr_jax[{tracker.extra}]', or --gin.TRACKERS=\"()\""
  name = type(tracker).__name__
  return f"TRACKERS has {name}, which cannot start ({error}): {how}"
