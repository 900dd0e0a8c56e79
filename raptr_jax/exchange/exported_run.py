"""Writes a trained run as a folder of Hugging Face, whole or a path of it.

A RaPTr model is trained on paths of its layers, so that a path is a model by
itself: of 12 layers, 6 are a smaller one. Its loss is told beside that of the
whole model.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from raptr_jax.exchange.hugging_face import (
  exportable,
  new_folder,
  write_files,
)
from raptr_jax.exchange.tokenizers import write_tokenizer
from raptr_jax.inference.paths import Layers
from raptr_jax.inference.run import Run, load
from raptr_jax.models.bert import BertMaskedLM
from raptr_jax.models.decoder_lm import DecoderLM
from raptr_jax.tasks import files
from raptr_jax.tasks.text.vocabulary import Vocabulary
from raptr_jax.training.held_out import held_out_evaluator

CARD = "README.md"
GENERATION = "generation_config.json"


def export_run(
  model_dir: str | os.PathLike[str],
  hf_dir: str | os.PathLike[str],
  layers: Layers = None,
) -> str:
  """Writes the folder of a run's model; returns a line about it.

  Args:
    model_dir: of the run.
    hf_dir: the folder; does not exist yet.
    layers: those of a path, as for `Run.path`; None for all.

  Raises:
    ConfigurationError: the run's config.gin cannot be built.
    ExchangeError: Hugging Face has no such model.
    FileExistsError: `hf_dir` exists.
    FileNotFoundError: there is no such run.
    ValueError: a layer does not exist.
  """
  run = load(model_dir)
  chosen = {
    name: [int(i) for i in path.indices]
    for name, path in run.path(layers).items()
  }
  model, params = exportable(run.model, run.params, chosen)
  losses = _losses(run, layers)
  with new_folder(Path(hf_dir)) as partial:
    write_files(partial, model, jax.device_get(params))
    files.write_json(partial / GENERATION, _ends(run.vocabulary))
    before, after = _around(model, run.vocabulary)
    write_tokenizer(partial, run.vocabulary, before=before, after=after)
    files.write_text(partial / CARD, _card(run, chosen, losses))
  kept = " and ".join(f"{len(rows)} layers" for rows in chosen.values())
  return f"{hf_dir} has {kept} of {run!r}{_in_words(losses)}"


def _around(model: Any, vocabulary: Vocabulary) -> tuple[list[int], list[int]]:
  """Tokens that a model reads before and after a text."""
  if isinstance(model, BertMaskedLM):
    return [vocabulary.cls_id], [vocabulary.sep_id]
  if isinstance(model, DecoderLM):
    return [vocabulary.cls_id], []
  return [], [vocabulary.eos_id]


def _ends(vocabulary: Vocabulary) -> dict[str, int]:
  """Ids that begin, end and fill a text, for a model that writes."""
  return {
    "bos_token_id": vocabulary.cls_id,
    "eos_token_id": vocabulary.eos_id,
    "pad_token_id": vocabulary.pad_id,
    "decoder_start_token_id": vocabulary.pad_id,
  }


def _losses(run: Run, layers: Layers) -> dict[str, float]:
  """Held-out losses, in nats; empty if the run's data is not there."""
  experiment = run.experiment
  try:
    experiment.eval_dataset.open()
  except OSError:
    return {}
  evaluator = held_out_evaluator(experiment)
  losses = {"all layers": evaluator.full(run.params)["loss"]}
  if layers is not None:
    losses["the path"] = evaluator.of_path(run.params, run.path(layers))["loss"]
  return losses


def _in_words(losses: Mapping[str, float]) -> str:
  if not losses:
    return "; its data is not here, so its loss is not told"
  told = (f"{loss:.4f} of {name}" for name, loss in losses.items())
  return f"; held-out loss {', '.join(told)}"


def _card(
  run: Run, layers: Mapping[str, list[int]], losses: Mapping[str, float]
) -> str:
  """The page that a folder of Hugging Face begins with."""
  method = run.config.get("POLICY", "one of one's own")
  listed = "\n".join(
    f"- {name}: {', '.join(map(str, rows))} of {run.model.stacks[name]}"
    for name, rows in layers.items()
  )
  rows = "\n".join(f"| {name} | {x:.4f} |" for name, x in losses.items())
  table = f"\n| held-out text | loss, nats per target |\n|---|---|\n{rows}\n"
  return f"""\
# A {type(run.model).__name__} trained with raptr_jax

Step {run.step:,} of {run.experiment.total_steps:,}. Method: `{method}`. Layers, counted from 0:

{listed}
{table if losses else ""}"""
