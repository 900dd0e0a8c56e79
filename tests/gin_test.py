"""Every leaf that ships is built and takes steps, at a size for tests."""

import dataclasses
import json
from pathlib import Path

import gin
import jax
import jax.numpy as jnp
import pytest

from raptr_jax import experiment, main
from raptr_jax.data import PreparedDataset, StreamingDataset
from raptr_jax.train import train
from tests.toy import ToyDataset

GIN = main.gin_folder()
LEAVES = sorted(p.name for p in GIN.glob("experiments/*.gin"))
# What a user of the leaf gives, and what makes it small: sizes alone, so that
# all other parts are those of the leaf.
SMALL = {
  "TRAIN_STEPS": "4",
  "BATCH_SIZE": "8",
  "WARMUP_STEPS": "1",
  "EVAL_PERIOD": "2",
  "CHECKPOINT_PERIOD": "4",
  "VOCABULARY_SIZE": "32",
  "VOCABULARY_PATH": "'vocab.txt'",
  "bert.BertConfig.embed_dim": "24",
}


METHODS = sorted(p.name for p in GIN.glob("methods/*.gin"))
SCALES = {
  "bert_tiny.gin": {},
  "bert_small.gin": {"TEXT_DIR": "'books'"},
  "bert_paper.gin": {"VOCABULARY_PATH": "'vocab.txt'"},
}


def configure(leaf: str, **overrides: str) -> None:
  flags = [f"--gin.{name}={value}" for name, value in overrides.items()]
  main.configure([f"--gin_file=experiments/{leaf}", *flags], "")


def test_there_are_leaves_and_gin_is_no_package():
  assert LEAVES
  assert not list(GIN.rglob("__init__.py"))


def build_at_scale(scale: str, method: str, **overrides: str):
  flags = {"MODEL_DIR": "'x'", **SCALES[scale], **overrides}
  argv = [f"--gin_file=scales/{scale}", f"--gin_file=methods/{method}"]
  main.configure(
    [*argv, *(f"--gin.{name}={value}" for name, value in flags.items())], ""
  )
  return gin.get_configurable(experiment.Experiment)()


def test_all_scales_are_listed():
  assert set(SCALES) == {path.name for path in GIN.glob("scales/*.gin")}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_meets_the_flop_factor_at_every_scale(scale, method):
  warmup = {"WARMUP_STEPS": "10", "REWARMUP_STEPS": "10"}
  run = build_at_scale(scale, method, TRAIN_STEPS="2000", **warmup)
  steps = jnp.arange(0, 2000)
  lengths = jax.vmap(run.policy.inclusion)(steps).sum(axis=1)
  if method.startswith("dense"):
    assert (lengths == run.model.num_layers).all()
    assert run.growth is None
  else:
    assert 12 / lengths.mean() == pytest.approx(4 / 3, rel=1e-3)
    assert run.policy.solved


@pytest.mark.parametrize("scale", SCALES)
def test_dense_controls_cost_what_the_methods_cost(scale):
  def flops(method):
    run = build_at_scale(scale, method)
    step = run.model.step_flops(run.train_dataset.batch_spec()).step
    lengths = run.model.num_layers
    if method == "raptr.gin":
      lengths = 9
    return run.total_steps * step(lengths), run

  cost, raptr = flops("raptr.gin")
  fewer, fewer_steps = flops("dense_equal_flops.gin")
  shallower, shallow = flops("dense_shallower.gin")
  assert fewer == pytest.approx(cost, rel=2e-3)
  assert shallower == pytest.approx(cost)
  assert fewer_steps.total_steps < raptr.total_steps == shallow.total_steps
  assert shallow.model.num_layers == 9
  # The learning rate ends with the run.
  end = fewer_steps.total_steps
  assert float(fewer_steps.optimizer.learning_rate(end)) == 0.0


@pytest.mark.parametrize(
  ("scale", "method"),
  [
    *(("bert_tiny.gin", method) for method in METHODS),
    *((scale, "raptr.gin") for scale in SCALES if scale != "bert_tiny.gin"),
  ],
)
def test_a_method_is_built_and_steps(scale, method, tmp_path):
  small = SMALL | {
    "TRAIN_STEPS": "8",
    "FULL_TRAIN_STEPS": "8",
    "MODEL_DIR": f"'{tmp_path}'",
    "REWARMUP_STEPS": "0",
  }
  run = build_at_scale(scale, method, **small)
  summary = train_on_toy_data(run)
  assert summary["steps"] == 8
  assert summary["solved"] == dict(run.policy.solved)


def train_on_toy_data(run):
  return train(
    dataclasses.replace(
      run,
      train_dataset=ToyDataset(),
      eval_dataset=ToyDataset(seed=1),
      num_eval_batches=1,
    )
  )


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_is_built_and_steps(leaf, tmp_path):
  configure(leaf, MODEL_DIR=f"'{tmp_path}'", **SMALL)
  run = gin.get_configurable(experiment.Experiment)()
  spec = run.train_dataset.batch_spec()
  assert spec["tokens"].shape[0] == 8
  summary = train_on_toy_data(run)
  assert summary["steps"] == 4
  rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert all(json.loads(row)["loss"] > 0 for row in rows)


@pytest.mark.parametrize("leaf", LEAVES)
def test_the_header_of_a_leaf_tells_its_command(leaf):
  header = (GIN / "experiments" / leaf).read_text().split("from __gin__")[0]
  assert f"--gin_file=experiments/{leaf}" in header


@pytest.mark.parametrize("path", sorted(GIN.rglob("*.gin")), ids=str)
def test_required_macros_are_named_in_the_header(path):
  text = path.read_text()
  header = text.split("from __gin__")[0]
  for line in text.splitlines():
    if line.endswith("= %gin.REQUIRED"):
      assert line.split()[0] in header


@pytest.mark.parametrize("way", ["prepared", "streaming"])
@pytest.mark.parametrize(
  "data", ["bert_kjv", "bert_text", "bert_wikipedia_books"]
)
def test_held_out_text_is_evaluated_on_the_same_rows_in_every_run(data, way):
  argv = [
    "--gin_file=experiments/quickstart_bert_raptr.gin",
    f"--gin_file=data/{data}.gin",
    *(["--gin_file=data/streaming.gin"] if way == "streaming" else []),
    "--gin.MODEL_DIR='x'",
    "--gin.RANDOM_SEED=5",
    "--gin.DATA_DIR='here'",
  ]
  argv += {
    "bert_kjv": [],
    "bert_text": ["--gin.TEXT_DIR='books'"],
    "bert_wikipedia_books": ["--gin.VOCABULARY_PATH='vocab.txt'"],
  }[data]
  main.configure(argv, "")
  run = gin.get_configurable(experiment.Experiment)()
  train_data, eval_data = run.train_dataset, run.eval_dataset
  kind = {"prepared": PreparedDataset, "streaming": StreamingDataset}[way]
  assert isinstance(train_data, kind)
  assert isinstance(eval_data, kind)
  assert (train_data._split, eval_data._split) == ("train", "validation")
  assert (train_data._order.seed, eval_data._order.seed) == (5, 0)
  assert eval_data._folder == train_data._folder == Path("here") / data


@pytest.mark.parametrize(
  ("size", "layers", "width", "heads"),
  [
    ("tiny", 2, 128, 2),
    ("mini", 4, 256, 4),
    ("small", 4, 512, 8),
    ("medium", 8, 512, 8),
    ("base", 12, 768, 12),
    ("large", 24, 1024, 16),
  ],
)
def test_models_have_the_published_sizes(size, layers, width, heads):
  argv = [
    "--gin_file=experiments/quickstart_bert_dense.gin",
    f"--gin_file=models/bert_{size}.gin",
    "--gin.MODEL_DIR='x'",
  ]
  main.configure(argv, "")
  model = gin.get_configurable(experiment.Experiment)().model
  sizes = (model.num_layers, model.config.embed_dim, model.config.num_heads)
  assert sizes == (layers, width, heads)


@pytest.mark.parametrize(
  "schedule",
  ["linear", "constant", "constant_then_decay", "warmup_stable_decay"],
)
def test_every_learning_rate_can_be_selected(schedule):
  configure(
    "quickstart_bert_raptr.gin",
    MODEL_DIR="'x'",
    LEARNING_RATE_SCHEDULE=f"@optim.{schedule}()",
  )
  run = gin.get_configurable(experiment.Experiment)()
  assert float(run.optimizer.learning_rate(200)) > 0


@pytest.mark.parametrize(
  "method", ["raptr.gin", "gradual_stacking.gin", "late_expansion.gin"]
)
def test_a_rate_can_decay_in_the_last_stage_of_any_staged_method(method):
  rate = {"LEARNING_RATE_SCHEDULE": "@optim.constant_then_decay()"}
  run = build_at_scale("bert_tiny.gin", method, **rate)
  peak, last = run.total_steps // 2, run.policy.boundaries[-1]
  expected = float(run.optimizer.learning_rate(min(peak, last - 1)))
  assert expected == pytest.approx(4e-3)
  assert float(run.optimizer.learning_rate(run.total_steps)) == 0.0


@pytest.mark.parametrize("second", sorted({*METHODS} - {"stacking.gin"}))
def test_no_method_leaves_anything_for_the_next_one(second):
  """But for the dense controls, whose headers say so."""

  def config(*methods):
    files = (f"--gin_file=methods/{method}" for method in methods)
    scale = "--gin_file=scales/bert_tiny.gin"
    main.configure([scale, *files, "--gin.MODEL_DIR='x'"], "")
    run = gin.get_configurable(experiment.Experiment)()
    return {name: vars(run)[name] for name in ("policy", "growth", "optimizer")}

  def described(parts):
    policy, growth = parts["policy"], parts["growth"]
    steps = jnp.asarray([0, 100, 200, 400])
    return (
      jax.vmap(policy.inclusion)(steps).tolist(),
      (policy.sampler, policy.scaling, policy.boundaries, policy.solved),
      growth and (growth.new_layers, growth.optimizer_state),
      [float(parts["optimizer"].learning_rate(step)) for step in steps],
    )

  alone = described(config(second))
  for first in ("raptr.gin", "midas.gin", "late_expansion.gin"):
    assert described(config(first, second)) == alone
    assert "freeze_skipped = True" not in gin.config_str()


def test_raptr_and_its_dense_twin_differ_in_the_method_alone(tmp_path):
  def build(leaf):
    configure(leaf, MODEL_DIR=f"'{tmp_path}'", VOCABULARY_PATH="'vocab.txt'")
    return gin.get_configurable(experiment.Experiment)()

  raptr = build("pretrain_bert_base_raptr.gin")
  dense = build("pretrain_bert_base_dense.gin")
  assert raptr.model == dense.model
  assert raptr.total_steps == dense.total_steps
  assert (dense.policy.inclusion(0) == 1).all()
  assert float(raptr.policy.inclusion(0).sum()) == pytest.approx(6)
  names = (path.name for path in Path(GIN / "methods").iterdir())
  assert {"raptr.gin", "dense.gin"} <= set(names)
