import json
import math
import re
import shutil

import gin
import pytest

from raptr_jax import main
from tests.small_task import write_corpus

LEAF = "--gin_file=experiments/quickstart_bert_raptr.gin"


def configure(*argv):
  return main.configure([LEAF, *argv], "")


def error_of(*argv) -> str:
  with pytest.raises(main.ConfigurationError) as info:
    configure(*argv)
  return str(info.value)


def test_a_macro_of_the_command_line_overrides_the_file():
  configure("--gin.MODEL_DIR='x'", "--gin.TRAIN_STEPS=77")
  assert gin.query_parameter("TRAIN_STEPS/macro.value") == 77


def test_parameters_can_be_overridden_by_their_name():
  configure("--gin.MODEL_DIR='x'", "--gin.optim.adamw.b2=0.98")
  assert gin.query_parameter("raptr_jax.training.optim.adamw.b2") == 0.98


def test_later_files_override_earlier_ones(tmp_path):
  (tmp_path / "mine.gin").write_text("TRAIN_STEPS = 5\n")
  configure(
    f"--gin_search_paths={tmp_path}",
    "--gin_file=mine.gin",
    "--gin.MODEL_DIR='x'",
  )
  assert gin.query_parameter("TRAIN_STEPS/macro.value") == 5


def test_folders_named_like_gin_files_do_not_matter(tmp_path, monkeypatch):
  for name in ("runs", "data", "models", "experiments"):
    (tmp_path / name).mkdir()
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  configure("--gin.MODEL_DIR='x'")


def test_a_macro_that_files_only_use_can_be_given():
  files = ("models/bert", "methods/raptr", "data/bert_kjv", "runs/pretrain")
  given = ("MODEL_DIR='x'", "NUM_LAYERS=4", "PATH_LENGTHS=(2, 4)")
  main.configure(
    [
      *(f"--gin_file={name}.gin" for name in files),
      *(f"--gin.{binding}" for binding in given),
      "--gin.TRAIN_STEPS=20000",
    ],
    "",
  )
  assert gin.query_parameter("NUM_LAYERS/macro.value") == 4


def test_parameters_of_a_task_can_be_overridden():
  configure("--gin.MODEL_DIR='x'", "--gin.masked_lm.MaskedLM.mask_rate=0.2")
  assert gin.query_parameter("masked_lm.MaskedLM.mask_rate") == 0.2


def test_modules_that_share_a_name_go_by_their_full_names(tmp_path):
  (tmp_path / "mine.gin").write_text(
    "from __gin__ import dynamic_registration\n"
    "from raptr_jax.tasks.downstream import sources\n"
  )
  name = "raptr_jax.tasks.text.sources.TextFolder.validation_every"
  configure(
    f"--gin_search_paths={tmp_path}",
    "--gin_file=mine.gin",
    "--gin.MODEL_DIR='x'",
    f"--gin.{name}=3",
  )
  assert gin.query_parameter(name) == 3


def test_an_unset_required_macro_is_named_with_its_flag():
  assert "MODEL_DIR must be set" in error_of()
  assert "--gin.MODEL_DIR=..." in error_of()


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--gin.TRAIN_STEP=3", "did you mean TRAIN_STEPS?"),
    ("--gin.XYZ=3", "no gin file has a macro of this name"),
    ("--gin.MODEL_DIR=runs/x", "a string needs quotes of its own"),
    ("--gin.optim.adamw.beta=1", "beta"),
    ("--gin.policies.raptor.x=1", "raptor"),
    ("--gin.polices.raptr.x=1", "polices"),
    ("--gin.TRAIN_STEPS", "expected --gin.NAME=VALUE"),
    ("--gin_file=nowhere.gin", "nowhere.gin"),
  ],
)
def test_mistakes_get_one_clear_error(argument, message):
  assert message in error_of("--gin.MODEL_DIR='x'", argument)


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--gin.EXECUTION='fast'", "EXECUTION = 'fast', expected one of"),
    ("--gin.CHECKPOINT_PERIOD=0", "checkpoint.Checkpointer.period = 0"),
    ("--gin.RANDOM_SEED='x'", ""),
  ],
)
def test_an_error_ends_the_program_without_a_traceback(
  argument, message, tmp_path
):
  with pytest.raises(SystemExit) as info:
    main.main([LEAF, f"--gin.MODEL_DIR='{tmp_path}'", argument])
  text = str(info.value)
  assert text.startswith(f"error: {message}")
  assert "\n" not in text


def test_data_that_is_not_prepared_says_how_to_prepare_it(tmp_path):
  argv = [LEAF, f"--gin.MODEL_DIR='{tmp_path}'", f"--gin.DATA_DIR='{tmp_path}'"]
  with pytest.raises(SystemExit, match=r"scripts/prepare\.py"):
    main.main(argv)
  assert not list(tmp_path.iterdir())


SMALL = [
  "--gin.bert.BertConfig.embed_dim=16",
  "--gin.NUM_LAYERS=4",
  "--gin.PATH_LENGTHS=(2, 4)",
  "--gin.VOCABULARY_SIZE=600",
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 32}",
  "--gin.BATCH_SIZE=8",
  "--gin.TRAIN_STEPS=6",
  "--gin.WARMUP_STEPS=1",
  "--gin.EVAL_PERIOD=3",
  "--gin.CHECKPOINT_PERIOD=3",
  "--gin.RANDOM_SEED=1",
  "--gin.MIXTURE_OR_TASK_NAME='words'",
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """Arguments of a small run on a folder of text, prepared, without a folder."""
  folder = tmp_path_factory.mktemp("prepared")
  text = write_corpus(folder / "text")
  argv = [
    LEAF,
    "--gin_file=data/bert_text.gin",
    f"--gin.TEXT_DIR='{text}'",
    f"--gin.DATA_DIR='{folder / 'data'}'",
    *SMALL,
  ]
  main.prepare_main([*argv, "--gin.MODEL_DIR='x'"])
  return argv


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
  """The folder of this run."""
  run = tmp_path_factory.mktemp("trained") / "run"
  main.main([*prepared, f"--gin.MODEL_DIR='{run}'"])
  return run


@pytest.fixture
def copy(trained, tmp_path):
  """A copy of the folder that a test may change."""
  return shutil.copytree(trained, tmp_path / "run")


def test_from_a_folder_of_text_to_a_summary(prepared, trained, capsys):
  run = trained
  for name in ("config.gin", "metrics.jsonl", "summary.json", "summary.md",
               "curves.png", "checkpoints", "tensorboard"):  # fmt: skip
    assert (run / name).exists(), name
  summary = json.loads((run / "summary.json").read_text())
  assert summary["steps"] == 6
  assert summary["unigram_loss"] > 0
  assert "TRAIN_STEPS = 6" in (run / "config.gin").read_text()

  again = [f"--gin.MODEL_DIR='{run}'", "--gin.EVAL_PERIOD=1"]
  main.main([*prepared, *again])
  assert "complete" in capsys.readouterr().out
  assert "EVAL_PERIOD = 3" in (run / "config.gin").read_text()


def test_a_changed_configuration_is_told(prepared, copy, capsys):
  (copy / "summary.json").unlink()  # As if it had been killed.
  changed = [a.replace("EVAL_PERIOD=3", "EVAL_PERIOD=2") for a in prepared]
  main.main([*changed, f"--gin.MODEL_DIR='{copy}'"])
  out = capsys.readouterr().out
  assert "-EVAL_PERIOD = 3" in out
  assert "+EVAL_PERIOD = 2" in out


def test_a_dry_run_prints_the_plan_and_writes_nothing(
  prepared, tmp_path, capsys
):
  run = f"--gin.MODEL_DIR='{tmp_path / 'run'}'"
  main.main([*prepared, run, "--dry_run"])
  out = capsys.readouterr().out
  for text in ("parameters", "FLOPs of a dense step", "1.333 nominal",
               "epochs", "tokens", "MiB temporary", "path length"):  # fmt: skip
    assert text in out
  assert not (tmp_path / "run").exists()


def test_a_dry_run_prints_the_solved_number_and_both_factors(
  capsys, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)  # Where no data is prepared.
  main.main(
    [
      "--gin_file=experiments/quickstart_bert_raptr.gin",
      "--gin_file=methods/progressive_layer_dropping.gin",
      "--gin.MODEL_DIR='x'",
      "--gin.FLOP_FACTOR=1.25",
      "--gin.bert.BertConfig.embed_dim=16",
      "--gin.VOCABULARY_SIZE=32",
      "--gin.EXECUTION='cond'",  # One program to compile.
      "--dry_run",
    ]
  )
  out = capsys.readouterr().out
  # 1 - 6 (1 - 1/1.25) / (3.5 (1 - mean fall)); the fall's mean over 640 steps
  # is 1 / (640 (1 - exp(-100/640))).
  fall = 1 / (640 * (1 - math.exp(-100 / 640)))
  theta_bar = 1 - 1.2 / (3.5 * (1 - fall))
  assert f"theta_bar = {theta_bar:.4g}" in out
  assert "1.250 nominal" in out
  # Embeddings of 32 tokens, 128 positions and 2 types with a norm; layers of
  # attention, MLP and two norms; norm, head's map, its norm, and its bias.
  layer = 4 * (16 * 16 + 16) + 2 * 16 * 64 + 64 + 16 + 2 * 32
  count = 16 * (32 + 128 + 2) + 32 + 6 * layer + 32 + 16 * 16 + 16 + 32 + 32
  assert re.search(rf"parameters +{count:,}\n", out)
  assert re.search(r"embeddings and head too +1\.\d{3}", out)
