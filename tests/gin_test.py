"""Every leaf that ships is built and takes steps, at a size for tests."""

import dataclasses
import json
from pathlib import Path

import gin
import jax
import jax.numpy as jnp
import pytest

from raptr_jax import main
from raptr_jax.configuration.configure import gin_folder
from raptr_jax.data.prepared import PreparedDataset
from raptr_jax.data.streaming import StreamingDataset
from raptr_jax.models.bert import BertMaskedLM
from raptr_jax.training import experiment
from raptr_jax.training.loop import train
from tests.toy import SpecDataset, ToyDataset

GIN = gin_folder()
LEAVES = sorted(p.name for p in GIN.glob("experiments/*.gin"))
# What a user of the leaf gives, and what makes it small: sizes alone, so that
# all other parts are those of the leaf. But where there are many programs to
# compile, EXECUTION is "cond", which has one: the leaves with BERT have "gather".
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


def small_ul2(name: str) -> dict[str, str]:
  """The same, for the file of this name, of a model that trains by UL2."""
  config = "decoder.DecoderConfig"
  if "encdec" in name:
    config = "encoder_decoder.EncoderDecoderConfig"
  changes = {
    "AT_END": "()",
    "EXECUTION": "'cond'",
    "TRAIN_STEPS": "10",  # For the stages, each of which has one at least.
    "LOGITS_CHUNK": "32",
    f"{config}.embed_dim": "16",
    f"{config}.num_heads": "2",
    f"{config}.mlp_dim": "8",
  }
  small = SMALL | changes
  del small["bert.BertConfig.embed_dim"]
  return small


# Those that need nothing but what a scale says.
METHODS = sorted(
  {p.name for p in GIN.glob("methods/*.gin")} - {"raptr_by_stack.gin"}
)
SCALES = {
  "bert_tiny.gin": {},
  "bert_small.gin": {"TEXT_DIR": "'books'"},
  "bert_finetune_tiny.gin": {"TEXT_DIR": "'books'"},
  "bert_paper.gin": {"VOCABULARY_PATH": "'vocab.txt'"},
  **{
    f"ul2_{family}_{scale}.gin": flags
    for family in ("decoder", "encdec")
    for scale, flags in {
      "tiny": {},
      "small": {"TEXT_DIR": "'books'"},
      "paper": {
        "VOCABULARY_PATH": "'spiece.model'",
        "GITHUB_DIR": "'github'",
      },
    }.items()
  },
}


def configure(leaf: str, **overrides: str) -> None:
  flags = [f"--gin.{name}={value}" for name, value in overrides.items()]
  main.configure([f"--gin_file=experiments/{leaf}", *flags], "")


def test_there_are_leaves_and_gin_is_no_package():
  assert LEAVES
  assert not list(GIN.rglob("__init__.py"))


def build_at_scale(scale: str, method: str, **overrides: str):
  flags = {"MODEL_DIR": "'x'", **SCALES[scale], **overrides}
  argv = [f"--gin_file=tables/{scale}", f"--gin_file=methods/{method}"]
  main.configure(
    [*argv, *(f"--gin.{name}={value}" for name, value in flags.items())], ""
  )
  return gin.get_configurable(experiment.Experiment)()


def test_all_scales_are_listed():
  assert set(SCALES) == {path.name for path in GIN.glob("tables/*.gin")}


def mean_lengths(run):
  """Mean path length of each stack, over the whole run."""
  steps = jnp.arange(run.total_steps)
  return {
    name: float(jax.vmap(policy.keep_probabilities)(steps).sum(axis=1).mean())
    for name, policy in run.policies.items()
  }


@pytest.mark.parametrize(
  ("scale", "method"),
  [
    # One stack, two stacks; at other scales stages alone are others.
    *(("bert_tiny.gin", method) for method in METHODS),
    *(("ul2_encdec_tiny.gin", method) for method in METHODS),
    *(
      (scale, method)
      for scale in sorted({*SCALES} - {"bert_tiny.gin", "ul2_encdec_tiny.gin"})
      for method in ("raptr.gin", "progressive_stacking.gin", "midas.gin")
    ),
  ],
)
def test_a_method_meets_the_flop_factor_at_every_scale(scale, method):
  warmup = {"WARMUP_STEPS": "10", "REWARMUP_STEPS": "10"}
  run = build_at_scale(scale, method, TRAIN_STEPS="2000", **warmup)
  factor = gin.query_parameter("FLOP_FACTOR/macro.value")
  assert factor == pytest.approx(4 / 3 if scale.startswith("bert") else 1.2)
  if method.startswith("dense"):
    factor = 1
    assert run.growth is None
  else:
    assert run.solved_for
  expected = {name: n / factor for name, n in run.model.stacks.items()}
  assert mean_lengths(run) == pytest.approx(expected, rel=1e-3)


def test_stacks_of_other_depths_meet_the_flop_factor():
  run = build_at_scale(
    "ul2_encdec_tiny.gin",
    "raptr_by_stack.gin",
    ENCODER_LAYERS="4",
    DECODER_LAYERS="6",
    ENCODER_PATH_LENGTHS="(2, 3, 4)",
    DECODER_PATH_LENGTHS="(3, 4, 5, 6)",
  )
  assert run.model.stacks == {"encoder": 4, "decoder": 6}
  expected = {"encoder": 4 / 1.2, "decoder": 6 / 1.2}
  assert mean_lengths(run) == pytest.approx(expected, rel=1e-3)
  assert set(run.solved_for) == {
    "encoder, stage exponent",
    "decoder, stage exponent",
  }


@pytest.mark.parametrize("scale", SCALES)
def test_dense_controls_cost_what_the_methods_cost(scale):
  def flops(method):
    run = build_at_scale(scale, method)
    step = run.model.step_flops(run.train_dataset.batch_spec()).step
    return run.total_steps * step(run.model.stacks), step, run

  _, step, full = flops("dense.gin")
  factor = gin.query_parameter("FLOP_FACTOR/macro.value")
  lengths = {name: n / factor for name, n in full.model.stacks.items()}
  cost = full.total_steps * step(lengths)
  fewer, _, fewer_steps = flops("dense_equal_flops.gin")
  shallower, _, shallow = flops("dense_shallower.gin")
  assert fewer == pytest.approx(cost, rel=2e-3)
  assert shallower == pytest.approx(cost)
  assert fewer_steps.total_steps < full.total_steps == shallow.total_steps
  assert shallow.model.stacks == pytest.approx(lengths)
  # The learning rate goes by the run's own length.
  schedule = gin.query_parameter("LEARNING_RATE_SCHEDULE/macro.value").selector
  if schedule.endswith("linear"):
    end = fewer_steps.total_steps
    assert float(fewer_steps.optimizer.learning_rate(end)) == 0.0


@pytest.mark.parametrize(
  ("scale", "method"),
  [
    *(("bert_tiny.gin", method) for method in METHODS),
    ("bert_small.gin", "dense.gin"),
    # The paper's scale, and RaPTr by UL2, train in the leaves.
    ("ul2_decoder_tiny.gin", "gradual_stacking.gin"),
    ("ul2_encdec_tiny.gin", "midas.gin"),
  ],
)
def test_a_method_is_built_and_steps(scale, method, tmp_path):
  small = small_ul2(scale) if scale.startswith("ul2") else SMALL
  small = small | {
    "TRAIN_STEPS": "8",
    "FULL_TRAIN_STEPS": "8",
    "MODEL_DIR": f"'{tmp_path}'",
    "REWARMUP_STEPS": "0",
    # One program, and its layers in a loop: it compiles in the least time.
    "EXECUTION": "'cond'",
    "REMAT": "'full'",
  }
  run = build_at_scale(scale, method, **small)
  summary = train_on_toy_data(run)
  assert summary["steps"] == 8
  assert summary["solved_for"] == run.solved_for


def train_on_toy_data(run):
  if isinstance(run.model, BertMaskedLM):
    data = [ToyDataset(), ToyDataset(seed=1)]
  else:
    data = [SpecDataset(run.train_dataset, 32, seed) for seed in (0, 1)]
  return train(
    dataclasses.replace(
      run, train_dataset=data[0], eval_dataset=data[1], num_eval_batches=1
    )
  )


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_is_built_and_steps(leaf, tmp_path):
  small = SMALL
  if "ul2" in leaf or "causal" in leaf:
    names = ("inputs", "targets") if "encdec" in leaf else ("tokens",)
    lengths = {"TASK_FEATURE_LENGTHS": str(dict.fromkeys(names, 16))}
    small = small_ul2(leaf) | lengths
  if "1_6b" in leaf:
    small |= {"GITHUB_DIR": "'github'"}
  configure(leaf, MODEL_DIR=f"'{tmp_path}'", **small)
  run = gin.get_configurable(experiment.Experiment)()
  spec = run.train_dataset.batch_spec()
  assert spec["tokens"].shape[0] == 8
  summary = train_on_toy_data(run)
  assert summary["steps"] == run.total_steps
  kinds = set(run.train_dataset.example_kinds)
  assert set(summary["loss_by_example_kind"]) <= kinds
  assert bool(summary["loss_by_example_kind"]) == bool(kinds)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert all(json.loads(line)["loss"] > 0 for line in lines)


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
    "bert_wikipedia_books": [
      "--gin.VOCABULARY_PATH='vocab.txt'",
      "--gin.bert.BertConfig.max_length=512",
    ],
  }[data]
  main.configure(argv, "")
  run = gin.get_configurable(experiment.Experiment)()
  train_data, eval_data = run.train_dataset, run.eval_dataset
  kind = {"prepared": PreparedDataset, "streaming": StreamingDataset}[way]
  assert isinstance(train_data, kind)
  assert isinstance(eval_data, kind)
  assert (train_data.split, eval_data.split) == ("train", "validation")
  assert (train_data.seed, eval_data.seed) == (5, 0)
  assert eval_data.data_dir == train_data.data_dir == "here"
  assert eval_data.task.name == train_data.task.name == data


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
  config = model.config
  assert model.stacks == {"stack": layers}
  assert (config.embed_dim, config.num_heads) == (width, heads)


@pytest.mark.parametrize(
  "schedule",
  [
    "linear",
    "constant",
    "constant_then_decay",
    "warmup_stable_decay",
    "cosine",
    "inverse_square_root",
  ],
)
def test_every_learning_rate_can_be_selected(schedule):
  configure(
    "quickstart_bert_raptr.gin",
    MODEL_DIR="'x'",
    LEARNING_RATE_SCHEDULE=f"@learning_rates.{schedule}()",
  )
  run = gin.get_configurable(experiment.Experiment)()
  assert float(run.optimizer.learning_rate(200)) > 0


@pytest.mark.parametrize(
  "method", ["raptr.gin", "gradual_stacking.gin", "late_expansion.gin"]
)
def test_a_rate_can_decay_in_the_last_stage_of_any_staged_method(method):
  rate = {"LEARNING_RATE_SCHEDULE": "@learning_rates.constant_then_decay()"}
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
    scale = "--gin_file=tables/bert_tiny.gin"
    main.configure([scale, *files, "--gin.MODEL_DIR='x'"], "")
    run = gin.get_configurable(experiment.Experiment)()
    return {name: vars(run)[name] for name in ("policy", "growth", "optimizer")}

  def described(parts):
    policy, growth = parts["policy"], parts["growth"]
    steps = jnp.asarray([0, 100, 200, 400])
    return (
      jax.vmap(policy.keep_probabilities)(steps).tolist(),
      (policy.sampler, policy.scaling, policy.boundaries, policy.solved_for),
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
  assert (dense.policy.keep_probabilities(0) == 1).all()
  assert float(raptr.policy.keep_probabilities(0).sum()) == pytest.approx(6)
  names = (path.name for path in Path(GIN / "methods").iterdir())
  assert {"raptr.gin", "dense.gin"} <= set(names)
