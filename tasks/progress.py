"""How far a long piece of work on documents has come."""

import time
from collections.abc import Iterable, Iterator
from types import TracebackType

import rich.console
import rich.progress

from tasks.packing import Row

TERMINAL_SECONDS = 0.2  # Between two updates of a terminal ...
LOG_SECONDS = 10.0  # ... and between two lines where there is none.


class Progress:
  """Counts documents in and rows out; shows them with the time left.

  A bar in a terminal, plain lines elsewhere. Used as a context manager.
  """

  def __init__(self, label: str, num_documents: int, done_documents: int):
    """Starts at `done_documents` of `num_documents`."""
    self._label = label
    self._total = num_documents
    self._done = self._first = done_documents
    self._rows = self._tokens = 0
    console = rich.console.Console()
    self._terminal = console.is_terminal
    self._bar = rich.progress.Progress(
      rich.progress.TextColumn("{task.description}"),
      rich.progress.BarColumn(),
      rich.progress.TimeRemainingColumn(),
      console=console,
      disable=not self._terminal,
    )
    self._begin = time.monotonic()
    self._shown = self._begin

  def __enter__(self) -> "Progress":
    self._bar.start()
    self._bar_task = self._bar.add_task(
      self._label, total=self._total, completed=self._done
    )
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self._show()
    self._bar.stop()

  def documents(self, documents: Iterable[str]) -> Iterator[str]:
    """The same documents, counted as they are taken."""
    for document in documents:
      yield document
      self._done += 1
      every = TERMINAL_SECONDS if self._terminal else LOG_SECONDS
      if time.monotonic() - self._shown >= every:
        self._show()

  def rows(self, rows: Iterable[Row]) -> Iterator[Row]:
    """The same rows, counted as they are taken."""
    for row in rows:
      self._rows += 1
      self._tokens += len(row.tokens)
      yield row

  def _show(self) -> None:
    self._shown = time.monotonic()
    seconds = max(self._shown - self._begin, 1e-3)
    text = (
      f"{self._label}: {self._done:,}/{self._total:,} documents, "
      f"{self._rows:,} rows, {self._tokens:,} tokens, "
      f"{self._rows / seconds:,.0f} rows/s"
    )
    if self._terminal:
      self._bar.update(self._bar_task, completed=self._done, description=text)
    else:
      speed = (self._done - self._first) / seconds
      left = (self._total - self._done) / speed if speed else float("nan")
      print(f"{text}, {left:,.0f} s left", flush=True)
