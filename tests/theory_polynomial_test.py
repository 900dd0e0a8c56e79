"""Runs are trained once, and the page shows their results."""

import dataclasses
import json
import struct

import pytest

from raptr_jax.theory import polynomial
from tables.evidence import Evidence
from theory import polynomial_pages, polynomial_runs
from theory.polynomial_runs import Sizes, make_methods

SIZES = Sizes(
  num_bits=4, max_degree=2, total_steps=40, warmup_steps=4, eval_period=10
)
SEEDS = (3, 4)
NUM_RUNS = len(polynomial_runs.LEARNING_RATES) - 1 + 5 * len(SEEDS)


@pytest.fixture
def calls(monkeypatch):
  """Replaces training, and collects the steps and seeds it was asked for."""
  calls = []

  def train(model, target, policy, optimizer, *, total_steps, seed, **_):
    """High degrees suffer from short paths, and from rates other than 4e-3."""
    calls.append((total_steps, seed))
    rate = float(optimizer.learning_rate(SIZES.warmup_steps))
    length = float(policy.keep_probabilities(0).sum())
    error = (12 - length) / 10 + abs(rate - 4e-3) + seed / 100
    for step in range(0, total_steps + 1, SIZES.eval_period):
      yield polynomial.Evaluation(step, 10 * step, error, [0.0, error])

  monkeypatch.setattr(polynomial, "train", train)
  return calls


def run(folder, **sizes):
  polynomial_runs.run(
    folder, sizes=dataclasses.replace(SIZES, **sizes), seeds=SEEDS
  )
  return json.loads((folder / polynomial_runs.RESULTS_FILE).read_text())


def test_all_methods_but_dense_have_the_flop_factor():
  sizes = Sizes()
  factors = {
    name: method.nominal_factor(sizes)
    for name, method in make_methods(sizes).items()
  }
  assert factors.pop("dense") == pytest.approx(1)
  assert list(factors.values()) == pytest.approx([4 / 3] * 4, rel=1e-4)


def test_finished_runs_are_kept(tmp_path, calls):
  first = run(tmp_path)
  assert first["learning_rate"] == 4e-3
  assert len(calls) == NUM_RUNS
  assert calls.count((30, 3)) == calls.count((30, 4)) == 1
  assert run(tmp_path) == first
  assert len(calls) == NUM_RUNS
  (tmp_path / "raptr_lr0.004_seed4.json").unlink()
  run(tmp_path)
  assert calls[NUM_RUNS:] == [(40, 4)]


def test_runs_of_other_sizes_are_not_mixed(tmp_path, calls):
  run(tmp_path)
  with pytest.raises(ValueError, match="'width': 32.*delete it"):
    run(tmp_path, width=16)


def test_report_needs_the_results_alone(tmp_path, calls):
  run(tmp_path / "runs")
  for path in (tmp_path / "runs").glob("*seed*"):
    path.unlink()
  polynomial_pages.report(tmp_path / "runs", tmp_path / "results", "make it so")
  page = (tmp_path / "results" / "theory_polynomial.md").read_text()
  assert "make it so" in page
  rows = Evidence.read(tmp_path / "results" / "theory_polynomial.md").rows
  assert rows["raptr"] == (40, 2)
  assert rows["dense_equal_flops"] == (30, 2)
  assert "| 2 | 0.035 ± 0.007 | 0.035 ± 0.007 | 0.635 ± 0.007 |" in page
  assert "| RaPTr | – | 40 | 1.333x | 1.200x |" in page
  assert "RaPTr against dense, degrees 2 to 2: a higher error, +0.600" in page
  head = (tmp_path / "results" / "theory_polynomial.png").read_bytes()[:24]
  width, height = struct.unpack(">II", head[16:])
  assert (width, height) == (13 * 150, round(2.6 * 150))
