"""The downstream tasks by name, and suites of them.

A task is a module with a `TASK`, found by its name in this folder, or elsewhere
by its full name. Nothing is registered by hand, so a new task is one file.
"""

import importlib
import pkgutil
from collections.abc import Sequence

from raptr_jax.tasks import downstream
from raptr_jax.tasks.downstream.task import DownstreamTask

SUITES: dict[str, tuple[str, ...]] = {
  "qa": ("trivia_qa", "tydi_qa", "squad_v2"),
  "superglue": (
    "boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc",
  ),
}  # fmt: skip


def load_task(name: str) -> DownstreamTask:
  """The task of a module in this folder, or of any importable module.

  Raises:
    ValueError: the module does not exist, or has no `TASK`.
  """
  task = _in_module(name)
  if task is None:
    raise ValueError(
      f"{name!r} is not one of the tasks {', '.join(TASKS)}, nor of the suites"
      f" {', '.join(SUITES)}, nor a module with a TASK: correct"
      " --gin.DOWNSTREAM_TASKS"
    )
  return task


def select_tasks(names: Sequence[str]) -> list[DownstreamTask]:
  """Tasks by name or by suite, each once, in the order given.

  Raises:
    ValueError: a name is neither a task nor a suite.
  """
  members = (SUITES.get(name, (name,)) for name in names)
  unique = dict.fromkeys(name for suite in members for name in suite)
  return [load_task(name) for name in unique]


def _in_module(name: str) -> DownstreamTask | None:
  """The task of a module, by its name in this folder or its full name."""
  for full_name in (f"{downstream.__name__}.{name}", name):
    try:
      module = importlib.import_module(full_name)
    except ModuleNotFoundError as error:
      if error.name and full_name.startswith(error.name):
        continue
      raise  # The module exists, but one of its imports does not.
    task = getattr(module, "TASK", None)
    if task is not None:
      return task
  return None


def _in_this_folder() -> dict[str, DownstreamTask]:
  """All tasks in this folder, those of suites first."""
  modules = (m.name for m in pkgutil.iter_modules(downstream.__path__))
  names = (name for suite in SUITES.values() for name in suite)
  found = {name: _in_module(name) for name in (*names, *modules)}
  return {name: task for name, task in found.items() if task}


TASKS = _in_this_folder()
SUITES["all"] = tuple(TASKS)
