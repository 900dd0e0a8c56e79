"""Cases of flags, gin files and values that cannot work."""

from typing import Any

from chaos_suites.case import Case, gin


def _gin_file(text: str) -> dict[str, Any]:
  """A gin file of this text after those of the run, for a `Case`."""
  return {
    "flags": ("--gin_file=HERE/mine.gin",),
    "arrange": lambda here: (here / "mine.gin").write_text(text),
  }


def _value(binding: str, *words: str, **more: Any) -> Case:
  """A case of one binding, whose value and name the line must have."""
  name, _, value = binding.partition("=")
  return Case(binding, gin(binding), (value, *(words or (name,))), **more)


GIN = "from __gin__ import dynamic_registration\n"
VALUES = (
  # Flags.
  Case("unknown flag", ("--gin_fil=x.gin",), ("--gin_fil=x.gin", "--help")),
  Case("unknown run mode", ("--run_mode=fit",), ("fit", "--run_mode", "plan")),
  Case("workers in training", ("--workers=2",), ("2", "--run_mode=prepare")),
  Case("profiled steps", ("--profile_steps=20:99",), ("99", "--profile_steps")),
  Case("unknown target", ("--dry_run", "--target=h900:1"), ("h900", "target")),
  # Names in gin files and on the command line.
  Case("unknown macro", gin("TRAIN_STEP=3"), ("TRAIN_STEP:", "TRAIN_STEPS?")),
  Case("unknown parameter", gin("optim.adamw.beta=1"), ("beta", "adamw")),
  Case("unknown module", gin("polices.raptr.x=1"), ("polices", "--gin.")),
  Case("unknown file", ("--gin_file=no.gin",), ("no.gin", "--gin_file")),
  Case("no value", gin("TRAIN_STEPS"), ("--gin.TRAIN_STEPS", "VALUE")),
  Case(
    "missing macro",
    ("--gin_file=runs/pretrain.gin",),
    ("MODEL_DIR", "--gin.MODEL_DIR"),
    alone=True,
  ),
  Case("no file at all", gin("TRAIN_STEPS=3"), ("--gin_file",), alone=True),
  Case(
    "syntax in a file",
    words=("mine.gin, line 3", "multi-line"),
    **_gin_file("TRAIN_STEPS = 24\nBATCH_SIZE = (8,\n"),
  ),
  Case(
    "include in a file",
    words=("raptorr.gin", "mine.gin"),
    **_gin_file("include 'methods/raptorr.gin'\n"),
  ),
  Case(
    "function in a file",
    words=("raptor", "mine.gin"),
    **_gin_file(
      GIN + "from raptr_jax.methods import policies\n"
      "POLICY = @policies.raptor()\n"
    ),
  ),
  Case(
    "module in a file",
    words=("nonsense", "mine.gin"),
    **_gin_file(GIN + "import nonsense\n"),
  ),
  Case(
    "a binary gin file",
    ("--gin_file=HERE/mine.gin",),
    ("--gin_file=HERE/mine.gin", "utf-8"),
    lambda here: (here / "mine.gin").write_bytes(bytes(range(256))),
  ),
  # Types.
  _value("TRAIN_STEPS='ten'"),
  _value("TRAIN_STEPS=24.5"),
  _value("COMPILATION_CACHE_DIR=3"),
  _value("PATH_LENGTHS=(2, 'x', 4)"),
  _value("PATH_LENGTHS=2,3", "parentheses"),
  _value("TASK_FEATURE_LENGTHS=[32]"),
  _value("TASK_FEATURE_LENGTHS={'input': 32}", "input", "inputs"),
  _value("MODEL_DIR=runs/x", "quotes"),
  _value("SOURCE='wikipedia'"),
  _value("TRACKERS='wandb'"),
  # Schedules.
  _value("PATH_LENGTHS=(2, 3, 9)", "PATH_LENGTHS", "4"),
  _value("PATH_LENGTHS=(4, 3, 2)"),
  _value("FLOP_FACTOR=9"),
  _value("STACKING_LENGTHS=(2, 5)", run="stacking"),
  _value("TRAIN_STEPS=0"),
  _value("TRAIN_STEPS=2", "TRAIN_STEPS", "PATH_LENGTHS"),
  _value("WARMUP_STEPS=24"),
  Case(
    "stages of a longer run",
    gin("schedule.stage_schedule.total_steps=48"),
    ("step 32", "step 24", "TRAIN_STEPS"),
  ),
  _value("LEARNING_RATE=-0.1"),
  _value("EVAL_BATCHES=0"),
  _value("CHECKPOINT_PERIOD=0"),
  _value("PATH_SAMPLER='poisson'"),
  _value("EXECUTION='fast'"),
  # Sizes.
  _value("BATCH_SIZE=0"),
  _value("NUM_LAYERS=0"),
  _value("bert.BertConfig.num_heads=3", "num_heads", "embed_dim"),
  _value("bert.BertConfig.max_length=16", "32", "TASK_FEATURE_LENGTHS"),
  _value(
    "bert.BertConfig.vocab_size=100", "320", "VOCABULARY_SIZE", has_data=True
  ),
  _value("VOCABULARY_SIZE=100", has_data=True),
  _value("DROPOUT_RATE=1.5"),
  _value("COMPUTE_DTYPE='float12'"),
  _value("REMAT='some'"),
  _value("masked_lm.MaskedLM.mask_rate=2", "mask_rate"),
  # Devices and memory.
  _value("FSDP=3", "FSDP = 3"),
  _value("TENSOR=2", "TENSOR = 2"),
  _value("NUM_MICROBATCHES=3"),
  _value("BATCH_SIZE=1000000000", "--run_mode=plan", has_data=True),
  _value(
    "bert.BertConfig.embed_dim=2000000",
    "embed_dim",
    "--run_mode=plan",
    has_data=True,
  ),
)
