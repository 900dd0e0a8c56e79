"""Pretraining transformers for less, with random paths of their layers.

What a notebook needs is here, and is imported when it is first used:

  run = raptr_jax.load("runs/decoder")  # A trained run.
  run.write("In the beginning", layers=4)

`examples/train_without_gin.py` trains a model without configuration files.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from raptr_jax.contracts import LayerDraw as LayerDraw
  from raptr_jax.contracts import LayerPath as LayerPath
  from raptr_jax.contracts import StepFlops as StepFlops
  from raptr_jax.data.prepared import PreparedDataset as PreparedDataset
  from raptr_jax.inference.decoding import Decoding as Decoding
  from raptr_jax.inference.run import Run as Run
  from raptr_jax.inference.run import load as load
  from raptr_jax.methods import policies as policies
  from raptr_jax.methods.growth import GrowthPlan as GrowthPlan
  from raptr_jax.methods.policies import LayerPolicy as LayerPolicy
  from raptr_jax.methods.schedule import StageSchedule as StageSchedule
  from raptr_jax.methods.schedule import stage_schedule as stage_schedule
  from raptr_jax.models.bert import BertConfig as BertConfig
  from raptr_jax.models.bert import BertMaskedLM as BertMaskedLM
  from raptr_jax.models.decoder import DecoderConfig as DecoderConfig
  from raptr_jax.models.decoder_lm import DecoderLM as DecoderLM
  from raptr_jax.models.encoder_decoder import (
    EncoderDecoderConfig as EncoderDecoderConfig,
  )
  from raptr_jax.models.encoder_decoder_lm import (
    EncoderDecoderLM as EncoderDecoderLM,
  )
  from raptr_jax.models.masked_stack import MaskedStack as MaskedStack
  from raptr_jax.tasks.mixture import Mixture as Mixture
  from raptr_jax.tasks.objectives.causal_lm import CausalLM as CausalLM
  from raptr_jax.tasks.objectives.masked_lm import MaskedLM as MaskedLM
  from raptr_jax.tasks.objectives.ul2 import UL2 as UL2
  from raptr_jax.tasks.prepared.prepare import prepare as prepare
  from raptr_jax.tasks.task import TextTask as TextTask
  from raptr_jax.tasks.text.sources import KingJamesBible as KingJamesBible
  from raptr_jax.tasks.text.sources import TextFolder as TextFolder
  from raptr_jax.tasks.text.vocabulary import AtMost as AtMost
  from raptr_jax.training import learning_rates as learning_rates
  from raptr_jax.training import optim as optim
  from raptr_jax.training.checkpoint import Checkpointer as Checkpointer
  from raptr_jax.training.experiment import Experiment as Experiment
  from raptr_jax.training.loop import train as train
  from raptr_jax.training.partitioning import Partitioner as Partitioner
  from raptr_jax.training.plan import Plan as Plan
  from raptr_jax.training.plan import make_plan as make_plan
  from raptr_jax.training.signals import Stopped as Stopped

__version__ = "0.1.0"

# Not imported now: `raptr_jax.tasks` needs no JAX.
_NAMES = {
  "contracts": ("LayerDraw", "LayerPath", "StepFlops"),
  "data.prepared": ("PreparedDataset",),
  "inference.decoding": ("Decoding",),
  "inference.run": ("Run", "load"),
  "methods.growth": ("GrowthPlan",),
  "methods.policies": ("LayerPolicy",),
  "methods.schedule": ("StageSchedule", "stage_schedule"),
  "models.bert": ("BertConfig", "BertMaskedLM"),
  "models.decoder": ("DecoderConfig",),
  "models.decoder_lm": ("DecoderLM",),
  "models.encoder_decoder": ("EncoderDecoderConfig",),
  "models.encoder_decoder_lm": ("EncoderDecoderLM",),
  "models.masked_stack": ("MaskedStack",),
  "tasks.mixture": ("Mixture",),
  "tasks.objectives.causal_lm": ("CausalLM",),
  "tasks.objectives.masked_lm": ("MaskedLM",),
  "tasks.objectives.ul2": ("UL2",),
  "tasks.prepared.prepare": ("prepare",),
  "tasks.task": ("TextTask",),
  "tasks.text.sources": ("KingJamesBible", "TextFolder"),
  "tasks.text.vocabulary": ("AtMost",),
  "training.checkpoint": ("Checkpointer",),
  "training.experiment": ("Experiment",),
  "training.loop": ("train",),
  "training.partitioning": ("Partitioner",),
  "training.plan": ("Plan", "make_plan"),
  "training.signals": ("Stopped",),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}
# Modules of functions, which go by the names that they have in gin files.
_MODULES = {
  "learning_rates": "training.learning_rates",
  "optim": "training.optim",
  "policies": "methods.policies",
}
__all__ = sorted({**_HOMES, **_MODULES})

if not TYPE_CHECKING:  # Which would take all names for names of ours.

  def __getattr__(name: str) -> Any:
    """Imports one of the names above when it is first used."""
    if name in _MODULES:
      return importlib.import_module(f"raptr_jax.{_MODULES[name]}")
    if name in _HOMES:
      return getattr(importlib.import_module(f"raptr_jax.{_HOMES[name]}"), name)
    raise AttributeError(
      f"module 'raptr_jax' has no attribute {name!r}",
      name=name,
      obj=sys.modules["raptr_jax"],
    )

  def __dir__() -> list[str]:
    return sorted({*(x for x in globals() if x[:2] == "__"), *__all__})
