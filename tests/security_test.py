"""Files of others are data: see SECURITY.md."""

import ast
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from raptr_jax.tasks import files
from raptr_jax.tasks.prepared import parts, records, state
from tests.object_store import object_store
from tests.small_task import make_task

ROOT = Path(__file__).resolve().parent.parent
PICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal",
            "shelve"}  # fmt: skip
RUNNING = {"eval", "exec", "compile", "__import__"}
SAFE_YAML = {"safe_load", "SafeLoader"}


def unsafe_calls(text: str) -> list[str]:
  """What in a file might run code that it was only to read."""
  found = []
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Import):
      names = {alias.name.partition(".")[0] for alias in node.names}
      found += sorted(names & PICKLING)
    elif isinstance(node, ast.ImportFrom):
      found += sorted({(node.module or "").partition(".")[0]} & PICKLING)
    elif isinstance(node, ast.Call):
      found += _unsafe(node)
  return found


def _unsafe(call: ast.Call) -> list[str]:
  """The call, if it is one of those that must not be."""
  name, owner = ast.unparse(call.func), ""
  if isinstance(call.func, ast.Attribute):
    name, owner = call.func.attr, ast.unparse(call.func.value)
  pickles = any(
    keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
    for keyword in call.keywords
  )
  says_no = any(keyword.arg == "allow_pickle" for keyword in call.keywords)
  if (
    pickles
    or (not owner and name in RUNNING)
    or (owner in ("np", "numpy") and name == "load" and not says_no)
    or (owner == "yaml" and name not in SAFE_YAML)
    or (owner == "torch" and name == "load")
  ):
    return [ast.unparse(call)]
  return []


@pytest.mark.parametrize(
  "text",
  [
    "import pickle",
    "from joblib import load",
    "np.load(file)",
    "np.load(file, allow_pickle=True)",
    "eval(text)",
    "yaml.load(file)",
    "torch.load(file)",
  ],
)
def test_the_search_finds_what_would_run_code(text):
  assert unsafe_calls(text)


def test_nothing_in_the_package_runs_what_it_reads():
  sources = [*(ROOT / "raptr_jax").rglob("*.py"), *(ROOT / "tasks").rglob("*")]
  found = {
    path.relative_to(ROOT): calls
    for path in sources
    if path.suffix == ".py"
    and (calls := unsafe_calls(path.read_text(encoding="utf-8")))
  }
  assert not found


class Maker:
  """Makes a folder when its pickle is loaded."""

  def __init__(self, folder):
    self._folder = folder

  def __reduce__(self):
    return os.mkdir, (str(self._folder),)


def test_pickles_as_these_would_run_code(tmp_path):
  pickle.loads(pickle.dumps(Maker(tmp_path / "marker")))
  assert (tmp_path / "marker").is_dir()


def test_arrays_of_objects_are_refused(tmp_path):
  array = np.array([Maker(tmp_path / "marker")], object)
  np.save(tmp_path / records.UNIGRAM_COUNTS, array, allow_pickle=True)
  np.savez(parts.tally_path(tmp_path, 0), sizes=array, counts=array)
  with pytest.raises(ValueError, match="holds no token counts"):
    records.load_counts(tmp_path / records.UNIGRAM_COUNTS)
  with pytest.raises(OSError, match="is damaged"):
    parts.load_tally(tmp_path, 0)
  assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/x", "a/b", "a\\b"])
def test_a_task_has_no_name_that_leads_elsewhere(name):
  with pytest.raises(ValueError, match="MIXTURE_OR_TASK_NAME="):
    make_task(Path("text"), name=name)


def test_unfinished_work_removes_no_file_elsewhere(tmp_path):
  folder = tmp_path / "data" / "task"
  folder.mkdir(parents=True)
  (tmp_path / "mine.txt").write_text("mine")
  name = "../../mine.txt"
  note = {"settings": {"vocabulary_file": name}, "vocabulary_fingerprint": ""}
  (folder / state.UNFINISHED).write_text(json.dumps(note))
  with pytest.raises(ValueError, match="unfinished.json is damaged"):
    state.discard_unfinished(folder, {"version": 1})
  assert (tmp_path / "mine.txt").read_text() == "mine"


def test_writing_does_not_follow_a_link(tmp_path):
  mine = tmp_path / "mine.txt"
  mine.write_text("mine")
  (tmp_path / f"new.txt.{os.getpid()}.partial").symlink_to(mine)
  files.write_text(tmp_path / "new.txt", "new")
  assert mine.read_text() == "mine"
  assert (tmp_path / "new.txt").read_text() == "new"


def test_objects_are_not_copied_out_of_a_folder(tmp_path, monkeypatch):
  class Store(object_store("s3", tmp_path / "store")):
    def find(self, path, **options):
      return [f"{path}/5/state", f"{path}/5/../../../mine.txt"]

  monkeypatch.setattr(files, "url_to_fs", lambda path: (Store(), "bucket/run"))
  with pytest.raises(ValueError, match="lead out of its folder"):
    files.copy_folder(files.epath.Path("s3://bucket/run"), tmp_path / "copy")
