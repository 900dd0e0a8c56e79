"""What is compared: the rows of each table.

A row is a method and what it changes of it; the scale says all else. Rows of
the same name are the same run, in whichever tables they stand.
"""

import dataclasses

from .table import Comparison, Row, Table
from .ul2_rows import UL2_METHODS


def _row(name: str, label: str, method: str | None = None, **fields) -> Row:
  return Row(name, label, (f"methods/{method or name}.gin",), **fields)


def _raptr(name: str, label: str, **fields) -> Row:
  return _row(name, label, "raptr", **fields)


DENSE = _row("dense", "dense, full FLOPs", paper="1.76")
EQUAL_FLOPS = _row("dense_equal_flops", "dense, equal FLOPs")
RAPTR = _raptr("raptr", "RaPTr 6-8-10-12", paper="1.75")
CONSTANT = _row("constant", "constant path length")
GRADUAL_STACKING = _row("gradual_stacking", "gradual stacking")
PLD = _row(
  "pld", "progressive layer dropping (PLD)", "progressive_layer_dropping"
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
            "policies.progressive_layer_dropping.indexing": "'deepspeed'"
          },
        ),
        _row("dont_drop_dropout", "Don't Drop Dropout"),
        _row("progressive_stacking", "progressive stacking"),
        GRADUAL_STACKING,
        _row("midas", "MidAS"),
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
  notes=(
    """\
Choices of ours that a reader should know:

- All rows have the learning rate, its schedule (linear warm-up, linear decay)
  and the batches of the dense row. After each growth of a stacked model the
  rate is warmed up again, over as great a share of the run as gradual
  stacking's 10k steps are.
- *dense, equal FLOPs* has as many steps as cost what the methods cost with
  embeddings and head: a few more than its FLOP factor of blocks would give.
- *PLD, layers counted from 0* takes its indexing from the authors' program, so
  that the first layer always runs, but not its scaling by the next layer's
  probability.
- *Don't Drop Dropout* has one draw for a batch, its source one for each
  sequence. 1.333x is the end of its range: at first its last layers hardly
  ever run, and are scaled by large numbers when they do. Its source saves 15
  to 20 %.
- *single expansion* is at 27 % of the run, where the FLOP factor puts it; its
  source expands at 80 %, saves more, and has another learning rate.
- The intervals are of one comparison each: of some twenty, one is expected to
  leave out the truth.\
""",
  ),
)

# 5 % of the steps of each scale.
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
  notes=(
    "Each row below RaPTr is RaPTr 6-8-10-12 with its first and last layer"
    " fixed, but for what the row says. FLOPs are matched, except with"
    " proportional stages: these spend 1/1.2 of the dense FLOPs where the"
    " others spend 1/1.333.",
  ),
)

SWEEP_METHODS = (RAPTR, CONSTANT, GRADUAL_STACKING)
SWEEP_FACTORS = ("1.1", "1.2", "1.333", "1.6", "2.0")
# Paths that start at half of the model cannot save so much.
LARGE_FACTORS = {
  factor: {
    "PATH_LENGTHS": "(3, 6, 9, 12)",
    "STACKING_LENGTHS": "(3, 6, 9, 12)",
  }
  for factor in ("1.6", "2.0")
}


def _swept(row: Row, factor: str) -> Row:
  if factor == "1.333":  # That of the scales.
    return dataclasses.replace(row, label=f"{row.label}, 1.333x")
  return Row(
    f"{row.name}_{factor}",
    f"{row.label.replace(' 6-8-10-12', '')}, {factor}x",
    row.gin_files,
    {"FLOP_FACTOR": factor, **LARGE_FACTORS.get(factor, {})},
  )


SWEEP = Table(
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
  notes=(
    "At 1.6x and 2.0x RaPTr and stacking have the stages 3-6-9-12, since"
    " stages that start at half of the model cannot save so much.",
  ),
)

# Those of 12 layers are the scales'.
DEPTHS = {
  6: {"PATH_LENGTHS": "(3, 4, 5, 6)", "STACKING_LENGTHS": "(3, 4, 5, 6)"},
  12: {},
  24: {"PATH_LENGTHS": "(12, 16, 20, 24)", "STACKING_LENGTHS": "(12, 18, 24)"},
}


def at_depth(row: Row, depth: int) -> Row:
  """The row with a model of another depth than 12."""
  label = row.label.replace(" 6-8-10-12", "").removesuffix(", full FLOPs")
  if depth == 12:
    return dataclasses.replace(row, label=f"{label}, 12 layers")
  return Row(
    f"{row.name}_depth_{depth}",
    f"{label}, {depth} layers",
    row.gin_files,
    {"NUM_LAYERS": str(depth), **DEPTHS[depth]},
  )


TRANSITIONS = Table(
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
  notes=(
    "Progressive layer dropping and dense training have no stages: they are"
    " in the picture, for comparison. The learning rate is that of 12 layers at"
    " all depths. In its first step after a growth a stacked model has a small"
    " one (REWARMUP_STEPS), which a step of RaPTr has not.",
  ),
)

TABLES = {
  table.name: table
  for table in (METHODS, ABLATION, SWEEP, TRANSITIONS, UL2_METHODS)
}
