"""The table of fine-tuned models: what it runs, and its page."""

import json
import re
import shlex
from pathlib import Path

import pytest

from fine_tuning import finetune_pages
from fine_tuning.finetune_runs import SCRATCH, TASKS, FineTuningTable
from raptr_jax import main

ROOT = Path(__file__).resolve().parent.parent
FLAGS = (
  "--gin.TEXT_DIR='books'",
  "--gin.FINE_TUNING_DIR='glue'",
  "--gin.MINIMAL_PAIRS='blimp'",
)
VERSIONS = {
  "date": "2026-01-01",
  "hardware": "cpu",
  "versions": {"jax": "1"},
}


@pytest.fixture
def table(tmp_path):
  return FineTuningTable.of("tiny", tmp_path / "runs", FLAGS, seeds=2)


def test_each_run_can_be_configured(table):
  for run in table.pretraining().values():
    run.configure()
  parts = list(table.parts())
  assert len(parts) == 12 == len({part.folder for part in parts})
  for part in parts:
    main.configure(part.arguments())


def test_rows_differ_in_what_they_start_from(table):
  parts = {(part.task, part.row): part for part in table.parts()}
  dense, fresh = parts["cola", "dense"], parts["cola", SCRATCH]
  assert dense.run == fresh.run
  assert "--gin.FROM_SCRATCH=True" in fresh.arguments()
  assert "--gin.FROM_SCRATCH=False" in dense.arguments()
  assert parts["rte", "raptr"].run.row.gin_files == ("methods/raptr.gin",)


def test_the_files_of_tasks_are_needed(tmp_path):
  with pytest.raises(ValueError, match="FINE_TUNING_DIR"):
    FineTuningTable.of("tiny", tmp_path, FLAGS[:1], seeds=1)


def leave(part, scores):
  """Leaves the results of a fine-tuning in its folder."""
  part.folder.mkdir(parents=True)
  trials = [
    {"seed": seed, "scores": {"validation": {"score": score}}}
    for seed, score in enumerate(scores)
  ]
  found = {
    "task": part.task,
    "seeds": trials,
    "baseline": {"score": 50.0},
    "train_examples": 4_000,
    **VERSIONS,
  }
  (part.folder / "results.json").write_text(json.dumps(found), "utf-8")


def test_the_page_shows_means_and_differences_by_seed(table, tmp_path):
  values = {"dense": (60.0, 70.0), "raptr": (63.0, 73.0), SCRATCH: (50.0, 50.0)}
  for part in table.parts():
    if part.task == "cola" and part.row in values:
      leave(part, values[part.row])
  place = finetune_pages.report(table, tmp_path / "results", "python x")
  page = place.page.read_text(encoding="utf-8")
  assert "| dense, full FLOPs | 65.0 ± 7.1 | – | – |" in page
  assert "| RaPTr 6-8-10-12 | +3.0 (+3.0 to +3.0) | – | – |" in page
  assert "| gradual stacking | – | – | – |" in page
  assert "| commonest label | 50.0 | – | – |" in page
  assert "Training examples: 4,000 of cola." in page
  assert page.count("runs/fine_tune.gin") == 4 * len(TASKS)


def test_the_committed_page_shows_the_commands_of_its_runs():
  text = (ROOT / "results" / "bert_finetune_tiny.md").read_text("utf-8")
  command = re.search(r"^python scripts/reproduce.py (.*)$", text, re.M)[1]
  flags = [word for word in shlex.split(command) if word.startswith("--gin.")]
  table = FineTuningTable.of("tiny", Path("runs/reproduce"), tuple(flags), 5)
  runs = table.pretraining().values()
  expected = [x.command() for x in (*runs, *table.parts())]
  found = re.findall(r"^python -m raptr_jax.main .*$", text, re.M)
  assert found == expected


def test_fewer_seeds_than_wanted_are_not_enough(table):
  part = next(table.parts())
  leave(part, (60.0,))
  assert part.results() is None
