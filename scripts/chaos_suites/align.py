"""Another configuration for the run in a folder, and the same command."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from chaos_suites.ground import contents
from chaos_suites.kill import run_unbroken
from chaos_suites.scene import Outcome, Scene

# What makes it another run, and what the error says.
REFUSED: tuple[tuple[dict[str, str], tuple[str, ...]], ...] = (
  ({"RANDOM_SEED": "1"}, ("RANDOM_SEED = 0 there, 1 here",)),
  ({"LEARNING_RATE": "1e-4"}, ("LEARNING_RATE = 0.002 there, 0.0001 here",)),
  ({"WARMUP_STEPS": "5"}, ("WARMUP_STEPS = 4 there, 5 here",)),
  ({"BATCH_SIZE": "16"}, ("BATCH_SIZE = 8 there, 16 here",)),
  (
    {"NUM_LAYERS": "5", "PATH_LENGTHS": "(2, 3, 5)"},
    ("NUM_LAYERS = 4 there, 5 here", "PATH_LENGTHS = (2, 3, 4) there"),
  ),
  ({"PATH_LENGTHS": "(2, 2, 4)"}, ("PATH_LENGTHS = (2, 3, 4) there",)),
  ({"PATH_SAMPLER": "'exact'"}, ("PATH_SAMPLER", "'exact' here")),
  (
    {"POLICY": "@policies.full()", "policies__full__num_layers": "4"},
    ("POLICY = @policies.raptr() there, @policies.full() here",),
  ),
  ({"OPTIMIZER": "@optim.adafactor()"}, ("OPTIMIZER", "@optim.adafactor()")),
  ({"optim__adamw__b2": "0.9"}, ("optim.adamw.b2 = 0.999 there, 0.9 here",)),
  ({"DROPOUT_RATE": "0.5"}, ("DROPOUT_RATE = 0.0 there, 0.5 here",)),
  ({"COMPUTE_DTYPE": "'bfloat16'"}, ("COMPUTE_DTYPE", "'bfloat16' here")),
  (
    {"bert__BertConfig__num_heads": "4"},
    ("bert.BertConfig.num_heads = 2 there, 4 here",),
  ),
  ({"bert__BertConfig__norm": "'post'"}, ("norm = 'pre' there",)),
  ({"EVAL_BATCHES": "3"}, ("EVAL_BATCHES = 2 there, 3 here",)),
  ({"masked_lm__MaskedLM__mask_rate": "0.3"}, ("mask_rate", "0.3 here")),
  ({"TRAIN_STEPS": "30"}, ("TRAIN_STEPS = 24 there, 30 here",)),
  ({"TRAIN_STEPS": "10"}, ("TRAIN_STEPS = 10",)),
)
# What does not change the steps.
ALLOWED: tuple[dict[str, str], ...] = (
  {"EVAL_PERIOD": "12"},
  {"CHECKPOINT_PERIOD": "3"},
  {"experiment__Experiment__report_period": "3"},
  {"EXECUTION": "'cond'"},
  {"NUM_MICROBATCHES": "2"},
  {"FSDP": "2"},
  {"REMAT": "'full'"},
)


def outcomes(scene: Scene) -> Iterator[Outcome]:
  """Refused and allowed changes of a run at step 15, and of a finished one."""
  finished = run_unbroken(scene.program, scene.folder, "bert")
  unfinished = scene.folder / "unfinished"
  shutil.copytree(finished, unfinished, dirs_exist_ok=True)
  for name in ("summary.json", "checkpoints/20", "checkpoints/24"):
    path = unfinished / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  cases: list[tuple[str, Path, dict[str, str], tuple[str, ...] | None]] = [
    (name, folder, bindings, told)
    for name, folder in (("step 15", unfinished), ("finished", finished))
    for bindings, told in REFUSED
  ]
  cases += [("step 15", unfinished, bindings, None) for bindings in ALLOWED]
  cases.append(("step 15, accepted", unfinished, {"RANDOM_SEED": "1"}, None))
  for number, (name, source, bindings, told) in enumerate(scene.chosen(cases)):
    folder = scene.folder / f"{number}"
    shutil.copytree(source, folder)
    check = _goes_on if told is None else _is_refused
    changed = ", ".join(f"{n} = {v}" for n, v in bindings.items())
    flags = scene.program.flags("bert", folder, **bindings)
    if name.endswith("accepted"):
      check, flags = _goes_on_in_parts, [*flags, "--accept_changes"]
    yield Outcome(f"{name}: {changed}", check(scene, folder, flags, told or ()))


def _is_refused(
  scene: Scene, folder: Path, flags: list[str], told: tuple[str, ...]
) -> str:
  before = contents(folder)
  done = scene.program.run(flags)
  if done.returncode != 2 or done.stderr.count("\n") != 1:
    return f"code {done.returncode}: {done.stderr[-300:]}"
  missing = [text for text in told if text not in done.stderr]
  if missing:
    return f"does not say {missing}: {done.stderr}"
  return "" if contents(folder) == before else "something was written"


def _goes_on(
  scene: Scene, folder: Path, flags: list[str], told: tuple[str, ...]
) -> str:
  xla = "--xla_force_host_platform_device_count=2"
  done = scene.program.run(flags, XLA_FLAGS=xla)
  if done.returncode:
    return f"code {done.returncode}: {done.stderr[-300:]}"
  return "parts" if "parts" in _summary(folder) else ""


def _goes_on_in_parts(
  scene: Scene, folder: Path, flags: list[str], told: tuple[str, ...]
) -> str:
  done = scene.program.run(flags)
  if done.returncode:
    return f"code {done.returncode}: {done.stderr[-300:]}"
  parts = _summary(folder)["parts"]
  found = [(part["first_step"], part["random_seed"]) for part in parts]
  return "" if found == [(0, 0), (15, 1)] else f"parts {found}"


def _summary(folder: Path) -> Mapping[str, list[dict[str, int]]]:
  found: Mapping[str, list[dict[str, int]]] = json.loads(
    (folder / "summary.json").read_text("utf-8")
  )
  return found
