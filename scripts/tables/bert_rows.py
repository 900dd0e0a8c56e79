"""The BERT tables: RaPTr and its rivals, ablations, FLOP factors, depths.

A row is a method and the settings that it changes; the scale sets the rest.
"""

import dataclasses
from typing import Any

from raptr_jax.reports.axes import (
  BLACK,
  BLUE,
  GREEN,
  GREY,
  ORANGE,
  PURPLE,
  SKY,
  VERMILION,
)
from tables.table import Comparison, Row, Table
from tables.views import LOSSES, SWEEP, TRANSITIONS


def _row(
  name: str, label: str, method: str | None = None, **fields: Any
) -> Row:
  return Row(name, label, (f"methods/{method or name}.gin",), **fields)


def _raptr(name: str, label: str, **fields: Any) -> Row:
  return _row(name, label, "raptr", **fields)


DENSE = _row(
  "dense", "dense, full FLOPs", paper="1.76", series="dense", color=BLACK
)
EQUAL_FLOPS = _row("dense_equal_flops", "dense, equal FLOPs", color=GREY)
RAPTR = _raptr(
  "raptr", "RaPTr 6-8-10-12", paper="1.75", series="RaPTr", color=VERMILION
)
CONSTANT = _row("constant", "constant path length", color=SKY)
GRADUAL_STACKING = _row("gradual_stacking", "gradual stacking", color=BLUE)
PLD = _row(
  "pld",
  "progressive layer dropping (PLD)",
  "progressive_layer_dropping",
  series="progressive layer dropping",
  color=GREEN,
)

METHODS = Table(
  name="bert_methods",
  title="BERT: RaPTr and its rivals at matched FLOPs",
  comparisons=(
    Comparison(
      rows=(
        DENSE,
        EQUAL_FLOPS,
        _row("dense_shallower", "dense, fewer layers"),
        RAPTR,
        CONSTANT,
        _row("layerdrop", "LayerDrop"),
        PLD,
        _row(
          "pld_deepspeed",
          "PLD, layers counted from 0",
          "progressive_layer_dropping",
          overrides={
            "layer_dropping.progressive_layer_dropping.indexing": "'deepspeed'"
          },
        ),
        _row("dont_drop_dropout", "Don't Drop Dropout"),
        _row("progressive_stacking", "progressive stacking", color=PURPLE),
        GRADUAL_STACKING,
        _row("midas", "MidAS", color=ORANGE),
        _row("late_expansion", "single expansion"),
      ),
      references=("dense", "dense_equal_flops"),
      curves=(
        "dense",
        "dense_equal_flops",
        "raptr",
        "constant",
        "pld",
        "gradual_stacking",
      ),
      verdicts=("raptr",),
    ),
  ),
  view=LOSSES,
  notes=(
    """\
Our choices that readers should know:

- All rows share the learning rate, its schedule (linear warm-up, linear decay)
  and the batches of the dense row. After each growth of a stacked model the
  rate is warmed up again, for the same share of the run as gradual stacking's
  10k steps.
- *dense, equal FLOPs* has the number of steps that costs what the methods cost
  including embeddings and head: slightly more than its FLOP factor of blocks
  would give.
- *PLD, layers counted from 0* takes its indexing from the authors' code, so
  that the first layer always runs, but not its scaling by the next layer's
  probability.
- *Don't Drop Dropout* draws once per batch; its source draws once per sequence.
  1.333x is the limit of its range: at first its last layers hardly ever run,
  and are scaled by large numbers when they do. Its source saves 15 to 20 %.
- *single expansion* expands at 27 % of the run, which meets the FLOP factor;
  its source expands at 80 %, saves more, and uses another learning rate.
- Each interval holds for one comparison: of some twenty, about one is expected
  to miss the true value.\
""",
  ),
)

# 5 % of each scale's steps.
FULL_MODEL_STEPS = {"tiny": 25, "small": 50, "paper": 33750}

ABLATION = Table(
  name="bert_ablation",
  title="BERT: RaPTr with one thing changed",
  comparisons=(
    Comparison(
      rows=(
        DENSE,
        RAPTR,
        *(
          _raptr(
            f"raptr_fixed_{name}",
            f"fixed layers: {label}",
            overrides={"policies.raptr.fixed_layers": value},
          )
          for name, label, value in (
            ("none", "none", "()"),
            ("first", "the first", "(0,)"),
            ("last", "the last", "(-1,)"),
            ("four", "two at each end", "(0, 1, -2, -1)"),
          )
        ),
        *(
          _raptr(
            f"raptr_{scaling}",
            f"scaling: {scaling}",
            overrides={"policies.raptr.scaling": f"'{scaling}'"},
          )
          for scaling in ("sqrt_gap", "sqrt_global", "inverse_p")
        ),
        _raptr(
          "raptr_exact",
          "paths of an exact length",
          overrides={"PATH_SAMPLER": "'exact'"},
        ),
        _raptr(
          "raptr_proportional",
          "proportional stages (factor 1.2)",
          overrides={
            "FLOP_FACTOR": "None",
            "schedule.stage_schedule.stage_steps": "'proportional'",
          },
        ),
        dataclasses.replace(CONSTANT, label="1 stage: constant path length"),
        _raptr(
          "raptr_2_stages", "2 stages", overrides={"PATH_LENGTHS": "(6, 12)"}
        ),
        _raptr(
          "raptr_8_stages",
          "8 stages",
          overrides={
            "PATH_LENGTHS": "(6, 6.857, 7.714, 8.571, 9.429, 10.286, 11.143, 12)"
          },
        ),
        _raptr(
          "raptr_full_model_start",
          "5 % full model first",
          by_scale={
            scale: {"schedule.stage_schedule.full_model_steps": str(steps)}
            for scale, steps in FULL_MODEL_STEPS.items()
          },
        ),
      ),
      references=("dense", "raptr"),
      curves=("dense", "raptr", "raptr_proportional", "raptr_full_model_start"),
    ),
  ),
  view=LOSSES,
  notes=(
    "Each row below RaPTr is RaPTr 6-8-10-12, with the first and last layers"
    " fixed, except for what the row states. FLOPs are matched, except for"
    " proportional stages, which spend 1/1.2 of the dense FLOPs where the"
    " others spend 1/1.333.",
  ),
)

SWEEP_METHODS = (RAPTR, CONSTANT, GRADUAL_STACKING)
SWEEP_FACTORS = ("1.1", "1.2", "1.333", "1.6", "2.0")
# Stages that start at half of the model cannot save this much.
LARGE_FACTORS = {
  factor: {
    "PATH_LENGTHS": "(3, 6, 9, 12)",
    "STACKING_LENGTHS": "(3, 6, 9, 12)",
  }
  for factor in ("1.6", "2.0")
}


def _swept(row: Row, factor: str) -> Row:
  """The row at another FLOP factor."""
  if factor == "1.333":  # The scale's own.
    return dataclasses.replace(
      row, label=f"{row.label}, 1.333x", series=row.line
    )
  return Row(
    f"{row.name}_{factor}",
    f"{row.label.replace(' 6-8-10-12', '')}, {factor}x",
    row.gin_files,
    {"FLOP_FACTOR": factor, **LARGE_FACTORS.get(factor, {})},
    series=row.line,
    color=row.color,
  )


FLOP_SWEEP = Table(
  name="flop_sweep",
  title="BERT: loss against FLOPs saved",
  comparisons=(
    Comparison(
      rows=(
        DENSE,
        *(
          _swept(row, factor)
          for row in SWEEP_METHODS
          for factor in SWEEP_FACTORS
        ),
      ),
      references=("dense",),
    ),
  ),
  view=SWEEP,
  notes=(
    "At 1.6x and 2.0x RaPTr and stacking have the stages 3-6-9-12, since"
    " stages that start at half of the model cannot save that much.",
  ),
)

# Lengths at 12 layers are the scale's own.
DEPTHS = {
  6: {"PATH_LENGTHS": "(3, 4, 5, 6)", "STACKING_LENGTHS": "(3, 4, 5, 6)"},
  12: {},
  24: {"PATH_LENGTHS": "(12, 16, 20, 24)", "STACKING_LENGTHS": "(12, 18, 24)"},
}


def at_depth(row: Row, depth: int) -> Row:
  """The row with a model of 6, 12 or 24 layers."""
  label = row.label.replace(" 6-8-10-12", "").removesuffix(", full FLOPs")
  if depth == 12:
    return dataclasses.replace(
      row, label=f"{label}, 12 layers", series=row.line
    )
  return Row(
    f"{row.name}_depth_{depth}",
    f"{label}, {depth} layers",
    row.gin_files,
    {"NUM_LAYERS": str(depth), **DEPTHS[depth]},
    series=row.line,
    color=row.color,
  )


DEPTH_TRANSITIONS = Table(
  name="transitions",
  title="BERT: the full model's loss where a stage begins",
  comparisons=(
    Comparison(
      rows=tuple(
        at_depth(row, depth)
        for depth in DEPTHS
        for row in (DENSE, RAPTR, GRADUAL_STACKING, PLD)
      ),
      references=("dense",),
    ),
  ),
  view=TRANSITIONS,
  notes=(
    "Progressive layer dropping and dense training have no stages: the picture"
    " shows them for comparison. All depths use the learning rate of 12 layers."
    " In the first step after a growth a stacked model has a small learning"
    " rate (REWARMUP_STEPS); RaPTr has no such re-warm-up.",
  ),
)
