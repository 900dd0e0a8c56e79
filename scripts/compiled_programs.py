"""Compiles the experiments at full size for accelerators that are not here.

  python scripts/compiled_programs.py --targets h200:1 v5e:4x4

For each model of the experiments, and each target, it compiles the program of
the longest path; then, if that does not fit, with other settings until it does;
then the shorter paths with these settings. results/compiled_programs.md shows
what is known of them.

A target needs its plugin, libtpu or that of CUDA, and has a process of its own.
What has been compiled is kept in --folder: the same command goes on where it
was stopped, and targets can be added one by one. A model on which a plugin's
compiler crashes is left out, and the page says so.
"""

import argparse
import dataclasses
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

# This checkout's package, not another one that is installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np

from raptr_jax import main as program
from raptr_jax.configuration.configure import build, gin_folder
from raptr_jax.configuration.errors import ConfigurationError
from raptr_jax.reports.provenance import provenance
from raptr_jax.tasks.files import write_json
from raptr_jax.training import fitting, programs, setup
from raptr_jax.training.compiled_program import CompiledStep, compile_step
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.plan import Plan, make_plan
from tables.compiled_page import page
from tables.pages import write_page

TARGETS = ("h200:1", "v5e:4x4", "v5p:2x2x2", "v6e:4x4")
BEGUN = ".begun"  # Of files of models that are being compiled.
CRASHES = (-signal.SIGSEGV, -signal.SIGABRT)  # Exit codes.
# Required macros; nothing is read from these places, or written to them.
PLACES = {
  "MODEL_DIR": "unused",
  "VOCABULARY_PATH": "vocab.txt",
  "GITHUB_DIR": "github",
}
Record: TypeAlias = dict[str, Any]


@dataclasses.dataclass
class Model:
  """A model with its batch and optimizer, which experiments may share.

  Attributes:
    experiment: one that trains it.
    plan: of this one.
    paths: of all that do: the shortest and the longest path of each.
    leaves: the names of those that train each path.
  """

  experiment: Experiment
  plan: Plan
  paths: dict[str, programs.Path] = dataclasses.field(default_factory=dict)
  leaves: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> None:
  """Compiles for the targets that the flags name, and writes the page."""
  args = _parser().parse_args(argv)
  try:
    if args.in_process:
      _compile_for(args.targets[0], args.experiments, args.folder)
      return
    for target in args.targets:
      _in_own_process(target, args)
  except (ConfigurationError, OSError, ValueError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except subprocess.CalledProcessError as error:
    sys.exit(error.returncode)
  known = [
    json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(args.folder.glob("*.json"))
  ]
  if known:
    place = args.results / "compiled_programs.md"
    write_page(place, page(known))
    print(place)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument(
    "--targets",
    nargs="*",
    default=TARGETS,
    metavar="NAME",
    help=f"default: {' '.join(TARGETS)}; none: only writes the page",
  )
  parser.add_argument(
    "--experiments",
    nargs="+",
    default=sorted(
      path.stem
      for path in (gin_folder() / "experiments").glob("*.gin")
      if not path.stem.startswith("quickstart")
    ),
    metavar="NAME",
    help="names of files in gin/experiments; default: all at full size",
  )
  parser.add_argument(
    "--folder", type=Path, default=Path("build/compiled_programs")
  )
  parser.add_argument("--results", type=Path, default=Path("results"))
  parser.add_argument(
    "--in_process",
    action="store_true",
    help="only compiles, for one target; the script calls itself with it",
  )
  return parser


def _in_own_process(target: str, args: argparse.Namespace) -> None:
  """Compiles for a target; again after a crash, without that model."""
  command = [sys.executable, __file__, "--in_process", "--targets", target]
  command += ["--experiments", *args.experiments, "--folder", str(args.folder)]
  begun = f"{_file_name(target, '*')}{BEGUN}"
  for place in args.folder.glob(begun):  # Of a run that was stopped.
    place.unlink()
  while True:
    result = subprocess.run(command, check=False)
    crashed = [*args.folder.glob(begun)]
    if result.returncode not in CRASHES or not crashed:
      result.check_returncode()
      return
    for place in crashed:
      place.rename(place.with_suffix(".json"))


def _compile_for(target: str, experiments: Sequence[str], folder: Path) -> None:
  """Compiles what is not known yet, and keeps what is found."""
  folder.mkdir(parents=True, exist_ok=True)
  for model in _models(target, experiments):
    leaves = [*dict.fromkeys(itertools.chain(*model.leaves.values()))]
    place = folder / f"{_file_name(target, leaves[0])}.json"
    if place.exists():
      continue
    partitioner = model.experiment.partitioner
    known: Record = {
      "target": target,
      "kind": partitioner.device_kind,
      "num_devices": partitioner.num_devices,
      "provenance": provenance(),
      "experiments": leaves,
      "programs": [],
    }
    begun = place.with_suffix(BEGUN)
    write_json(begun, known)
    for record in _compiled(model):
      known["programs"].append(record)
      print(target, json.dumps(record), flush=True)
    write_json(place, known)
    begun.unlink()


def _file_name(target: str, leaf: str) -> str:
  """Of what is known of a model on a target, without suffix."""
  return f"{target.replace(':', '_')}_{leaf}"


def _models(target: str, experiments: Sequence[str]) -> list[Model]:
  """The models of experiments, with their shortest and longest paths."""
  models: dict[str, Model] = {}
  for leaf in experiments:
    file = f"experiments/{leaf}.gin"
    header = (gin_folder() / file).read_text(encoding="utf-8")
    places = (
      f"--gin.{name}='{place}'"
      for name, place in PLACES.items()
      if name in header
    )
    flags = ["--run_mode=plan", f"--target={target}", f"--gin_file={file}"]
    program.configure([*flags, *places])
    run = build("RUN")
    plan = make_plan(run)
    state, batch = setup.abstract_state(run), setup.abstract_batch(run)
    same = (
      f"{run.model} {run.num_microbatches} {batch} {jax.tree.leaves(state)}"
    )
    model = models.setdefault(same, Model(run, plan))
    for path in programs.paths(plan)[:2]:
      looks = f"{path.name} {jax.tree.map(np.shape, path.draws)}"
      model.paths.setdefault(looks, path)
      model.leaves.setdefault(looks, []).append(leaf)
  return list(models.values())


def _compiled(model: Model) -> Iterator[Record]:
  """Compiles the programs of a model: the longest, until it fits, first."""

  def size(looks: str) -> int:
    return sum(model.paths[looks].lengths.values())

  longest, *shorter = sorted(model.paths, key=size, reverse=True)
  run, draws = model.experiment, model.paths[longest].draws
  bindings: Mapping[str, str] = {}
  step = compile_step(run, draws)
  record = _record(model, longest, run, bindings, step)
  yield record
  capacity = record["capacity"]
  if capacity is not None and step.memory.total > capacity:
    for found in fitting.tries(run, draws, step, capacity):
      run, bindings = found.experiment, found.bindings
      yield _record(model, longest, run, bindings, found.step)
  for looks in shorter:
    step = compile_step(run, model.paths[looks].draws)
    yield _record(model, looks, run, bindings, step)


def _record(
  model: Model,
  looks: str,
  run: Experiment,
  bindings: Mapping[str, str],
  step: CompiledStep,
) -> Record:
  """What is known of a program, for JSON."""
  path = model.paths[looks]
  known = programs.figures(run, model.plan, path, step)
  return {
    "path": path.name,
    "experiments": model.leaves[looks],
    "bindings": dict(bindings),
    **dataclasses.asdict(known),
  }


if __name__ == "__main__":
  main()
