"""Traces of steps: which steps, under which names, and what is refused."""

import gzip
import json
import re
import shutil
import signal

import pytest

from raptr_jax import main
from raptr_jax.training.loop import train
from raptr_jax.training.signals import Stopped, StopRequest
from tests.toy import make_experiment, shared_programs


@pytest.fixture(scope="module", autouse=True)
def programs():
  with shared_programs():
    yield


def traced_steps(model_dir):
  """(name, number) of the steps in the trace of a run, in order."""
  (path,) = model_dir.glob("profile/**/*.trace.json.gz")
  events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
  steps = [
    (event["name"], int(event["args"]["step_num"]))
    for event in events
    if "step_num" in event.get("args", {})
  ]
  return sorted(steps, key=lambda step: step[1])


def train_until(last, experiment, monkeypatch):
  """Trains until a signal stops the run before step `last`."""

  def before(stop, step):
    if step == last:
      stop.signal_number = signal.SIGINT
    return step == last

  with monkeypatch.context() as patch, pytest.raises(Stopped):
    patch.setattr(StopRequest, "before", before)
    train(experiment)


def test_the_trace_has_stage_and_path_length_of_its_steps(tmp_path, capsys):
  train(make_experiment(tmp_path, profile_steps=(3, 5)))
  # Paths of 2, 3 and 4 layers, for 4 steps each.
  expected = [("stage 1, 2 layers", 3), ("stage 2, 3 layers", 4)]
  assert traced_steps(tmp_path) == expected
  assert f"wrote a trace to {tmp_path / 'profile'}" in capsys.readouterr().out


def test_a_run_that_stops_keeps_its_trace_and_resumes_it(tmp_path, monkeypatch):
  experiment = make_experiment(tmp_path, profile_steps=(6, 12))
  train_until(7, experiment, monkeypatch)
  # Step 7 has begun when the run finds that it is to stop.
  assert [number for _, number in traced_steps(tmp_path)] == [6, 7]
  shutil.rmtree(tmp_path / "profile")
  train(experiment)
  assert [number for _, number in traced_steps(tmp_path)] == [*range(7, 12)]


def test_steps_that_are_already_done_are_told(tmp_path, monkeypatch, capsys):
  train_until(5, make_experiment(tmp_path), monkeypatch)
  assert not (tmp_path / "profile").exists()
  train(make_experiment(tmp_path, profile_steps=(2, 5)))
  assert "no trace: the run resumes at step 5" in capsys.readouterr().out
  assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("steps", [(5, 5), (6, 5), (-1, 2), (11, 13)])
def test_steps_that_the_run_does_not_have_are_refused(steps, tmp_path):
  message = rf"profile_steps = {re.escape(str(steps))}, .* TRAIN_STEPS = 12"
  with pytest.raises(ValueError, match=message):
    make_experiment(tmp_path, profile_steps=steps)


@pytest.mark.parametrize("text", ["5", "a:b", "1:2:3", ""])
def test_a_flag_of_another_form_is_refused(text, capsys):
  with pytest.raises(SystemExit) as info:
    main.main([f"--profile_steps={text}"])
  assert info.value.code == 2
  assert f"{text!r}, expected FIRST:END" in capsys.readouterr().err


def test_only_training_is_traced(capsys):
  leaf = "--gin_file=experiments/quickstart_bert_raptr.gin"
  with pytest.raises(SystemExit) as info:
    main.main([leaf, "--gin.MODEL_DIR='x'", "--dry_run", "--profile_steps=1:2"])
  assert info.value.code == 2
  assert "leave out --run_mode=plan" in capsys.readouterr().err
