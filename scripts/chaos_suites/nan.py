"""Batches that make loss and gradient NaN."""

from collections.abc import Iterator
from pathlib import Path

from chaos_suites import ending
from chaos_suites.data import TROUBLED
from chaos_suites.scene import Outcome, Scene

STEPS = 24
IN_A_ROW = 3


def outcomes(scene: Scene) -> Iterator[Outcome]:
  """Five spoilt steps in a run that saves after each; then too many in a row.

  Every other trial splits its batches over two devices.
  """
  for trial in range(scene.trials):
    folder = scene.folder / f"{trial}"
    if trial % 5 == 4:
      first = scene.random.randint(6, STEPS - IN_A_ROW)
      spoilt = list(range(first, first + IN_A_ROW))
      yield Outcome(f"steps {spoilt}: ends", _ends(scene, folder, spoilt))
      continue
    # Never so many in a row that the run would end.
    spoilt = sorted(2 * n for n in scene.random.sample(range(1, STEPS // 2), 5))
    devices = 1 + trial % 2
    failure = _skips(scene, folder, spoilt, devices)
    yield Outcome(f"steps {spoilt}, {devices} devices", failure)


def _flags(scene: Scene, folder: Path, spoilt: list[int]) -> list[str]:
  return [
    *scene.program.flags(
      "bert",
      folder,
      CHECKPOINT_PERIOD="1",
      checkpoint__Checkpointer__keep="100",
      experiment__Experiment__max_skipped_steps=str(IN_A_ROW),
      troubled__TroubledDataset__spoilt=repr(tuple(spoilt)),
    ),
    TROUBLED,
  ]


def _skips(scene: Scene, folder: Path, spoilt: list[int], devices: int) -> str:
  """What does not hold of a run that leaves out some steps."""
  xla = f"--xla_force_host_platform_device_count={devices}"
  done = scene.program.run(_flags(scene, folder, spoilt), XLA_FLAGS=xla)
  if done.returncode:
    return f"code {done.returncode}: {done.stderr[-300:]}"
  for step in range(1, STEPS):
    before, after = (ending.state(folder, s) for s in (step, step + 1))
    same = ending.same_floats(before, after)
    if same != (step in spoilt):
      return f"step {step} {'changed nothing' if same else 'changed the state'}"
  counted = [
    row["skipped_steps"]
    for row in ending.rows(folder)
    if "loss" in row and row["split"] == "train"
  ][-1]
  return "" if counted == len(spoilt) else f"it counted {counted} steps"


def _ends(scene: Scene, folder: Path, spoilt: list[int]) -> str:
  """What does not hold of a run that has to end."""
  done = scene.program.run(_flags(scene, folder, spoilt))
  if done.returncode != 2 or "Traceback" in done.stderr:
    return f"code {done.returncode}: {done.stderr[-300:]}"
  if "max_skipped_steps" not in done.stderr:
    return f"not named: {done.stderr}"
  last = max(ending.steps(folder))
  if not ending.same_floats(
    ending.state(folder, last), ending.state(folder, spoilt[0])
  ):
    return f"the state of step {last} is not that before the trouble"
  return ""
