"""Files of others: none runs code, and none leads out of its folder.

Each case plants what somebody might have put into a checkpoint, into records
or into a configuration: pickles that would make a folder when they are loaded,
and names that lead elsewhere. gin files are left out, since they are code.
"""

import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from chaos_suites.case import Case, gin
from chaos_suites.ground import Ground, contents
from chaos_suites.scene import Outcome, Scene

TASK = Path("data/bert_text")
MARKER = "marker"  # The folder that a pickle makes.
VICTIM = "victim.txt"
OUT = f"../../{VICTIM}"  # Seen from the folder of the task.


class Maker:
  """Makes a folder when its pickle is loaded."""

  def __init__(self, folder: Path):
    self._folder = folder

  def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
    return os.mkdir, (str(self._folder),)


def outcomes(scene: Scene) -> Iterator[Outcome]:
  """What became of each case; of a random choice if not all are wanted."""
  ground = Ground(scene.program, scene.folder)
  for case in scene.chosen(CASES):
    yield Outcome(case.name, failure(ground, case))


def failure(ground: Ground, case: Case) -> str:
  """What did not hold in a case; "" if everything did."""
  here = ground.arranged(case)
  (here / VICTIM).write_text("mine")
  before = _around(here)
  try:
    ended = ground.run(case, here)
  except subprocess.TimeoutExpired:
    return "hangs"
  if (here / MARKER).exists():
    return "ran code"
  changed = before.items() ^ _around(here).items()
  if changed:
    return f"left its folder: {sorted({name for name, _ in changed})}"
  lines = ended.stderr.splitlines()
  if ended.returncode == 0:
    return "took it for its own"
  missing = [w for w in case.words_in(here) if w not in ended.stderr]
  if missing:
    return f"lacks {missing}: {' / '.join(lines[-2:])}"
  shutil.rmtree(here)
  return ""


def _around(here: Path) -> dict[str, str]:
  """What is in the folder of a case besides those of the run and the data."""
  own = ("run/", "data/")
  return {n: v for n, v in contents(here).items() if not n.startswith(own)}


def _pickle(here: Path) -> bytes:
  return pickle.dumps(Maker(here / MARKER))


def _pickles(*patterns: str) -> Callable[[Path], None]:
  """Puts a pickle in place of all files that match."""

  def arrange(here: Path) -> None:
    found = [path for pattern in patterns for path in here.glob(pattern)]
    files = [path for path in found if path.is_file()]
    assert files, patterns
    for path in files:
      path.write_bytes(_pickle(here))
    (here / "run" / "summary.json").unlink(missing_ok=True)

  return arrange


def _metrics(here: Path) -> None:
  """Pickles as metrics, above a last line, which may be cut off."""
  (here / "run" / "summary.json").unlink()
  (here / "run" / "metrics.jsonl").write_bytes(_pickle(here) + b"\n{")


def _object_counts(here: Path) -> None:
  """Token counts as an array of objects, which NumPy would unpickle."""
  array = np.array([Maker(here / MARKER)], object)
  np.save(here / TASK / "unigram_counts.npy", array, allow_pickle=True)


def _object_tally(here: Path) -> None:
  """Counts of a part likewise, of a preparation that was interrupted."""
  array = np.array([Maker(here / MARKER)], object)
  (here / TASK / "metadata.json").unlink()
  np.savez(here / TASK / "part-00000.npz", sizes=array, counts=array)


def _metadata(change: Callable[[dict[str, Any]], object]) -> Any:
  """Changes metadata.json."""

  def arrange(here: Path) -> None:
    path = here / TASK / "metadata.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))

  return arrange


def _unfinished(here: Path) -> None:
  """A note of unfinished work, whose vocabulary is a file elsewhere."""
  (here / TASK / "metadata.json").unlink()
  note = {"settings": {"vocabulary_file": OUT}, "vocabulary_fingerprint": ""}
  (here / TASK / "unfinished.json").write_text(json.dumps(note))


def _linked_lock(here: Path) -> None:
  """The lock of a preparation as a link to a file elsewhere."""
  (here / TASK / "metadata.json").unlink()
  (here / "data" / ".bert_text.lock").unlink(missing_ok=True)
  (here / "data" / ".bert_text.lock").symlink_to(here / VICTIM)


def _deep(here: Path) -> None:
  (here / TASK / "metadata.json").write_text("[" * 1_000_000)


def _rename(fields: dict[str, Any]) -> None:
  fields["splits"][f"../{VICTIM}"] = fields["splits"].pop("validation")


CHECKPOINT = "run/checkpoints/*/**/*"
CASES = (
  Case("a pickled checkpoint", (), (), _pickles(CHECKPOINT), has_run=True),
  Case(
    "a pickled checkpoint, evaluated",
    ("--run_mode=eval",),
    (),
    _pickles(CHECKPOINT),
    has_run=True,
  ),
  Case(
    "a pickled place in the data",
    (),
    (),
    _pickles("run/checkpoints/*/progress/**/*"),
    has_run=True,
  ),
  Case("pickled metrics", (), ("metrics.jsonl:1",), _metrics, has_run=True),
  Case(
    "pickled shards",
    (),
    ("train-00000", "damaged"),
    _pickles(f"{TASK}/*.array_record"),
    has_data=True,
  ),
  Case(
    "a pickled vocabulary",
    (),
    ("vocabulary.model",),
    _pickles(f"{TASK}/vocabulary.model"),
    has_data=True,
  ),
  Case(
    "a pickled vocabulary that is given",
    gin("VOCABULARY_PATH='HERE/data/bert_text/vocabulary.model'")
    + gin("DATA_DIR='HERE/data/new'"),
    ("vocabulary.model", "VOCABULARY_PATH"),
    _pickles(f"{TASK}/vocabulary.model"),
    has_data=True,
  ),
  Case(
    "pickled metadata",
    (),
    ("metadata.json",),
    _pickles(f"{TASK}/metadata.json"),
    has_data=True,
  ),
  Case(
    "counts of objects",
    (),
    ("unigram_counts.npy",),
    _object_counts,
    has_data=True,
  ),
  Case(
    "a tally of objects", (), ("part-00000.npz",), _object_tally, has_data=True
  ),
  Case("metadata without end", (), ("metadata.json",), _deep, has_data=True),
  Case(
    "a vocabulary elsewhere",
    (),
    (OUT, "metadata.json"),
    _metadata(lambda fields: fields["settings"].update(vocabulary_file=OUT)),
    has_data=True,
  ),
  Case(
    "unfinished work elsewhere",
    (),
    (OUT, "unfinished"),
    _unfinished,
    has_data=True,
  ),
  Case(
    "a split elsewhere", (), ("validation",), _metadata(_rename), has_data=True
  ),
  Case(
    "a billion shards",
    (),
    ("train-00001", "--run_mode=prepare"),
    _metadata(lambda fields: fields["splits"]["train"].update(shards=10**9)),
    has_run=True,
  ),
  Case("a lock elsewhere", (), (), _linked_lock, has_data=True),
  Case(
    "a task elsewhere",
    gin("MIXTURE_OR_TASK_NAME='../elsewhere'"),
    ("../elsewhere", "MIXTURE_OR_TASK_NAME"),
  ),
  Case(
    "a task from the root",
    gin("MIXTURE_OR_TASK_NAME='HERE/elsewhere'"),
    ("HERE/elsewhere", "MIXTURE_OR_TASK_NAME"),
  ),
  Case(
    "a task that is the folder",
    gin("MIXTURE_OR_TASK_NAME='..'"),
    ("'..'", "MIXTURE_OR_TASK_NAME"),
  ),
)
