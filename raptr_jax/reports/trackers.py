"""Programs that keep the records of many runs: Weights & Biases and MLflow.

`TRACKERS = (@trackers.WandB(),)` chooses one. It gets what TensorBoard gets,
under the same names. What goes wrong when it starts ends the program, before
training, since it can be mended. What goes wrong later does not end a run of
days: the run says so, keeps the rows that could not be written, and tries
again (`tracking.py`); `metrics.jsonl` has all of them in any case.
"""

import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any, Protocol

# Lines of a configuration that set a macro to a value of one line.
MACRO = re.compile(r"^([A-Z][A-Z0-9_]*) = ([^\\\n]+)$", re.MULTILINE)


class Record(Protocol):
  """The record of one run, open."""

  @property
  def run_id(self) -> str:
    """By which the tracker knows the run; a resumed run goes on with it."""

  @property
  def place(self) -> str:
    """Where people find it."""

  def write(self, step: int, numbers: Mapping[str, float]) -> None:
    """Adds numbers after so many steps, by name; may wait for a network."""

  def close(self, *, failed: bool) -> None:
    """Says how the run ended, and waits until everything is written."""


class Tracker(Protocol):
  """Opens records."""

  @property
  def extra(self) -> str:
    """The extra of this package that installs what the tracker needs."""

  def open(self, *, name: str, run_id: str | None, config: str) -> Record:
    """Begins a record, or goes on with that of a run that is resumed.

    Args:
      name: of the run, for people.
      run_id: of the record to go on with; None for a new one.
      config: the run's configuration, as gin writes it.
    """


def macros(config: str) -> dict[str, str]:
  """Macros of a configuration and their values, as text."""
  return dict(MACRO.findall(config))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WandB:
  """Weights & Biases; `WANDB_MODE=offline` and such are obeyed.

  Attributes:
    project: that the run belongs to.
    entity: user or team; None for the user's default.
  """

  project: str = "raptr_jax"
  entity: str | None = None

  extra = "wandb"

  def open(self, *, name: str, run_id: str | None, config: str) -> Record:
    """As for `Tracker`; a run that is known goes on under its id."""
    import wandb

    run = wandb.init(
      project=self.project,
      entity=self.entity,
      name=name,
      id=run_id,
      resume="allow",
      config=macros(config),
      allow_val_change=True,  # A resumed run may have another configuration.
      settings=wandb.Settings(console="off", silent=True),
    )
    return _WandBRecord(run)


class _WandBRecord:
  def __init__(self, run: Any):
    self._run = run

  @property
  def run_id(self) -> str:
    found: str = self._run.id
    return found

  @property
  def place(self) -> str:
    # Offline there is no page yet.
    return str(self._run.url or f"{self._run.dir}, run {self._run.id}")

  def write(self, step: int, numbers: Mapping[str, float]) -> None:
    self._run.log(dict(numbers), step=step)

  def close(self, *, failed: bool) -> None:
    self._run.finish(exit_code=int(failed))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLflow:
  """MLflow, on the server that `MLFLOW_TRACKING_URI` names.

  Attributes:
    experiment: that the run belongs to; created if missing.
  """

  experiment: str = "raptr_jax"

  extra = "mlflow"

  def open(self, *, name: str, run_id: str | None, config: str) -> Record:
    """As for `Tracker`; macros become parameters of a new run."""
    from mlflow import MlflowClient

    client = MlflowClient()
    if run_id is not None:
      client.update_run(run_id, status="RUNNING")
      return _MLflowRecord(client, run_id)
    experiment = client.get_experiment_by_name(self.experiment)
    number = (
      client.create_experiment(self.experiment)
      if experiment is None
      else experiment.experiment_id
    )
    run_id = client.create_run(number, run_name=name).info.run_id
    for macro, value in macros(config).items():
      client.log_param(run_id, macro, value)
    return _MLflowRecord(client, run_id)


class _MLflowRecord:
  def __init__(self, client: Any, run_id: str):
    self._client = client
    self.run_id = run_id

  @property
  def place(self) -> str:
    return f"{self._client.tracking_uri}, run {self.run_id}"

  def write(self, step: int, numbers: Mapping[str, float]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(key, x, now, step) for key, x in numbers.items()]
    self._client.log_batch(self.run_id, metrics=metrics)

  def close(self, *, failed: bool) -> None:
    status = "FAILED" if failed else "FINISHED"
    self._client.set_terminated(self.run_id, status=status)
