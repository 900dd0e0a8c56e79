"""The downstream tasks by name, and suites of them."""

from collections.abc import Sequence
from typing import TypeAlias

from tasks.downstream import (
  boolq,
  cb,
  copa,
  multirc,
  record,
  rte,
  squad_v2,
  trivia_qa,
  tydi_qa,
  wic,
  wsc,
)
from tasks.downstream.task import GenerationTask, RankTask

DownstreamTask: TypeAlias = RankTask | GenerationTask

_SUPERGLUE = (boolq, cb, copa, multirc, record, rte, wic, wsc)
_QA = (trivia_qa, tydi_qa, squad_v2)
TASKS: dict[str, DownstreamTask] = {
  module.TASK.name: module.TASK for module in (*_QA, *_SUPERGLUE)
}
SUITES: dict[str, tuple[str, ...]] = {
  "qa": tuple(module.TASK.name for module in _QA),
  "superglue": tuple(module.TASK.name for module in _SUPERGLUE),
  "all": tuple(TASKS),
}


def select_tasks(names: Sequence[str]) -> list[DownstreamTask]:
  """Tasks by their names or those of suites, each once, in this order.

  Raises:
    ValueError: a name is that of no task and no suite.
  """
  selected: dict[str, DownstreamTask] = {}
  for name in names:
    if name not in SUITES and name not in TASKS:
      raise ValueError(
        f"{name!r} is none of the tasks {', '.join(TASKS)} and none of the "
        f"suites {', '.join(SUITES)}: correct --gin.DOWNSTREAM_TASKS"
      )
    for task in SUITES.get(name, (name,)):
      selected[task] = TASKS[task]
  return list(selected.values())
