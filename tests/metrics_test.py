import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.reports import run_files
from raptr_jax.training import metrics, recorder
from raptr_jax.training.metrics import IntervalMeter, Stopwatch, unigram_loss


def step_metrics(loss, weight, skipped=False):
  values = {"loss": loss, "accuracy": weight / 2, "weight": weight}
  values |= {"grad_norm": 2.0, "tokens": 9, "spiked": False, "skipped": skipped}
  return {k: jnp.asarray(v) for k, v in values.items()}


def test_means_are_weighted_by_targets_and_steps():
  meter = IntervalMeter({})
  meter.add(step_metrics(6.0, 2.0), 4)
  meter.add(step_metrics(3.0, 7.0), 8)
  assert meter.close() == {
    "loss": 1.0, "accuracy": 0.5, "grad_norm": 2.0, "path_length": 6.0,
    "steps": 2, "tokens": 18.0, "spiked": False, "skipped": 0.0,
  }  # fmt: skip


def test_skipped_steps_are_counted_and_left_out_of_means():
  meter = IntervalMeter({}, skipped_in_a_row=1)
  skipped = step_metrics(0.0, 0.0, skipped=True) | {"grad_norm": jnp.zeros(())}
  meter.add(skipped, 4)
  meter.add(step_metrics(6.0, 2.0), 4)
  meter.add(skipped, 4)
  assert meter.sums()["skipped"] == 2
  assert (meter.most_in_a_row, meter.skipped_in_a_row) == (2, 1)
  found = meter.close()
  assert (found["loss"], found["grad_norm"], found["skipped"]) == (3, 2, 2)
  meter.add(skipped, 4)
  assert np.isnan(meter.close()["loss"])


def test_an_interval_goes_on_from_saved_sums():
  whole, first = IntervalMeter({}), IntervalMeter({})
  values = [(6.1, 2.0), (3.3, 7.0), (1.7, 5.0)]
  for value in values:
    whole.add(step_metrics(*value), 3)
  first.add(step_metrics(*values[0]), 3)
  second = IntervalMeter(first.sums())
  for value in values[1:]:
    second.add(step_metrics(*value), 3)
  assert second.close() == whole.close()


def test_what_a_checkpoint_is_given_does_not_change_any_more():
  meter = IntervalMeter({})
  meter.add(step_metrics(6.0, 2.0), 4)
  saved = meter.sums()
  meter.add(step_metrics(1.0, 1.0), 2)
  meter.sums()
  assert saved["loss"] == 6.0


def test_a_closed_interval_leaves_nothing():
  meter = IntervalMeter({})
  meter.add(step_metrics(6.0, 2.0), 4)
  meter.close()
  meter.add(step_metrics(1.0, 1.0), 2)
  assert meter.close()["path_length"] == 2


def test_a_paused_watch_counts_something_else(monkeypatch):
  now = iter([5.0, 100.0, 103.0, 110.0, 112.0])
  monkeypatch.setattr(metrics.time, "monotonic", lambda: next(now))
  # At 0, after 20 s of an earlier process.
  earlier = {"steps": 20.0, "starting up": 4.0}
  watch = Stopwatch(earlier, 2.0, activity="steps", since=0.0)
  with watch.paused("saving"):  # From 5 to 100.
    pass
  assert watch.lap() == 10.0  # At 103, with 2 s of that process.
  assert watch.lap() == 7.0  # At 110.
  assert watch.read() == {"steps": 37.0, "starting up": 4.0, "saving": 95.0}


def test_a_watch_counts_from_the_start_of_the_program(monkeypatch):
  now = iter([7.0, 9.0])
  monkeypatch.setattr(metrics.time, "monotonic", lambda: next(now))
  watch = Stopwatch({}, 0.0, activity="starting up", since=1.0)
  watch.turn_to("steps")
  assert watch.lap() == 2.0
  assert watch.seconds == {"steps": 2.0, "starting up": 6.0}


@pytest.mark.parametrize(
  ("earlier", "steps", "found"),
  [
    ({}, 0.0, {"steps": 0.0}),
    ({"steps": 9.0, "saving": 1.0}, 9.0, {"steps": 9.0, "saving": 1.0}),
    ({"steps": 9.0}, 5.0, {"steps": 5.0, "repeated steps": 4.0}),
    (
      {"steps": 9.0, "repeated steps": 4.0},
      8.0,
      {"steps": 8.0, "repeated steps": 5.0},
    ),
    # The file is older than the checkpoint.
    (
      {"steps": 7.0, "repeated steps": 4.0},
      8.0,
      {"steps": 8.0, "repeated steps": 4.0},
    ),
  ],
)
def test_steps_after_the_checkpoint_are_repeated(earlier, steps, found):
  assert recorder._seconds(earlier, steps) == found


@pytest.mark.parametrize("left", [None, "", "[]", '{"steps": null}', '{"a'])
def test_lost_seconds_do_not_stop_a_run(tmp_path, left):
  if left is not None:
    (tmp_path / "seconds.json").write_text(left)
  assert run_files.read_seconds(tmp_path) == {}


def test_unigram_loss_by_hand():
  counts = np.asarray([2, 0, 5])  # With one each: 3/10, 1/10, 6/10.
  targets = np.asarray([[0, 2], [1, 1]])
  weights = np.asarray([[1.0, 1.0], [1.0, 0.0]])
  expected = -(np.log(0.3) + np.log(0.6) + np.log(0.1)) / 3
  assert unigram_loss(counts, targets, weights) == pytest.approx(expected)
