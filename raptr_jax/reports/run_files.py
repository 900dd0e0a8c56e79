"""Reads the files of a run from which its page and picture are made.

Each line of `metrics.jsonl` is an entry: see `report.py`. Fields of
`summary.json`, among others:

  final_eval_loss: held-out loss of the full model after the last step
  unigram_loss: loss of always predicting token frequencies; may be null
  flop_factor_nominal, flop_factor_spent: FLOPs of running all layers in every
    step, over the run's FLOPs as planned and as spent
  train_seconds, steps, parameters, num_layers, date, hardware
  versions: of Python and the main packages
  boundaries: steps at which a new stage begins, ascending, without 0
  stage_path_lengths: mean expected path length of each stage
  solved_for: numbers that a FLOP factor determined, by name
  flops_spent: of the whole run, embeddings and head included
  loss_by_example_kind: held-out losses by kind of example; may be empty
  skipped_steps: that changed nothing, since loss or gradient was not finite, or
    the loss a spike
  seconds: of all processes of the run, by what they did; "repeated steps" are
    those after the last checkpoint of a process that was killed
  goodput: share of these seconds that was spent on steps
  parts: steps, changes, draws and FLOPs of each part of a run that went on with
    another configuration; missing if there is one part
"""

import dataclasses
import difflib
import json
import os
import re
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Num

from raptr_jax.tasks import files

CONFIG_FILE = "config.gin"
METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
PAGE_FILE = "summary.md"
SECONDS_FILE = "seconds.json"
CURVES_FILE = "curves.png"

Entry: TypeAlias = dict[str, Any]


def read_metrics(model_dir: str | os.PathLike[str]) -> list[Entry]:
  """Reads the entries of metrics.jsonl; [] if the file does not exist.

  A last line that is not JSON was cut off when the process was killed, and is
  ignored.

  Raises:
    OSError: another line is not JSON.
  """
  path = files.path("MODEL_DIR", model_dir) / METRICS_FILE
  lines = path.read_bytes().splitlines() if path.exists() else []
  entries = []
  for number, line in enumerate(lines, start=1):
    try:
      entries.append(json.loads(line))
    except (RecursionError, ValueError) as error:
      if number < len(lines):
        raise OSError(
          f"{path}:{number} is not JSON, expected one entry per line:"
          f" {line[:60]!r}. Put back what was there, or delete the file: the"
          " run goes on without its earlier entries."
        ) from error
  return entries


def read_summary(model_dir: str | os.PathLike[str]) -> dict[str, Any]:
  """The fields of summary.json.

  Raises:
    OSError: it cannot be read, or is damaged.
  """
  path = files.path("MODEL_DIR", model_dir) / SUMMARY_FILE
  try:
    summary = json.loads(path.read_text(encoding="utf-8"))
  except (RecursionError, ValueError):
    summary = None
  if not isinstance(summary, dict):
    raise OSError(
      f"{path} is damaged, expected the fields of a run as JSON: the command of"
      " the run writes it again."
    )
  return summary


def read_seconds(model_dir: str | os.PathLike[str]) -> dict[str, float]:
  """What a run has spent its seconds on so far; {} if nothing tells."""
  path = files.path("MODEL_DIR", model_dir) / SECONDS_FILE
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
    return {str(name): float(seconds) for name, seconds in found.items()}
  except (AttributeError, OSError, RecursionError, TypeError, ValueError):
    return {}


def numbers(entry: Entry) -> dict[str, float]:
  """The numbers of an entry, by the names that trackers give them.

  The name of an evaluation's number ends in what was evaluated, as in
  `eval/loss_full` or `eval/loss_path_6`.
  """
  suffix = ""
  if entry["split"] == "eval":
    layers = entry["layers"]
    suffix = f"_{layers}" if isinstance(layers, str) else f"_path_{layers}"
  return {
    f"{entry['split']}/{name}{suffix}": value
    for name, value in entry.items()
    if isinstance(value, int | float) and name not in ("step", "layers")
  }


def config_changes(old: str, new: str) -> list[str]:
  """Diff lines between two configurations, without comments and blanks."""
  diff = difflib.unified_diff(
    old.splitlines(), new.splitlines(), n=0, lineterm=""
  )
  return [line for line in diff if re.match(r"[+-]\s*\w", line)]


@dataclasses.dataclass(frozen=True)
class RunSeries:
  """The series of a run. Losses that were not finite are NaN.

  Attributes:
    summary: the fields of summary.json.
    steps: steps of the training entries.
    losses: training losses at `steps`.
    flops: training FLOPs until step 0, then until each of `steps`.
    full: held-out loss of the full model, by step.
    grown: held-out loss of a model that has just grown, by step.
    by_length: last held-out losses, by number of layers.
  """

  summary: dict[str, Any]
  steps: Float[np.ndarray, "n"]
  losses: Float[np.ndarray, "n"]
  flops: Float[np.ndarray, "n+1"]
  full: dict[int, float]
  grown: dict[int, float]
  by_length: dict[int, float]

  def flops_at(self, steps: Num[np.ndarray, "m"]) -> Float[np.ndarray, "m"]:
    """FLOPs until `steps`, interpolated between training entries."""
    return np.interp(steps, np.append(0, self.steps), self.flops)


def read_run(model_dir: str | os.PathLike[str]) -> RunSeries:
  """Reads the files of a completed run."""
  summary = read_summary(model_dir)
  entries = read_metrics(model_dir)
  train = [entry for entry in entries if entry["split"] == "train"]
  evals = [entry for entry in entries if entry["split"] == "eval"]
  for entry in train + evals:
    entry["loss"] = np.nan if entry["loss"] is None else entry["loss"]
  full, grown = (
    {e["step"]: e["loss"] for e in evals if e["layers"] == layers}
    for layers in ("full", "grown")
  )
  paths = [entry for entry in evals if not isinstance(entry["layers"], str)]
  last = max((entry["step"] for entry in paths), default=0)
  by_length = {e["layers"]: e["loss"] for e in paths if e["step"] == last}
  if full:
    by_length[summary["num_layers"]] = full[max(full)]
  return RunSeries(
    summary=summary,
    steps=np.array([entry["step"] for entry in train], float),
    losses=np.array([entry["loss"] for entry in train], float),
    flops=np.array([0, *(entry["flops"] for entry in train)], float),
    full=dict(sorted(full.items())),
    grown=dict(sorted(grown.items())),
    by_length=dict(sorted(by_length.items())),
  )
