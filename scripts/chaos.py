r"""Kills, starves and misleads the real program, and counts what holds.

  python scripts/chaos.py
  python scripts/chaos.py --suite kill term --trials 20 --seed 1

Each trial starts the program on a small configuration: a BERT with RaPTr, a
stacking run, or the UL2 encoder-decoder. Only processes that it has started
itself are killed. The table at the end is Markdown.

suites:
{suites}

Exit codes: 0 everything held; 1 something did not.
"""

import argparse
import dataclasses
import importlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# This checkout's package, not another one that is installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from chaos_suites.program import Program
from chaos_suites.scene import Outcome, Scene


@dataclasses.dataclass(frozen=True)
class Suite:
  """A kind of trouble.

  Attributes:
    trials: by default.
    promise: what must hold.
  """

  trials: int
  promise: str


SUITES = {
  "kill": Suite(20, "killed at any moment, a run ends in the same bits"),
  "term": Suite(10, "SIGTERM and SIGINT save; a second one ends at once"),
  "corrupt": Suite(
    52, "a damaged checkpoint is noticed, and an earlier one taken"
  ),
  "align": Suite(
    44, "a folder goes on only as the run that it is, or is left as it was"
  ),
  "data": Suite(
    3, "no example twice, none skipped: 5 kills; 1, 2, 4 processes"
  ),
  "nan": Suite(5, "a step that is not finite changes nothing"),
  "disk": Suite(8, "without room or permission one error, and nothing is lost"),
  "input": Suite(89, "bad input ends with code 2 and one line that helps"),
  "hostile": Suite(19, "files of others run no code and stay in their folder"),
  "soak": Suite(
    60, "killed every minute: the same end; memory and open files stay flat"
  ),
}


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line; raises SystemExit."""
  flags = _flags(argv)
  names = list(SUITES) if "all" in flags.suite else flags.suite
  rows, held = [], True
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(flags.folder or temporary)
    program = Program(folder / "program")
    for name in names:
      trials = flags.trials or SUITES[name].trials
      seeded = random.Random(f"{name} {flags.seed}")
      scene = Scene(program, folder / name, trials, seeded)
      scene.folder.mkdir(parents=True, exist_ok=True)
      begun = time.monotonic()
      shown = list(_shown(name, scene))
      passed = sum(not outcome.failure for outcome in shown)
      held = held and passed == len(shown) > 0
      seconds = time.monotonic() - begun
      rows.append(
        f"| {name} | {SUITES[name].promise} | {passed}/{len(shown)}"
        f" | {seconds:.0f} |"
      )
  print("\n| suite | must hold | held | seconds |\n|---|---|---|---|")
  print(*rows, sep="\n")
  raise SystemExit(not held)


def outcomes(name: str, scene: Scene) -> Iterator[Outcome]:
  """The outcomes of a suite, as they become known."""
  module = importlib.import_module(f"chaos_suites.{name}")
  run: Callable[[Scene], Iterator[Outcome]] = module.outcomes
  return run(scene)


def _shown(name: str, scene: Scene) -> Iterator[Outcome]:
  """The outcomes of a suite, each printed when it is known."""
  for outcome in outcomes(name, scene):
    print(
      f"{name:<8}{outcome.name:<56} {outcome.failure or 'held'}", flush=True
    )
    yield outcome


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
  lines = (
    f"  {name:<9}{suite.promise} ({suite.trials} trials)"
    for name, suite in SUITES.items()
  )
  parser = argparse.ArgumentParser(
    description=(__doc__ or "").format(suites="\n".join(lines)),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--suite",
    nargs="+",
    choices=(*SUITES, "all"),
    default=["all"],
    metavar="NAME",
    help="one or more of the above, or all (default)",
  )
  parser.add_argument("--trials", type=int, help="instead of each suite's own")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--folder", help="keeps all files; default: temporary")
  return parser.parse_args(argv)


if __name__ == "__main__":
  main()
