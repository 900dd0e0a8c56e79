"""What a fork costs: one file and its gin file, from outside of the package.

The method, the architecture and the objective are those that `raptr new`
writes; a downstream task and a table are in `fixtures/fork/`. Each is reached
by `--gin_search_paths` and an importable folder; not a line of the package
knows it. `scaffold_test.py` also trains with what is written.
"""

import json
import re
import sys
from pathlib import Path

import gin
import numpy as np
import pytest

from raptr_jax import main
from raptr_jax.scaffold import new
from raptr_jax.training.plan import make_plan
from tests.small_task import write_corpus

ROOT = Path(__file__).resolve().parent.parent
FORK = ROOT / "tests" / "fixtures" / "fork"
LEAF = "experiments/quickstart_bert_raptr.gin"
WRITTEN = {"triangle": "method", "averaging": "model", "one_token": "task"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with a small corpus, and the files that `raptr new` writes."""
  folder = tmp_path_factory.mktemp("fork")
  write_corpus(folder / "books", 60)
  for name, kind in WRITTEN.items():
    new.main([kind, name, f"--folder={folder}"])
  yield folder
  for name in WRITTEN:
    sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def importable(monkeypatch, folder):
  monkeypatch.syspath_prepend(str(FORK))
  monkeypatch.syspath_prepend(str(folder))


def arguments(folder, *gin_files, name, **overrides):
  """Three steps of a small run on the corpus."""
  bindings = {
    "TEXT_DIR": f"'{folder / 'books'}'",
    "DATA_DIR": f"'{folder / 'data'}'",
    "MODEL_DIR": f"'{folder / name}'",
    "VOCABULARY_SIZE": 600,
    "TASK_FEATURE_LENGTHS": "{'inputs': 32}",
    "NUM_LAYERS": 4,
    "PATH_LENGTHS": (2, 4),
    "TRAIN_STEPS": 3,
    "WARMUP_STEPS": 1,
    "BATCH_SIZE": 8,
    "EVAL_BATCHES": 1,
    "bert.BertConfig.embed_dim": 16,
    **overrides,
  }
  return [
    f"--gin_search_paths={folder}",
    *(f"--gin_file={f}" for f in (LEAF, "data/bert_text.gin", *gin_files)),
    *(f"--gin.{name}={value}" for name, value in bindings.items()),
  ]


def test_contributing_shows_the_method_that_is_written(folder):
  text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
  (shown,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
  assert (folder / "triangle.py").read_text("utf-8").endswith(shown)


def test_a_method(folder):
  main.configure(arguments(folder, "triangle.gin", name="method"))
  run = gin.get_configurable("experiment.Experiment")()
  expected = [
    [1, 1, 0, 0],
    [1, 1, 2 / 3, 0],
    [1, 1, 1, 1 / 3],
  ]
  planned = [run.policy.keep_probabilities(step) for step in range(3)]
  np.testing.assert_allclose(planned, expected, rtol=1e-6)
  plan = make_plan(run)
  assert plan.expected_layers["stack"] == pytest.approx(8)
  assert plan.flop_factor_nominal == pytest.approx(12 / 8)


def test_an_architecture(folder):
  width = {"averaging.Averaging.embed_dim": 16}
  main.main(arguments(folder, "averaging.gin", name="architecture", **width))
  model_dir = folder / "architecture"
  summary = json.loads((model_dir / "summary.json").read_text("utf-8"))
  assert np.isfinite(summary["final_eval_loss"])
  # Embedding 600 x 16, a norm; per layer a norm and an MLP of 16 x 64.
  layer = 2 * 16 + 2 * 16 * 64 + 64 + 16
  assert summary["parameters"] == 600 * 16 + 2 * 16 + 4 * layer
  # All methods, both executions and the evaluation by path length come free.
  assert {"2", "3", "4"} <= {
    str(entry["layers"]) for entry in evaluations(model_dir)
  }


def evaluations(model_dir):
  lines = (model_dir / "metrics.jsonl").read_text("utf-8").splitlines()
  entries = map(json.loads, lines)
  return [entry for entry in entries if entry["split"] == "eval"]


def test_an_objective(folder):
  main.prepare_main(arguments(folder, "one_token.gin", name="objective"))
  dataset = gin.get_configurable("eval/prepared.PreparedDataset")()
  batch = next(dataset.batches(0))
  hidden = np.take_along_axis(batch["tokens"], batch["target_positions"], 1)
  assert (hidden == 4).all()  # [MASK]
  assert ((batch["tokens"] == 4).sum(axis=1) == 1).all()


def test_a_downstream_task():
  from raptr_jax.inference.answers import answer, scores_and_errors
  from raptr_jax.tasks.downstream.registry import select_tasks

  (task,) = select_tasks(["capitals"])
  examples = task.examples_from_folder(str(FORK), "validation")
  assert [example.prompt for example in examples] == [
    "The capital of France is",
    "The capital of Egypt is",
    "The capital of Chile is",
  ]

  class Reader:
    """Finds longer continuations likelier."""

    def score(self, prompts, continuations, *, watch):
      watch(len(prompts))
      return np.array([float(len(text)) for text in continuations])

  prompts = [example.prompt for example in examples]
  scores, _ = scores_and_errors(answer(Reader(), task, examples, prompts))
  assert scores["accuracy"] == pytest.approx(200 / 3)


def test_a_table_and_its_rows(folder, tmp_path, capsys):
  import reproduce

  flags = ["--table", "own_table.TABLE", "--scale", "tiny"]
  flags += [
    f"--gin_search_paths={folder}",
    "--runs",
    str(tmp_path / "runs"),
    "--results",
    str(tmp_path),
  ]
  reproduce.main([*flags, "--dry_run"])
  plan = capsys.readouterr().out
  assert "| triangle | 500 | 1.333x |" in plan
  assert f"--gin_file=triangle.gin --gin_search_paths={folder}" in plan
  reproduce.main([*flags, "--report_only"])
  assert "| triangle | " in (tmp_path / "own_table_tiny.md").read_text("utf-8")
  assert (tmp_path / "own_table_tiny.png").exists()
