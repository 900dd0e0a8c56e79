import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from raptr_jax.methods import path_buckets, policies
from raptr_jax.methods.growth import GrowthPlan, grow
from raptr_jax.methods.schedule import stage_schedule
from raptr_jax.models.bert import BertMaskedLM
from raptr_jax.training import loop, optim, setup
from raptr_jax.training.checkpoint import Checkpointer
from raptr_jax.training.compiled_steps import CompiledSteps
from raptr_jax.training.held_out import held_out_evaluator
from raptr_jax.training.loop import train
from raptr_jax.training.partitioning import Partitioner
from raptr_jax.training.plan import make_plan
from raptr_jax.training.signals import Stopped
from tests.toy import (
  LAYERS,
  VOCAB,
  ToyDataset,
  make_experiment,
  make_model,
  shared_programs,
)

TIMES = ("tokens_per_second", "step_seconds", "mfu")


@pytest.fixture(scope="module", autouse=True)
def programs():
  with shared_programs():
    yield


def entries(model_dir, split=None):
  lines = (model_dir / "metrics.jsonl").read_text().splitlines()
  parsed = [json.loads(line) for line in lines]
  for entry in parsed:
    for name in TIMES:
      entry.pop(name, None)
  return [entry for entry in parsed if split in (None, entry["split"])]


def final_params(experiment):
  with experiment.checkpointer.open(experiment.model_dir) as checkpoints:
    state, _ = checkpoints.restore(setup.abstract_state(experiment))
  return jax.device_get(state.params)


def assert_it_ends_like(unbroken, experiment):
  """Trains to the end: parameters and training entries are those bits."""
  train(experiment)
  jax.tree.map(
    np.testing.assert_array_equal,
    final_params(experiment),
    final_params(unbroken),
  )
  model_dirs = (Path(experiment.model_dir), Path(unbroken.model_dir))
  got, expected = (entries(model_dir, "train") for model_dir in model_dirs)
  assert got == expected


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  experiment = make_experiment(tmp_path_factory.mktemp("unbroken"))
  train(experiment)
  return experiment


class Killed(Exception):
  """Stands for a process that dies without a word."""


class DyingDataset(ToyDataset):
  def __init__(self, dies_at, **kwargs):
    super().__init__(**kwargs)
    self.dies_at = dies_at

  def batches(self, start):
    for number, batch in enumerate(super().batches(start), start):
      if number == self.dies_at:
        raise Killed
      yield batch


# Stages begin at 4 and 8, checkpoints are at 5 and 10, entries at even steps.
@pytest.mark.parametrize("dies_at", [3, 5, 6, 9, 11])
def test_killed_and_started_again_it_ends_in_the_same_bits(
  tmp_path, unbroken, dies_at
):
  dying = make_experiment(tmp_path, train_dataset=DyingDataset(dies_at))
  with pytest.raises(Killed):
    train(dying)
  assert_it_ends_like(unbroken, make_experiment(tmp_path))
  assert entries(tmp_path, "eval") == entries(Path(unbroken.model_dir), "eval")


def test_time_lost_by_a_kill_is_told(tmp_path, unbroken):
  with pytest.raises(Killed):
    train(make_experiment(tmp_path, train_dataset=DyingDataset(9)))
  before = json.loads((tmp_path / "seconds.json").read_text())
  seconds = train(make_experiment(tmp_path))["seconds"]
  assert seconds["repeated steps"] > 0
  assert seconds["steps"] + seconds["repeated steps"] > before["steps"]
  assert seconds["starting up"] > before["starting up"] > 0
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert summary["goodput"] == seconds["steps"] / sum(seconds.values())
  page = (tmp_path / "summary.md").read_text()
  assert "## Where the time went" in page
  assert "| repeated steps | 0 h" in page
  whole = json.loads((Path(unbroken.model_dir) / "summary.json").read_text())
  assert "repeated steps" not in whole["seconds"]


class PaddedDataset(ToyDataset):
  """Of each row of batch n, only the first n % 3 + 2 positions hold text."""

  def _batch(self, number):
    batch = super()._batch(number)
    text = batch["positions"] < number % 3 + 2
    return batch | {"segment_ids": text.astype(np.int32)}


def test_padding_is_not_counted_as_tokens(tmp_path):
  class Dying(DyingDataset, PaddedDataset):
    pass

  with pytest.raises(Killed):
    train(make_experiment(tmp_path, train_dataset=Dying(6)))
  train(make_experiment(tmp_path, train_dataset=PaddedDataset()))
  found = entries(tmp_path, "train")
  # Two steps of 8 rows of 8 positions each: 2 + 3, 4 + 2, 3 + 4, ...
  steps = [8 * tokens for tokens in (5, 6, 7, 5, 6, 7)]
  assert [r["tokens"] for r in found] == list(np.cumsum(steps))
  assert [r["padding"] for r in found] == pytest.approx(
    [1 - tokens / (2 * 8 * 8) for tokens in steps]
  )
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert summary["tokens"] == sum(steps) == 288
  assert summary["padding"] == pytest.approx(1 - 288 / (12 * 8 * 8))


class PlacedDataset(ToyDataset):
  """A stream: only its place, seven times the batch's number, says where."""

  def __init__(self, dies_at=None):
    super().__init__()
    self.dies_at = dies_at

  def batches(self, start):
    assert start == 0
    return PlacedBatches(self, 0)

  def resume(self, start, places):
    (place,) = places
    assert place.tolist() == [[7 * start]]
    return PlacedBatches(self, place[0, 0] // 7)


class PlacedBatches:
  def __init__(self, dataset, number):
    self.dataset, self.number = dataset, number

  def __iter__(self):
    return self

  def __next__(self):
    if self.number == self.dataset.dies_at:
      raise Killed
    self.number += 1
    return self.dataset._batch(self.number - 1)

  def get_state(self):
    return np.array([[7 * self.number]])


@pytest.mark.parametrize("dies_at", [4, 11])
def test_a_stream_goes_on_from_its_place(tmp_path, unbroken, dies_at):
  dying = make_experiment(tmp_path, train_dataset=PlacedDataset(dies_at))
  with pytest.raises(Killed):
    train(dying)
  again = make_experiment(tmp_path, train_dataset=PlacedDataset())
  assert_it_ends_like(unbroken, again)


def test_paths_that_share_programs_train_alike(tmp_path, monkeypatch):
  policy = policies.constant(num_layers=LAYERS, path_length=3)
  alone = make_experiment(tmp_path / "alone", policy=policy)
  train(alone)
  assert num_programs(alone) == 3
  monkeypatch.setattr(path_buckets, "MOST_PROGRAMS", 2)
  shared = make_experiment(tmp_path / "shared", policy=policy)
  train(shared)
  assert num_programs(shared) == 2
  losses, expected = (
    [(entry["loss"], entry["grad_norm"]) for entry in entries(folder, "train")]
    for folder in (tmp_path / "shared", tmp_path / "alone")
  )
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  dying = make_experiment(
    tmp_path / "killed", policy=policy, train_dataset=DyingDataset(8)
  )
  with pytest.raises(Killed):
    train(dying)
  killed = make_experiment(tmp_path / "killed", policy=policy)
  assert_it_ends_like(shared, killed)


def num_programs(experiment) -> int:
  return len(make_plan(experiment).draws.first_steps(0))


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_a_new_start_goes_on(
  tmp_path, unbroken, signal_number
):
  class Signalling(ToyDataset):
    def batches(self, start):
      for number, batch in enumerate(super().batches(start), start):
        if number == 6:
          os.kill(os.getpid(), signal_number)
        yield batch

  stopped = make_experiment(tmp_path, train_dataset=Signalling())
  with pytest.raises(Stopped, match="after step 7") as info:
    train(stopped)
  assert (info.value.step, info.value.signal_number) == (7, signal_number)
  assert not (tmp_path / "summary.json").exists()
  with stopped.checkpointer.open(tmp_path) as checkpoints:
    assert checkpoints.latest_step() == 7
  assert_it_ends_like(unbroken, make_experiment(tmp_path))


def test_a_thread_trains_without_signals(tmp_path):
  experiment = make_experiment(tmp_path, total_steps=3)
  with ThreadPoolExecutor() as pool:
    assert pool.submit(train, experiment).result()["steps"] == 3


def test_another_model_in_the_folder_is_told_and_left(unbroken):
  wider = make_experiment(
    unbroken.model_dir, total_steps=13, model=make_model(embed_dim=24)
  )
  with pytest.raises(
    FileExistsError, match="another run: the parts of the model"
  ):
    train(wider)
  assert json.loads((Path(unbroken.model_dir) / "summary.json").read_text())


def test_a_model_with_fewer_ids_than_the_text_is_refused(tmp_path):
  model = make_model(vocab_size=VOCAB - 1)
  with pytest.raises(ValueError, match=f"{VOCAB} token ids, but the model"):
    train(make_experiment(tmp_path, model=model))


def test_a_run_goes_on_only_as_the_same_run(tmp_path, capsys):
  experiment = make_experiment(tmp_path, total_steps=3)
  before = "COMPILATION_CACHE_DIR = 'a'\nLEARNING_RATE = 1\n"
  train(experiment, before)
  rows = (tmp_path / "metrics.jsonl").read_bytes()
  with pytest.raises(
    FileExistsError, match="LEARNING_RATE = 1 there, 2 here.*accept_changes"
  ):
    train(experiment, before.replace("1", "2"))
  capsys.readouterr()
  train(experiment, before.replace("'a'", "'b'"))  # Changes no step.
  out = capsys.readouterr().out
  assert "no effect; set another MODEL_DIR" in out
  assert "+COMPILATION_CACHE_DIR = 'b'" in out
  assert (tmp_path / "config.gin").read_text() == before
  assert (tmp_path / "metrics.jsonl").read_bytes() == rows


@pytest.mark.parametrize(
  ("changed", "told"),
  [
    ({"random_seed": 1}, "RANDOM_SEED = 0 there, 1 here"),
    ({"policy": policies.full(num_layers=LAYERS)}, "the layers drawn"),
    ({"train_dataset": ToyDataset(batch_size=16)}, "BATCH_SIZE = 8 there, 16"),
    ({"model": make_model(num_heads=1)}, "the parts of the model"),
  ],
)
def test_what_has_changed_is_named_without_a_configuration(
  unbroken, tmp_path, changed, told
):
  shutil.copytree(unbroken.model_dir, tmp_path / "run")
  before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
  with pytest.raises(FileExistsError, match=told):
    train(make_experiment(tmp_path / "run", **changed))
  assert before == {
    p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()
  }


def test_a_changed_run_goes_on_in_parts(unbroken, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(unbroken.model_dir, folder)
  shutil.rmtree(folder / "checkpoints" / "12")
  (folder / "summary.json").unlink()
  changed = make_experiment(
    folder, policy=policies.full(num_layers=LAYERS), random_seed=5
  )
  summary = train(changed, accept_changes=True)
  first, second = summary["parts"]
  assert (first["random_seed"], second["random_seed"]) == (0, 5)
  start = second["first_step"]
  assert (first["steps"], second["steps"]) == (start, 12 - start)
  assert any("RANDOM_SEED" in change for change in second["changes"])
  # Of each part the FLOPs of its own draws.
  assert second["flops"]["layers"] == second["flops"]["dense_layers"]
  assert first["flops"]["layers"] < first["flops"]["dense_layers"]
  last = entries(folder, "train")[-1]
  assert summary["flops_spent"] == pytest.approx(last["flops"])
  assert summary["flops_spent"] == pytest.approx(
    first["flops"]["spent"] + second["flops"]["spent"]
  )


def make_stacking(model_dir, **overrides):
  """Gradual stacking 2-3-4 in place of RaPTr 2-3-4."""
  schedule = stage_schedule(
    path_lengths=(2, 3, 4), total_steps=12, num_layers=LAYERS
  )
  method = dict(
    policy=policies.stacked(schedule=schedule),
    growth=GrowthPlan(schedule, "last"),
  )
  return make_experiment(model_dir, **method | overrides)


@pytest.fixture(scope="module")
def unbroken_stacking(tmp_path_factory):
  experiment = make_stacking(tmp_path_factory.mktemp("stacking"))
  train(experiment)
  return experiment


# The model grows before steps 4 and 8, where checkpoints are, too.
@pytest.mark.parametrize(
  ("dies_at", "period"), [(3, 4), (4, 4), (5, 3), (8, 4), (9, 3)]
)
def test_a_stacked_run_goes_on_across_a_growth_in_the_same_bits(
  tmp_path, unbroken_stacking, dies_at, period
):
  checkpointer = Checkpointer(period=period)
  dying = make_stacking(
    tmp_path, checkpointer=checkpointer, train_dataset=DyingDataset(dies_at)
  )
  with pytest.raises(Killed):
    train(dying)
  assert_it_ends_like(
    unbroken_stacking, make_stacking(tmp_path, checkpointer=checkpointer)
  )
  expected = entries(Path(unbroken_stacking.model_dir), "eval")
  assert entries(tmp_path, "eval") == expected


def test_reset_optimizer_state_goes_on_across_a_growth_as_well(tmp_path):
  def make(folder, **overrides):
    experiment = make_stacking(tmp_path / folder, **overrides)
    growth = GrowthPlan(experiment.growth.schedule, "middle", "reset")
    return dataclasses.replace(experiment, growth=growth)

  unbroken = make("unbroken")
  train(unbroken)
  dying = make("dying", train_dataset=DyingDataset(6))
  with pytest.raises(Killed):
    train(dying)
  assert_it_ends_like(unbroken, make("dying"))


def test_a_growing_run_goes_on_on_other_meshes(tmp_path, unbroken_stacking):
  one, other = Partitioner(fsdp=4, tensor=2), Partitioner()
  # It grows on each of them, and loads what the other has saved.
  for partitioner, dies_at in ((one, 6), (other, 10)):
    dying = make_stacking(
      tmp_path,
      partitioner=partitioner,
      checkpointer=Checkpointer(period=4),
      train_dataset=DyingDataset(dies_at),
    )
    with pytest.raises(Killed):
      train(dying)
  train(make_stacking(tmp_path, partitioner=one))
  expected = entries(Path(unbroken_stacking.model_dir), "eval")
  for got, entry in zip(entries(tmp_path, "eval"), expected, strict=True):
    assert got["loss"] == pytest.approx(entry["loss"], rel=1e-5)


def test_a_growing_model_is_evaluated_as_it_is(unbroken_stacking, tmp_path):
  evals = entries(Path(unbroken_stacking.model_dir), "eval")
  named = [(r["step"], r["layers"]) for r in evals]
  assert [n for n in named if isinstance(n[1], str)] == [
    (4, "full"), (4, "grown"), (5, "full"), (8, "full"), (8, "grown"),
    (9, "full"), (10, "full"), (12, "full"),
  ]  # fmt: skip
  # Training stops where the model is about to grow: its checkpoint has two
  # layers, and evaluated with two it has the loss of that entry.
  stopped = make_stacking(tmp_path, checkpointer=Checkpointer(period=4))
  dying = dataclasses.replace(stopped, train_dataset=DyingDataset(4))
  with pytest.raises(Killed):
    train(dying)
  evaluator = held_out_evaluator(stopped)
  params = final_params(stopped)
  losses = {e["layers"]: e["loss"] for e in evals if e["step"] == 4}
  full = evaluator.full(params, {"stack": 2})["loss"]
  assert full == pytest.approx(losses["full"], rel=1e-6)
  source, reset = np.asarray([0, 1, 1, 3]), np.zeros(4, bool)
  grown, _ = grow(params, {}, {"stack": source}, {"stack": reset})
  assert evaluator.full(grown, {"stack": 3})["loss"] == pytest.approx(
    losses["grown"], rel=1e-6
  )


def test_cond_and_gather_train_alike(tmp_path, unbroken):
  train(make_experiment(tmp_path, execution="cond"))
  model_dir = Path(unbroken.model_dir)
  for cond, gather in zip(
    entries(tmp_path, "train"), entries(model_dir, "train"), strict=True
  ):
    assert cond.pop("split") == gather.pop("split")
    assert cond == pytest.approx(gather, rel=1e-4)


def test_the_full_model_is_evaluated_around_every_boundary(unbroken, tmp_path):
  model_dir = Path(unbroken.model_dir)
  full = [
    r["step"] for r in entries(model_dir, "eval") if r["layers"] == "full"
  ]
  assert full == [4, 5, 8, 9, 10, 12]
  lengths = [r["layers"] for r in entries(model_dir, "eval") if r["step"] == 12]
  assert lengths == ["full", 2, 3, 4]
  last = {r["layers"]: r["loss"] for r in entries(model_dir, "eval")}
  assert last[4] == pytest.approx(last["full"], rel=1e-6)


def test_entries_account_for_what_was_run(unbroken, tmp_path):
  model_dir = Path(unbroken.model_dir)
  train_entries = entries(model_dir, "train")
  assert [r["step"] for r in train_entries] == [2, 4, 6, 8, 10, 12]
  assert [r["stage"] for r in train_entries] == [1, 1, 2, 2, 3, 3]
  assert [r["path_length"] for r in train_entries] == [2, 2, 3, 3, 4, 4]
  flops = np.diff([0, *(r["flops"] for r in train_entries)])
  per_length = {length: flops[2 * i] for i, length in enumerate((2, 3, 4))}
  np.testing.assert_allclose(
    per_length[4] - per_length[3], per_length[3] - per_length[2]
  )
  assert train_entries[-1]["tokens"] == 12 * 8 * 8
  rate = unbroken.optimizer.learning_rate
  assert [r["learning_rate"] for r in train_entries] == pytest.approx(
    [float(rate(r["step"] - 1)) for r in train_entries]
  )
  summary = json.loads((model_dir / "summary.json").read_text())
  assert summary["flop_factor_nominal"] == pytest.approx(4 / 3)
  assert summary["flop_factor_spent"] == pytest.approx(4 / 3)
  assert summary["flops_spent"] == pytest.approx(train_entries[-1]["flops"])
  assert summary["unigram_loss"] == pytest.approx(np.log(32))
  assert (model_dir / "curves.png").exists()
  assert (model_dir / "summary.md").exists()


def test_a_complete_run_is_left_alone(unbroken, tmp_path, capsys):
  model_dir = Path(unbroken.model_dir)
  before = (model_dir / "metrics.jsonl").read_bytes()
  summary = train(unbroken)
  assert "complete" in capsys.readouterr().out
  assert (model_dir / "metrics.jsonl").read_bytes() == before
  assert summary == json.loads((model_dir / "summary.json").read_text())


@pytest.mark.parametrize("left", [None, '{"steps": 1', "[]"])
def test_a_run_that_lost_its_summary_writes_it_again(tmp_path, unbroken, left):
  shutil.copytree(unbroken.model_dir, tmp_path, dirs_exist_ok=True)
  before = entries(tmp_path)
  (tmp_path / "summary.json").unlink()
  if left is not None:
    (tmp_path / "summary.json").write_text(left)
  train(make_experiment(tmp_path))
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert summary["steps"] == 12
  assert entries(tmp_path) == before


def test_the_summary_of_fewer_steps_does_not_make_it_complete(tmp_path):
  constant = dict(
    policy=policies.full(num_layers=LAYERS),
    optimizer=optim.adamw(learning_rate=lambda step: 1e-2),
  )
  train(make_experiment(tmp_path, total_steps=4, **constant))
  shutil.copytree(tmp_path, tmp_path / "short", ignore=lambda *_: ["short"])
  train(make_experiment(tmp_path, total_steps=6, **constant))
  for name in ("summary.json", "summary.md", "curves.png"):
    # As if it had been killed between its last checkpoint and its summary.
    shutil.copy(tmp_path / "short" / name, tmp_path / name)
  longer = make_experiment(tmp_path, total_steps=6, **constant)
  assert train(longer)["steps"] == 6


def test_it_learns(tmp_path):
  summary = train(
    make_experiment(
      tmp_path,
      total_steps=60,
      eval_period=60,
      checkpointer=Checkpointer(period=60),
      execution="cond",  # One program.
    )
  )
  assert summary["final_eval_loss"] < summary["unigram_loss"] - 0.3


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(tmp_path):
  class Broken(ToyDataset):
    def _batch(self, number):
      batch = super()._batch(number)
      if number >= 3:
        batch["target_weights"][:] = np.nan
      return batch

  experiment = make_experiment(
    tmp_path, train_dataset=Broken(), max_skipped_steps=2
  )
  with pytest.raises(FloatingPointError, match="2 steps in a row.*LEARNING_RA"):
    train(experiment)
  with Checkpointer(period=5).open(tmp_path) as checkpoints:
    assert checkpoints.latest_step() is None


@jax.custom_vjp
def finite_with_a_gradient_of_nan(x):
  return x


finite_with_a_gradient_of_nan.defvjp(
  lambda x: (x, None), lambda _, gradient: (gradient * np.nan,)
)


def test_a_gradient_that_is_not_finite_is_not_saved_either(tmp_path):
  @dataclasses.dataclass(frozen=True)
  class Diverging(BertMaskedLM):
    def loss_fn(self, params, batch, draws, dropout_key):
      loss, metrics = super().loss_fn(params, batch, draws, dropout_key)
      return finite_with_a_gradient_of_nan(loss), metrics

  checkpointer = Checkpointer(period=1)
  experiment = make_experiment(
    tmp_path,
    model=Diverging(make_model().config),
    checkpointer=checkpointer,
    max_skipped_steps=1,
    execution="cond",  # One program.
  )
  with pytest.raises(FloatingPointError, match="1 steps in a row"):
    train(experiment)
  with checkpointer.open(tmp_path) as checkpoints:
    assert checkpoints.latest_step() is None


def test_killed_while_it_saves_it_still_resumes(tmp_path, unbroken):
  program = f"""
import os, sys
from raptr_jax.training.loop import train
from tests.toy import ToyDataset, make_experiment

class Dying(ToyDataset):
  def batches(self, start):
    for number, batch in enumerate(super().batches(start), start):
      if number == 5:  # The checkpoint of step 5 has just been begun.
        os._exit(9)
      yield batch

train(make_experiment({str(tmp_path)!r}, train_dataset=Dying()))
"""
  root = Path(__file__).resolve().parent.parent
  result = subprocess.run([sys.executable, "-c", program], cwd=root)
  assert result.returncode == 9
  assert_it_ends_like(unbroken, make_experiment(tmp_path))


def test_paths_and_dropout_are_the_same_on_other_numbers_of_devices(
  tmp_path, unbroken
):
  program = f"""
from raptr_jax.training.loop import train
from tests.toy import ToyDataset, make_experiment

class Dying(ToyDataset):
  def batches(self, start):
    for number, batch in enumerate(super().batches(start), start):
      if number == 6:
        raise SystemExit(9)
      yield batch

train(make_experiment({str(tmp_path)!r}, train_dataset=Dying()))
"""
  root = Path(__file__).resolve().parent.parent
  flags = os.environ["XLA_FLAGS"].replace("count=8", "count=2")
  result = subprocess.run(
    [sys.executable, "-c", program],
    cwd=root,
    env=os.environ | {"XLA_FLAGS": flags},
  )
  assert result.returncode == 9
  train(make_experiment(tmp_path))  # Goes on with eight devices.
  expected = entries(Path(unbroken.model_dir), "train")
  for got, entry in zip(entries(tmp_path, "train"), expected, strict=True):
    assert got["path_length"] == entry["path_length"]
    assert got["loss"] == pytest.approx(entry["loss"], rel=1e-5)


def test_a_folder_that_is_further_than_the_run_is_an_error(unbroken):
  before = entries(Path(unbroken.model_dir))
  with pytest.raises(FileExistsError, match=r"step 12, past TRAIN_STEPS = 9"):
    train(make_experiment(unbroken.model_dir, total_steps=9))
  assert entries(Path(unbroken.model_dir)) == before


def test_steps_run_under_a_transfer_guard(tmp_path, monkeypatch):
  levels = []

  class Program:
    def __init__(self, program):
      self.program = program

    def __call__(self, *args):
      levels.append(jax.config.jax_transfer_guard)
      return self.program(*args)

  program = CompiledSteps.program
  monkeypatch.setattr(
    CompiledSteps, "program", lambda *args: Program(program(*args))
  )
  train(make_experiment(tmp_path))
  assert levels == ["disallow"] * 12


def test_an_initial_checkpoint_gives_its_parameters_alone(
  tmp_path, unbroken, monkeypatch
):
  started = {}

  def remember(self, state, start, stopped):
    started["state"], started["step"] = jax.device_get(state), start
    raise Killed

  monkeypatch.setattr(loop._Loop, "run", remember)
  checkpointer = Checkpointer(period=5, initial_checkpoint=unbroken.model_dir)
  with pytest.raises(Killed):
    train(make_experiment(tmp_path, checkpointer=checkpointer))
  jax.tree.map(
    np.testing.assert_array_equal,
    started["state"].params,
    final_params(unbroken),
  )
  assert started["step"] == started["state"].step == 0


def test_the_last_checkpoints_are_kept(tmp_path):
  checkpointer = Checkpointer(period=2, keep=2)
  train(make_experiment(tmp_path, checkpointer=checkpointer))
  kept = {p.name for p in (tmp_path / "checkpoints").iterdir() if p.is_dir()}
  assert kept == {"10", "12"}


class Page:
  """Something that is done with the trained model when a run ends."""

  file_name = "page.md"

  def __init__(self):
    self.seen = []

  def open(self, model):
    self.opened = model

  def __call__(self, model, params, partitioner):
    self.seen.append(jax.device_get(params))
    return "a page"


def test_a_page_at_the_end_is_written_once(tmp_path, unbroken):
  shutil.copytree(unbroken.model_dir, tmp_path / "run")
  page = Page()
  experiment = make_experiment(tmp_path / "run", at_end=(page,))
  experiment.open()
  assert page.opened is experiment.model
  train(experiment)  # The run has ended, but its page is not there.
  assert (tmp_path / "run" / "page.md").read_text() == "a page"
  train(experiment)
  (params,) = page.seen
  jax.tree.map(np.testing.assert_array_equal, params, final_params(unbroken))
