"""The entries of a run as TensorBoard events."""

import contextlib
import time
from pathlib import Path
from typing import Any

from raptr_jax.reports.run_files import Entry, numbers


class TensorBoardEvents(contextlib.AbstractContextManager["TensorBoardEvents"]):
  """An event file, to which every entry is written at once.

  tensorboardX's SummaryWriter passes events to a thread, and a kill loses what
  is still on its way; so this writes them itself.

  Args:
    folder: of all event files of a run; created if missing.
    start_step: of this process. TensorBoard hides what earlier ones wrote for
      later steps.
  """

  def __init__(self, folder: Path, start_step: int):
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import SessionLog

    folder.mkdir(parents=True, exist_ok=True)
    # File names resolve seconds only: a quick restart would overwrite one.
    self._file = EventsWriter(str(folder / "events"), f".{start_step}")
    self._write(
      start_step + 1 if start_step else 0,
      session_log=SessionLog(status=SessionLog.START),
    )

  def __exit__(self, *error: object) -> None:
    self._file.close()

  def write(self, entry: Entry) -> None:
    """Writes the numbers of an entry of metrics.jsonl."""
    from tensorboardX.proto.summary_pb2 import Summary

    values = [
      Summary.Value(tag=tag, simple_value=value)
      for tag, value in numbers(entry).items()
    ]
    self._write(entry["step"], summary=Summary(value=values))

  def _write(self, step: int, **content: Any) -> None:
    from tensorboardX.proto.event_pb2 import Event

    event = Event(wall_time=time.time(), step=step, **content)
    self._file.write_event(event)
    self._file.flush()
