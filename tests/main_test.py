import json
import math
import re
import shutil
import signal
import sys

import gin
import jax
import pytest

from raptr_jax import main
from raptr_jax.configuration.errors import sentence
from raptr_jax.configuration.flags import RUN_MODES
from raptr_jax.configuration.resolved import resolved_lines
from raptr_jax.tasks.prepared import prepare
from raptr_jax.training import kept_programs, loop
from raptr_jax.training.signals import Stopped
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
  assert "--gin.MODEL_DIR=\"'...'\"" in error_of()


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--gin.TRAIN_STEP=3", "did you mean TRAIN_STEPS?"),
    ("--gin.XYZ=3", "no gin file has a macro of this name"),
    ("--gin.MODEL_DIR=runs/x", "quotes of their own around a string"),
    ("--gin.MODEL_DIR=5", "MODEL_DIR = 5, expected str"),
    ("--gin.TRAIN_STEPS=1e3", "TRAIN_STEPS = 1000.0, expected int"),
    ("--gin.NUM_LAYERS='x'", "NUM_LAYERS = 'x', expected int (for"),
    ("--gin.FLOP_FACTOR=True", "FLOP_FACTOR = True, expected float | None"),
    ("--gin.PATH_LENGTHS=3", "PATH_LENGTHS = 3, expected Iterable[float]"),
    ("--gin.PATH_LENGTHS=(3,", "expected a literal"),
    ("--gin.PATH_LENGTHS=3,6", 'parentheses: --gin.PATH_LENGTHS="(3,6)"'),
    ("--gin.OPTIMIZER='adamw'", "OPTIMIZER = 'adamw', expected Optimizer (for"),
    ("--gin.POLICY=3", "POLICY = 3, expected Policy"),
    ("--gin.LEARNING_RATE_SCHEDULE='linear'", "LEARNING_RATE_SCHEDULE = 'line"),
    ("--gin.optim.adamw.b2=%beta", "beta must be set: add --gin.beta="),
    ("--gin.optim.adamw.b2=%gin.REQUIRED", "adamw.b2"),
    ("--gin.optim.adamw.b2='x'", "optim.adamw.b2 = 'x', expected float"),
    ("--gin.optim.adamw.beta=1", "beta"),
    ("--gin.policies.raptor.x=1", "raptor"),
    ("--gin.polices.raptr.x=1", "polices"),
    ("--gin.TRAIN_STEPS", "expected --gin.NAME=VALUE"),
    ("--gin_file=nowhere.gin", "nowhere.gin"),
    ("--coordinator=a:1", "without --num_processes and --process_id: set all"),
    ("--process_id=0", "--process_id without --coordinator and --num_proc"),
    ("--join_timeout=0", "--join_timeout=0, expected at least 1 second"),
  ],
)
def test_mistakes_get_one_clear_error(argument, message):
  assert message in error_of("--gin.MODEL_DIR='x'", argument)


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--gin.EXECUTION='fast'", "EXECUTION = 'fast', expected one of"),
    (
      "--gin.CHECKPOINT_PERIOD=0",
      "checkpoint.Checkpointer.period = 0 (CHECKPOINT_PERIOD)",
    ),
    ("--gin.WARMUP_STEPS=900", "linear.warmup_steps = 900, expected 0 to 639"),
    (
      "--gin.PATH_LENGTHS=(3, 9)",
      "schedule.stage_schedule.path_lengths (PATH_",
    ),
    ("--gin.PATH_LENGTHS=(3, 'a')", "PATH_LENGTHS = (3, 'a'), expected Itera"),
  ],
)
def test_an_error_ends_the_program_without_a_traceback(
  argument, message, tmp_path, capsys
):
  text = failure(capsys, f"--gin.MODEL_DIR='{tmp_path}'", argument)
  assert text.startswith(f"error: {message}")
  assert text.count("\n") == 1


def failure(capsys, *argv):
  """What the program prints as it ends with exit code 2."""
  with pytest.raises(SystemExit) as info:
    main.main([LEAF, *argv])
  assert info.value.code == 2
  return capsys.readouterr().err


def test_debug_shows_the_traceback_above_the_line(tmp_path, capsys):
  argv = [f"--gin.MODEL_DIR='{tmp_path}'", "--gin.EXECUTION='fast'"]
  assert "Traceback" not in failure(capsys, *argv)
  traceback, _, line = failure(capsys, *argv, "--debug").rpartition("error: ")
  assert traceback.startswith("Traceback")
  assert line.startswith("EXECUTION = 'fast'")


@pytest.mark.parametrize(
  "error",
  [
    MemoryError("Unable to allocate 1 TiB"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: allocating 9 bytes.\n x"),
    jax.errors.JaxRuntimeError("INTERNAL: Out of memory allocating 9 bytes."),
  ],
)
def test_too_little_memory_names_what_to_change(
  error, tmp_path, monkeypatch, capsys
):
  def fails(profile_steps):
    raise error

  monkeypatch.setattr(main, "_opened", fails)
  text = failure(capsys, f"--gin.MODEL_DIR='{tmp_path}'")
  assert text.startswith("error: out of memory (")
  assert text.count("\n") == 1
  for words in ("allocat", "BATCH_SIZE = 32", "NUM_MICROBATCHES = 1",
                "in place of REMAT = 'none'", "FSDP = 1", "--run_mode=plan",
                "bert.BertConfig.embed_dim = 128"):  # fmt: skip
    assert words in text


def test_other_failures_of_jax_keep_their_traceback(tmp_path, monkeypatch):
  def fails(profile_steps):
    raise jax.errors.JaxRuntimeError("INTERNAL: something else")

  monkeypatch.setattr(main, "_opened", fails)
  with pytest.raises(jax.errors.JaxRuntimeError):
    main.main([LEAF, f"--gin.MODEL_DIR='{tmp_path}'"])


@pytest.mark.parametrize("size", ["BATCH_SIZE", "bert.BertConfig.embed_dim"])
def test_a_run_that_cannot_fit_writes_nothing(
  size, arguments, trained, tmp_path, capsys
):
  argv = [*arguments[1:], f"--gin.MODEL_DIR='{tmp_path / 'run'}'"]
  text = failure(capsys, *argv, f"--gin.{size}=100000000")
  assert "cpu has" in text
  assert f"{size} = 100000000" in text
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("text", "place"),
  [
    ("TRAIN_STEPS = 5\nBATCH_SIZE = (6,\n", "mine.gin, line 3: "),
    ("TRAIN_STEPS = 5\nBATCH_SIZE = = 6\n", "mine.gin, line 2: "),
    ("include 'methods/raptorr.gin'\n", "mine.gin, line 1: "),
    ("import nonsense\n", "mine.gin, line 1: "),
  ],
)
def test_an_error_in_a_file_names_the_file_and_the_line(text, place, tmp_path):
  (tmp_path / "mine.gin").write_text(text)
  argument = f"--gin_file={tmp_path / 'mine.gin'}"
  assert error_of(argument).startswith(f"{tmp_path / place}")


def test_a_refused_folder_is_named_with_its_macro(arguments, capsys):
  argv = [a for a in arguments[1:] if "DATA_DIR" not in a]
  text = failure(
    capsys, *argv, "--gin.DATA_DIR='/proc/data'", "--gin.MODEL_DIR='x'"
  )
  assert "set another --gin.DATA_DIR, which is '/proc/data'" in text


def test_an_error_in_words_of_python_tells_what_was_read():
  configure("--gin.MODEL_DIR='x'")
  error = TypeError(
    "bad operand\n  In call to configurable 'stage_schedule' (<function>)"
  )
  assert sentence(error) == (
    "bad operand: stage_schedule was called with PATH_LENGTHS = (3, 4, 5, 6),"
    " TRAIN_STEPS = 640, NUM_LAYERS = 6, FLOP_FACTOR = None"
  )


def test_only_a_value_that_may_be_a_string_is_said_to_need_quotes():
  assert "quotes" in error_of("--gin.EXECUTION=cond")
  assert "quotes" not in error_of("--gin.TRAIN_STEPS=ten")
  assert "quotes" not in error_of("--gin.MODEL_DIR='x")


def test_without_a_gin_file_the_run_has_its_own(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  folder = tmp_path / "run"
  with pytest.raises(main.ConfigurationError, match="set --gin_file="):
    main.configure(["--gin.TRAIN_STEPS=3"])
  with pytest.raises(main.ConfigurationError, match=r"config\.gin does not"):
    main.configure(["--gin.MODEL_DIR='run'"])
  configure("--gin.MODEL_DIR='run'", "--gin.TRAIN_STEPS=77")
  folder.mkdir()
  (folder / "config.gin").write_text(gin.config_str(), encoding="utf-8")
  flags = main.configure(["--gin.MODEL_DIR='run'", "--gin.BATCH_SIZE=4"])
  assert flags.gin_file == ["run/config.gin"]
  assert gin.query_parameter("TRAIN_STEPS/macro.value") == 77
  main.configure(["--gin.MODEL_DIR='run'", "--run_mode=eval"])
  assert "evaluation.Evaluation" in repr(gin.query_parameter("%RUN"))


def test_the_help_describes_every_flag_and_exit_code(capsys):
  with pytest.raises(SystemExit) as info:
    main.main(["--help"])
  assert info.value.code == 0
  text = capsys.readouterr().out
  for flag in ("gin_file", "gin.NAME", "gin_search_paths", "dry_run",
               "run_mode", "multihost", "coordinator", "num_processes",
               "process_id", "join_timeout", "debug"):  # fmt: skip
    assert re.search(rf"\n  --{flag}[^\n]*\n? +[^- ]", text), flag
  for word in (*RUN_MODES, "0", "1", "2", "130", "143"):
    assert re.search(rf"\n  {word} +\w", text), word
  assert max(map(len, text.splitlines())) <= 80


def test_a_run_that_exists_does_not_get_other_tokens(
  arguments, copy, tmp_path, capsys
):
  """Its vocabulary is gone; one trained now might have other ids."""
  argv = [a for a in arguments if "DATA_DIR" not in a]
  argv += [f"--gin.DATA_DIR='{tmp_path / 'none'}'", f"--gin.MODEL_DIR='{copy}'"]
  for mode in ("train", "eval"):
    with pytest.raises(SystemExit) as info:
      main.main([*argv, f"--run_mode={mode}"])
    assert info.value.code == 2
    assert "raptr --run_mode=prepare" in capsys.readouterr().err
  assert not (tmp_path / "none").exists()


def test_text_that_takes_long_to_prepare_is_not_prepared_unasked(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(prepare, "is_quick", lambda task: False)
  where = f"--gin.DATA_DIR='{tmp_path}'"
  text = failure(capsys, f"--gin.MODEL_DIR='{tmp_path}'", where)
  assert "raptr --run_mode=prepare" in text
  assert not list(tmp_path.iterdir())


def test_the_resolved_configuration_says_who_set_what(tmp_path):
  (tmp_path / "mine.gin").write_text(
    "from __gin__ import dynamic_registration\n"
    "from raptr_jax.training import optim\n"
    "include 'experiments/quickstart_bert_raptr.gin'\n"
    "TRAIN_STEPS = 5\nBATCH_SIZE = 6\n"
    "optim.adamw.b1 = 0.8\noptim.adamw.b2 = 0.999\n"
    "import raptr_jax.training.optim\n"
    "raptr_jax.training.optim.adamw.epsilon = 1e-5\n"
  )
  files = [str(tmp_path / "mine.gin")]
  epsilon = "--gin.optim.adamw.epsilon=1e-6"
  overrides = ["--gin.MODEL_DIR='x'", "--gin.BATCH_SIZE=7", epsilon]
  main.configure([f"--gin_file={files[0]}", *overrides])
  lines = list(resolved_lines(files, overrides))
  assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80
  found, file = {}, ""
  for line in lines:
    if match := re.match(r"  (\S.*)", line):
      file = match.group(1)
    elif match := re.match(r" +(\d*)  (\S+) +(.*)", line):
      found[match.group(2)] = (file, match.group(1), match.group(3))
  assert found["TRAIN_STEPS"] == (files[0], "4", "5")
  assert found["BATCH_SIZE"] == ("command line", "", "7")
  assert found["MODEL_DIR"] == ("command line", "", "'x'")
  assert found["WARMUP_STEPS"][0] == "experiments/quickstart_bert_raptr.gin"
  assert found["DATA_DIR"][0] == "data/text_task.gin"
  assert found["optim.adamw.b1"] == (files[0], "6", "0.8")
  assert found["optim.adamw.epsilon"] == ("command line", "", "1e-06")
  assert "optim.adamw.b2" not in found  # Its default.
  used = set(re.findall(r"^([A-Z_]+) = ", gin.config_str(), re.MULTILINE))
  assert used == {name for name in found if name.isupper()}


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
def arguments(tmp_path_factory):
  """Arguments of a small run on a folder of text, but for its MODEL_DIR."""
  folder = tmp_path_factory.mktemp("arguments")
  text = write_corpus(folder / "text")
  argv = [
    LEAF,
    "--gin_file=data/bert_text.gin",
    f"--gin.TEXT_DIR='{text}'",
    f"--gin.DATA_DIR='{folder / 'data'}'",
    *SMALL,
  ]
  return argv


@pytest.fixture(scope="module")
def trained(arguments, tmp_path_factory):
  """The folder of this run."""
  run = tmp_path_factory.mktemp("trained") / "run"
  main.main([*arguments, f"--gin.MODEL_DIR='{run}'"])
  return run


@pytest.fixture
def copy(trained, tmp_path):
  """A copy of the folder that a test may change."""
  return shutil.copytree(trained, tmp_path / "run")


def test_a_run_is_verified_by_its_folder_alone(copy, capsys):
  """Also one whose mesh needs more devices than there are."""
  config = copy / "config.gin"
  text = config.read_text()
  assert "FSDP = 1\n" in text
  config.write_text(text.replace("FSDP = 1\n", "FSDP = 64\n"))
  argv = [f"--gin.MODEL_DIR='{copy}'", "--run_mode=verify"]
  main.main(argv)
  out = capsys.readouterr().out
  assert out.endswith(f"MODEL_DIR = '{copy}' is complete, with all 6 steps\n")
  (copy / "metrics.jsonl").unlink()
  with pytest.raises(SystemExit) as info:
    main.main(argv)
  assert info.value.code == 2
  captured = capsys.readouterr()
  assert "metrics.jsonl: wrong: does not exist; it lacks" in captured.out
  assert captured.err.startswith(f"error: MODEL_DIR = '{copy}' has something")
  assert captured.err.count("\n") == 1


def test_from_a_folder_of_text_to_a_summary(arguments, trained, capsys):
  run = trained
  for name in ("config.gin", "metrics.jsonl", "summary.json", "summary.md",
               "curves.png", "checkpoints", "tensorboard"):  # fmt: skip
    assert (run / name).exists(), name
  summary = json.loads((run / "summary.json").read_text())
  assert summary["steps"] == 6
  assert summary["unigram_loss"] > 0
  assert "TRAIN_STEPS = 6" in (run / "config.gin").read_text()

  again = [f"--gin.MODEL_DIR='{run}'", "--gin.EVAL_PERIOD=1"]
  main.main([*arguments, *again])
  assert "complete" in capsys.readouterr().out
  assert "EVAL_PERIOD = 3" in (run / "config.gin").read_text()


@pytest.mark.parametrize(
  ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_run_that_a_signal_stopped_ends_with_its_code(
  number, code, arguments, trained, tmp_path, monkeypatch
):
  def stopped(*_, **__):
    raise Stopped(3, number)

  monkeypatch.setattr(loop, "train", stopped)
  with pytest.raises(SystemExit) as info:
    main.main([*arguments, f"--gin.MODEL_DIR='{tmp_path}'"])
  assert info.value.code == code


def test_a_second_interrupt_ends(
  arguments, trained, tmp_path, monkeypatch, capsys
):
  def interrupted(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(loop, "train", interrupted)
  with pytest.raises(SystemExit) as info:
    main.main([*arguments, f"--gin.MODEL_DIR='{tmp_path}'"])
  assert info.value.code == 130
  assert "the same command resumes" in capsys.readouterr().err


def test_a_changed_configuration_is_told(arguments, copy, capsys):
  (copy / "summary.json").unlink()  # As if it had been killed.
  changed = [a.replace("EVAL_PERIOD=3", "EVAL_PERIOD=2") for a in arguments]
  main.main([*changed, f"--gin.MODEL_DIR='{copy}'"])
  out = capsys.readouterr().out
  assert "-EVAL_PERIOD = 3" in out
  assert "+EVAL_PERIOD = 2" in out


@pytest.fixture
def told_folder():
  """Sets JAX's folder of compiled programs, and puts the tests' own back."""
  names = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
  )
  before = {name: getattr(jax.config, name) for name in names}
  yield lambda folder: jax.config.update(names[0], folder)
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.mark.parametrize(
  ("folder", "told", "expected"),
  [
    ("~/programs", None, "/home/me/programs"),
    ("gs://bucket/programs", None, "gs://bucket/programs"),
    (None, None, None),
    ("~/programs", "/told/by/jax", "/told/by/jax"),
  ],
)
def test_compiled_programs_are_kept_in_a_folder(
  folder, told, expected, told_folder, monkeypatch
):
  monkeypatch.setenv("HOME", "/home/me")
  told_folder(told)
  kept_programs.keep_programs(folder)
  assert jax.config.jax_compilation_cache_dir == expected


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_runs_keep_their_programs(mode, tmp_path, monkeypatch, capsys):
  folders = []
  monkeypatch.setattr(kept_programs, "keep_programs", folders.append)
  monkeypatch.setattr(main, "_opened", sys.exit)
  argv = [LEAF, f"--gin.MODEL_DIR='{tmp_path}'", f"--run_mode={mode}"]
  for value, kept in (("'here'", ["here"]), ("None", ["here", None])):
    with pytest.raises(SystemExit):
      main.main([*argv, f"--gin.COMPILATION_CACHE_DIR={value}"])
    assert folders == kept
  with pytest.raises(SystemExit):
    main.main([*argv, "--gin.COMPILATION_CACHE_DIR=3"])
  message = "COMPILATION_CACHE_DIR = 3, expected a folder, or None"
  assert message in capsys.readouterr().err


def test_a_dry_run_prints_the_plan_and_writes_nothing(
  arguments, tmp_path, capsys
):
  run = f"--gin.MODEL_DIR='{tmp_path / 'run'}'"
  main.main([*arguments, run, "--dry_run"])
  out = capsys.readouterr().out
  for text in ("parameters", "FLOPs of a dense step", "1.333 nominal",
               "epochs", "token positions", "of which padding", "MiB temporary", "path length"):  # fmt: skip
    assert text in out
  assert not (tmp_path / "run").exists()


def test_a_plan_for_a_target_compiles_every_program(
  arguments, tmp_path, capsys
):
  run = f"--gin.MODEL_DIR='{tmp_path / 'run'}'"
  main.main([*arguments, run, "--run_mode=plan", "--target=cpu"])
  out = capsys.readouterr().out
  assert re.search(r"command line\n(.*\n)* +TARGET +'cpu'\n", out)
  (count,) = re.findall(r"compiling (\d) of \1 programs for 8 x cpu", out)
  paths = re.findall(r"^path of \d layers .* temporary$", out, re.M)
  assert len(paths) == int(count) > 1
  assert "all-reduce" in out


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
  assert re.search(r"FLOP factor, whole step +1\.\d{3}", out)
