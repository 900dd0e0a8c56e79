"""A log shows that a job which says nothing is still there."""

import pytest

from raptr_jax.tasks import heartbeat, progress


@pytest.fixture
def now(monkeypatch):
  times = [0.0]
  monkeypatch.setattr(heartbeat.time, "monotonic", lambda: times[0])
  return times


def test_it_speaks_after_one_two_and_four_minutes_of_silence(now):
  said = []
  beats = heartbeat.Heartbeat(said.append)
  for second in range(500):
    beats.beat(float(second))
  assert said == [60.0, 120.0, 240.0, 480.0]


def test_silence_begins_anew_when_something_is_said(now):
  said = []
  beats = heartbeat.Heartbeat(said.append)
  beats.beat(70.0)
  now[0] = 100.0
  beats.heard()
  beats.beat(159.0)
  beats.beat(160.0)
  assert said == [70.0, 60.0]


def test_a_log_says_where_a_job_is(capsys):
  with progress.Progress(24) as shown:
    shown._say_that_it_lives(60.0)
    shown.follow(lambda: 3)
    with shown.activity("compiling"):
      pass
    shown._say_that_it_lives(60.0)  # It trains.
    shown.update(12, "loss 5.95")
    shown.follow(lambda: 14)
    with shown.activity("evaluating"):
      shown._say_that_it_lives(120.0)
    shown._say_that_it_lives(240.0)
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "step  0/24  nothing new for 0:01:00, starting"
  assert lines[1] == "step  3/24  nothing new for 0:01:00"
  assert lines[3] == "step 14/24  nothing new for 0:02:00, evaluating"
  assert lines[4] == "step 14/24  nothing new for 0:04:00"
