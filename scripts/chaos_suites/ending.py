"""How runs end, and whether two end alike."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from raptr_jax.training.checkpoint_reading import arrays_of

# What depends on the machine, and on how often a run was started.
TIMES = (
  "tokens_per_second",
  "step_seconds",
  "mfu",
  "train_seconds",
  "seconds",
  "goodput",
)


def difference(unbroken: Path, folder: Path) -> str:
  """In what a run's rows, summary or last state differ; "" if in nothing."""
  for name in ("metrics.jsonl", "summary.json"):
    if not (folder / name).is_file():
      return f"{name} is missing"
  if rows(folder) != rows(unbroken):
    return "metrics.jsonl has other rows"
  if _summary(folder) != _summary(unbroken):
    return "summary.json differs"
  last = max(steps(unbroken))
  if last not in steps(folder):
    return f"no checkpoint of step {last}"
  if not same_arrays(state(folder, last), state(unbroken, last)):
    return "the last state has other bits"
  return ""


def rows(folder: Path) -> list[dict[str, Any]]:
  """Entries of metrics.jsonl, without times."""
  lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
  return [_timeless(json.loads(line)) for line in lines]


def _summary(folder: Path) -> dict[str, Any]:
  return _timeless(json.loads((folder / "summary.json").read_text("utf-8")))


def _timeless(fields: dict[str, Any]) -> dict[str, Any]:
  kept = {name: x for name, x in fields.items() if name not in TIMES}
  kept.pop("date", None)
  return kept


def steps(folder: Path) -> list[int]:
  """Steps of a run's checkpoints."""
  found = (folder / "checkpoints").glob("[0-9]*")
  return sorted(int(path.name) for path in found if path.name.isdecimal())


def state(folder: Path, step: int) -> Any:
  """All arrays of a checkpoint."""
  return _state(folder / "checkpoints" / str(step))


@functools.lru_cache(maxsize=4)
def _state(path: Path) -> Any:
  return dict(arrays_of(path))


def same_arrays(one: Any, other: Any) -> bool:
  """Whether two trees have the same bits."""
  leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
  return len(leaves) == len(others) and all(
    a.tobytes() == b.tobytes() for a, b in zip(leaves, others)
  )


def same_floats(one: Any, other: Any) -> bool:
  """Whether two states have the same parameters and moments, but for counts."""
  return same_arrays(_floats(one), _floats(other))


def _floats(tree: Any) -> list[np.ndarray]:
  return [x for x in jax.tree.leaves(tree) if x.dtype.kind == "f"]
