"""Makes a folder of Hugging Face the folder of a run: its MODEL_DIR.

It has a configuration, a checkpoint and the vocabulary, so that the run can be
evaluated, written with, fine-tuned, exported again, or taken as the start of
another one. Its text, which decides nothing yet, is the King James Bible.
"""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from raptr_jax.configuration import configure
from raptr_jax.contracts import Params
from raptr_jax.exchange.hugging_face import new_folder, read_model
from raptr_jax.exchange.tensor_map import ExchangeError
from raptr_jax.exchange.tokenizers import FoundTokenizer, find_tokenizer
from raptr_jax.models.bert import BertMaskedLM
from raptr_jax.models.encoder_decoder_lm import EncoderDecoderLM
from raptr_jax.reports.run_files import CONFIG_FILE
from raptr_jax.tasks import files
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.setup import parameter_count
from raptr_jax.training.state import TrainState

STEP = 0  # Of the checkpoint: nothing has been trained here.
LENGTH = 512  # Tokens of a row, or as many as the model has positions.
TASK = "imported"


def import_run(
  hf_dir: str | os.PathLike[str], model_dir: str | os.PathLike[str]
) -> str:
  """Writes the MODEL_DIR of a folder's model; returns a line about it.

  Args:
    hf_dir: the folder, with config.json, safetensors and a tokenizer.
    model_dir: of the run; does not exist yet.

  Raises:
    ExchangeError: the folder is damaged or of another architecture, its parts
      do not fit together, or it has no tokenizer.
    FileExistsError: `model_dir` exists.
    ValueError: `model_dir` is at an address.
  """
  source, target = Path(hf_dir), files.path("MODEL_DIR", model_dir)
  if files.is_remote(target):
    raise ValueError(
      f"MODEL_DIR = '{model_dir}' is an address: import into a folder of this"
      " machine, and copy that"
    )
  model: Any
  model, params = read_model(source)
  tokenizer = find_tokenizer(
    source,
    model.config.vocab_size,
    has_sentinels=isinstance(model, EncoderDecoderLM),
  )
  with new_folder(Path(target)) as partial:
    name = f"vocabulary{tokenizer.file.suffix}"
    task_folder = partial / "data" / TASK
    task_folder.mkdir(parents=True)
    shutil.copyfile(tokenizer.file, task_folder / name)
    vocabulary = f"{model_dir}/data/{TASK}/{name}"
    experiment = _configured(model, tokenizer, str(model_dir), vocabulary)
    (partial / CONFIG_FILE).write_text(configure.config_text(), "utf-8")
    _save(experiment, params, str(partial))
  size = parameter_count(params)
  kind = type(model).__name__
  return (
    f"{model_dir} has the {kind} of {source}: {size:,} parameters,"
    f" {tokenizer.vocabulary().size:,} tokens"
  )


def _configured(
  model: Any, tokenizer: FoundTokenizer, model_dir: str, vocabulary: str
) -> Experiment:
  """Configures gin for the run of a model, and builds it."""
  parts, values = _family_settings(model)
  values |= {
    "MODEL_DIR": model_dir,
    "DATA_DIR": f"{model_dir}/data",
    "MIXTURE_OR_TASK_NAME": TASK,
    "VOCABULARY_PATH": vocabulary,
    "VOCABULARY_SIZE": tokenizer.vocabulary().size,
    "TRAIN_STEPS": STEP + 1,
    "WARMUP_STEPS": 0,
    "BATCH_SIZE": 32,
    "task.TextTask.lower_case": tokenizer.lower_case,
    "task.TextTask.extra_ids": tokenizer.extra_ids,
  }
  overrides = [f"--gin.{name}={value!r}" for name, value in values.items()]
  # Its state is small.
  overrides.append("--gin.OPTIMIZER=@optim.adafactor()")
  runs = ("runs/pretrain.gin", "methods/dense.gin")
  configure.parse([*parts, *runs], overrides)
  experiment: Experiment = configure.build("RUN")
  if experiment.model != model:
    raise ExchangeError(
      f"{experiment.model} cannot be configured as it was read, {model}"
    )
  return experiment


def _family_settings(model: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
  """Gin files and values for a family of models."""
  config = model.config
  module = type(config).__module__.rpartition(".")[2]
  kind = f"{module}.{type(config).__name__}"
  values = {
    f"{kind}.{field.name}": getattr(config, field.name)
    for field in dataclasses.fields(config)
  }
  depths = set(model.stacks.values())
  if len(depths) > 1:
    raise ExchangeError(
      f"its stacks have {dict(model.stacks)} layers, expected equally many: read"
      " it with exchange.hugging_face.read_model instead"
    )
  values["NUM_LAYERS"] = depths.pop()
  if isinstance(model, BertMaskedLM):
    length = min(LENGTH, config.max_length)
    values["TASK_FEATURE_LENGTHS"] = {"inputs": length}
    return ("models/bert.gin", "data/bert_kjv.gin"), values
  if isinstance(model, EncoderDecoderLM):
    values |= {
      "UL2_LAYOUT": "encoder_decoder",
      "UL2_MODE_TOKENS": False,  # T5's vocabulary has none.
      "TASK_FEATURE_LENGTHS": {"inputs": LENGTH, "targets": LENGTH // 2},
    }
    return ("models/encoder_decoder.gin", "data/ul2_kjv.gin"), values
  values["DECODER_ATTENTION"] = "causal"
  return ("models/decoder.gin", "data/causal_lm_kjv.gin"), values


def _save(experiment: Experiment, params: Params, folder: str) -> None:
  """Saves the checkpoint that a run begins with."""
  params = jax.tree.map(jnp.asarray, params)
  state = TrainState(
    jnp.asarray(STEP), params, experiment.optimizer.init(params)
  )
  with experiment.checkpointer.open(folder) as checkpoints:
    checkpoints.save(state, STEP, {})
