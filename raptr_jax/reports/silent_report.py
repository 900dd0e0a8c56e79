"""What stands for the report in processes that write none."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raptr_jax.reports.trackers import Tracker


class SilentReport(contextlib.AbstractContextManager):
  """The report of all processes but the first, which reports for all."""

  seconds: Mapping[str, float] = {}

  def __exit__(self, *error: object) -> None:
    pass

  def has_eval(self, step: int, layers: int | str = "full") -> bool:
    return False

  def train(self, step: int, entry: Mapping[str, Any]) -> None:
    pass

  def evaluation(
    self, step: int, layers: int | str, losses: Mapping[str, Any]
  ) -> None:
    pass

  def publish(self) -> None:
    pass

  def write_seconds(self, seconds: Mapping[str, float]) -> None:
    pass

  def note(self, text: str) -> None:
    pass

  def announce(self, text: str) -> None:
    pass

  def follow(self, steps_done: Callable[[], int]) -> None:
    pass

  def activity(
    self, name: str, *, in_log: bool
  ) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()

  def begin(self, trackers: Sequence[Tracker] = (), config: str = "") -> None:
    pass

  def write_page(self, file_name: str, page: str) -> None:
    pass

  def write_summary(self, summary: Mapping[str, Any]) -> None:
    pass
