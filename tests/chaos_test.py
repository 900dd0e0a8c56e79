"""A few trials of each suite of scripts/chaos.py, with the real program."""

import random

import pytest

import chaos
from chaos_suites.program import Program
from chaos_suites.scene import Scene

# The suites "data" and "term" start many programs for each trial, and "soak" two
# at a time, which the eight devices of the tests are too many for.
TRIALS = {
  "kill": 1,
  "corrupt": 2,
  "align": 2,
  "nan": 1,
  "disk": 2,
  "input": 3,
  "hostile": 2,
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
  """One program for all suites: its text and compiled programs are shared."""
  return Program(tmp_path_factory.mktemp("program"))


@pytest.mark.parametrize("suite", TRIALS)
def test_a_suite_holds(suite, program, tmp_path):
  scene = Scene(program, tmp_path, TRIALS[suite], random.Random(suite))
  outcomes = list(chaos.outcomes(suite, scene))
  assert len(outcomes) == TRIALS[suite]
  assert [outcome for outcome in outcomes if outcome.failure] == []
