"""Damage to the newest checkpoint, and the same command again."""

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from chaos_suites import ending
from chaos_suites.kill import ended_alike, run_unbroken
from chaos_suites.scene import Outcome, Scene

Damage = Callable[[Path], None]


def outcomes(scene: Scene) -> Iterator[Outcome]:
  """Damages each kind of file in each way; seeded choices if there are fewer.

  A run that lacks its last page starts again from its newest checkpoint, and so
  has to notice.
  """
  unbroken = run_unbroken(scene.program, scene.folder, "bert")
  last = max(ending.steps(unbroken))
  newest = unbroken / "checkpoints" / str(last)
  files = sorted(p for p in newest.rglob("*") if p.is_file())
  cases = [
    (f"{way} {kind}", path.relative_to(unbroken), damage)
    for (kind, path), (way, damage) in itertools.product(
      _by_kind(files, newest).items(), WAYS.items()
    )
  ]
  step = newest.relative_to(unbroken)
  cases += [
    ("an empty newer step", step.with_name("40"), Path.mkdir),
    (
      "a leftover temporary folder",
      step.with_name("40.orbax-checkpoint-tmp-7"),
      Path.mkdir,
    ),
    ("the state of another step", step / "state", _another_step),
    ("a renamed older step", step, _renamed),
  ]
  for number, (name, path, damage) in enumerate(scene.chosen(cases)):
    folder = scene.folder / f"{number}"
    shutil.copytree(unbroken, folder)
    for page in ("summary.json", "summary.md", "curves.png"):
      (folder / page).unlink()
    damage(folder / path)
    done = scene.program.run(scene.program.flags("bert", folder))
    failure = ended_alike(done, unbroken, folder)
    # Some files only say what others do, and may be missing.
    noticed = "damaged checkpoint" in done.stdout
    said = "said so" if noticed else "not needed"
    yield Outcome(f"{name}: {said}", failure)


def _by_kind(files: list[Path], newest: Path) -> dict[str, Path]:
  """The largest file of each kind; names of data files are random."""
  kinds: dict[str, Path] = {}
  for path in sorted(files, key=lambda path: path.stat().st_size):
    parts = path.relative_to(newest).parts
    if parts[-2:-1] == ("d",):
      parts = (*parts[:-1], "data")
    kinds["/".join(parts)] = path
  return kinds


def _truncate(path: Path) -> None:
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _zero(path: Path) -> None:
  path.write_bytes(bytes(path.stat().st_size))


def _flip(path: Path) -> None:
  """Changes one bit in the middle."""
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 4
  path.write_bytes(content)


def _another_step(state: Path) -> None:
  shutil.rmtree(state)
  shutil.copytree(state.parent.with_name("20") / "state", state)


def _renamed(step: Path) -> None:
  shutil.rmtree(step)
  shutil.copytree(step.with_name("20"), step)


WAYS: dict[str, Damage] = {
  "truncated": _truncate,
  "zeroed": _zero,
  "deleted": Path.unlink,
  "flipped": _flip,
}
