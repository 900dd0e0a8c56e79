"""Compiles steps for a target, and prints what `compiled_program_test` checks.

  python -m tests.program_facts TARGET [short] [full] [cond] [heads]

In a process of its own: with all of XLA's optimisations, four CPU devices, and
the plugin of the target.
"""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

from raptr_jax.contracts import LayerDraw
from raptr_jax.methods import policies
from raptr_jax.methods.draws import as_executed
from raptr_jax.models.decoder import DecoderConfig
from raptr_jax.models.decoder_lm import DecoderLM
from raptr_jax.training import (
  compiled_program,
  hlo,
  roofline,
  setup,
  targets,
)
from raptr_jax.training.compiled_steps import abstract_copies
from raptr_jax.training.partitioning import Partitioner
from tests.toy import make_experiment

# No other axis of an array has the size LAYERS.
LAYERS, SHORT, BATCH, LENGTH, DEVICES = 20, 5, 48, 128, 4
IN_PLACE = "dynamic-update-slice"


class Shapes:
  """A dataset of which only the shapes of a batch are known."""

  batch_size = BATCH
  num_examples = unigram_counts = None
  example_kinds = ()

  def batch_spec(self):
    shape = (BATCH, LENGTH)
    names = ("tokens", "targets", "segment_ids", "positions", "in_prefix")
    ids = jax.ShapeDtypeStruct(shape, jnp.int32)
    weights = jax.ShapeDtypeStruct(shape, jnp.float32)
    return {**dict.fromkeys(names, ids), "target_weights": weights}


def make_run(target, execution, num_heads=1, **placement):
  """A decoder on the devices of a target."""
  config = DecoderConfig(
    vocab_size=160,
    num_layers=LAYERS,
    embed_dim=128,
    mlp_dim=96,
    num_heads=num_heads,
    dropout_rate=0.0,
    dtype="bfloat16",
    remat="products",  # "none" has no loop on a CPU.
  )
  devices = targets.described_devices(target)[:DEVICES]
  return make_experiment(
    "unused",
    model=DecoderLM(config),
    policy=policies.full(num_layers=LAYERS),
    train_dataset=Shapes(),
    eval_dataset=Shapes(),
    partitioner=Partitioner(devices=devices, **placement),
    execution=execution,
  )


def draws(execution, *kept):
  mask = np.isin(np.arange(LAYERS), kept)
  draw = LayerDraw(mask, mask.astype(np.float32))
  return as_executed({"stack": draw}, execution)


def facts(run, *kept):
  """What the tests read off the program that runs these layers."""
  step = compiled_program.compile_step(run, draws(run.execution, *kept))
  executed = list(step.program.executed())
  return {
    "temporary": step.memory.temporary,
    "conditionals": sum(
      i.opcode == "conditional" and p.loops > 0 for i, p in executed
    ),
    "whole_stacks": whole_stacks(step.program),
    "kernels": compiled_program.kernels(step.program),
    "collectives": [
      {
        "kind": x.kind,
        "axes": [hlo.axes(part) for part in hlo.parts(x.shape)],
        "loops": x.place.loops,
        "times": x.place.times,
      }
      for x in compiled_program.collectives(step.program)
    ],
  }


def traced(run, *kept):
  """The program for these layers before it is compiled."""
  state, batch = setup.abstract_state(run), setup.abstract_batch(run)
  placed = abstract_copies(
    draws(run.execution, *kept), run.partitioner.replicated
  )
  step = setup.jitted_step(run, state)
  text = step.lower(state, batch, placed).as_text()
  return re.sub(r'backend_config = "\d+"', "", text)  # Addresses of callbacks.


def whole_stacks(program):
  """What computes arrays of all layers in loops, other than in place."""
  found = []
  for instruction, place in program.executed():
    if not place.loops or place.is_fused:
      continue
    if instruction.opcode in roofline.FREE or in_place(program, instruction):
      continue
    shapes = map(hlo.axes, hlo.parts(instruction.shape))
    if any(len(axes) > 1 and axes[0] == LAYERS for axes in shapes):
      found.append(f"{instruction.opcode} {instruction.shape}")
  return found


def in_place(program, instruction):
  """Whether an instruction only writes parts of its results."""
  if instruction.opcode != "fusion":
    return instruction.opcode == IN_PLACE
  fused = program.computations[instruction.called[0]]
  (root,) = (i for i in fused.values() if i.is_root)
  results = root.operands if root.opcode == "tuple" else [root.name]
  return all(fused[name].opcode == IN_PLACE for name in results)


def main(target, *names):
  targets.stay_on_host()
  kept = {"short": range(SHORT), "full": range(LAYERS)}
  fully = {"fsdp": DEVICES}
  gather = make_run(target, "gather", **fully)
  found = {}
  for name in names:
    if name in kept:
      found[name] = facts(gather, *kept[name])
    elif name == "cond":
      found[name] = facts(make_run(target, "cond", **fully), 0)
    else:
      heads = make_run(target, "gather", num_heads=2, tensor=2)
      found[name] = facts(heads, *kept["short"])
  last = range(LAYERS - SHORT, LAYERS)
  found["is_one_program"] = traced(gather, *kept["short"]) == traced(
    gather, *last
  )
  print(json.dumps(found))


if __name__ == "__main__":
  main(*sys.argv[1:])
