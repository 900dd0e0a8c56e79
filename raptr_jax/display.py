"""How a run shows itself: a bar on a terminal, lines in a log."""

import contextlib
from typing import Protocol


class Display(Protocol):
  """Takes rows of training, evaluations, and lines in between."""

  def train(self, step: int, status: str, time_left: str) -> None: ...

  def evaluation(self, step: int, status: str) -> None: ...

  def note(self, text: str) -> None: ...


class Lines:
  """One line a row, for logs: nothing is overwritten."""

  def __init__(self, total_steps: int):
    self._total_steps = total_steps

  def train(self, step: int, status: str, time_left: str) -> None:
    self.evaluation(step, f"{status}  eta {time_left:>8}")

  def evaluation(self, step: int, status: str) -> None:
    total = str(self._total_steps)
    self.note(f"step {step:>{len(total)}}/{total}  {status}")

  def note(self, text: str) -> None:
    print(text, flush=True)


class Bar:
  """A progress bar with a line of numbers below it, for terminals."""

  def __init__(
    self, stack: contextlib.ExitStack, total_steps: int, start_step: int
  ):
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.text import Text

    self._console = Console()
    self._bar = Progress(
      BarColumn(bar_width=None),
      TextColumn("{task.percentage:>3.0f}%"),
      TextColumn("step {task.completed}/{task.total}"),
      TextColumn("eta {task.fields[time_left]}"),
      console=self._console,
      expand=True,
    )
    self._task = self._bar.add_task(
      "", total=total_steps, completed=start_step, time_left="n/a"
    )
    self._status = Text("compiling", no_wrap=True, overflow="ellipsis")
    stack.enter_context(
      Live(
        Group(self._bar, self._status),
        console=self._console,
        refresh_per_second=4,
      )
    )

  def train(self, step: int, status: str, time_left: str) -> None:
    self._bar.update(self._task, completed=step, time_left=time_left)
    self._status.plain = status

  def evaluation(self, step: int, status: str) -> None:
    self.note(f"step {step}  {status}")

  def note(self, text: str) -> None:
    self._console.print(text, markup=False, highlight=False, soft_wrap=True)
