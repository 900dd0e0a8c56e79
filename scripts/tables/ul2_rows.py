"""The rows of the UL2 table: both model families at a FLOP factor of 1.2."""

from typing import Any

from raptr_jax.reports.axes import BLACK, BLUE, GREY, ORANGE, SKY, VERMILION
from tables.table import Comparison, Row, Table
from tables.views import LOSSES

# Equally long stages with a mean path length of 1/1.2 of each stack.
EQUAL_STAGES = {
  "ul2_decoder": {
    "tiny": "(8, 10, 12)",
    "small": "(8, 10, 12)",
    "paper": "(16, 20, 24)",
  },
  "ul2_encdec": {
    "tiny": "(4, 5, 6)",
    "small": "(4, 5, 6)",
    "paper": "(16, 20, 24)",
  },
}


def _comparison(family: str) -> Comparison:
  def row(
    name: str, label: str, method: str | None = None, **fields: Any
  ) -> Row:
    return Row(
      f"{family}_{name}",
      label,
      (f"methods/{method or name}.gin",),
      family=family,
      **fields,
    )

  dense = row("dense", "dense, full FLOPs", color=BLACK)
  equal_flops = row("dense_equal_flops", "dense, equal FLOPs", color=GREY)
  raptr = row("raptr", "RaPTr, proportional stages", color=VERMILION)
  raptr_equal = row(
    "raptr_equal_stages",
    "RaPTr, equal stages",
    "raptr",
    by_scale={
      scale: {"PATH_LENGTHS": lengths}
      for scale, lengths in EQUAL_STAGES[family].items()
    },
  )
  constant = row("constant", "constant path length", color=SKY)
  stacking = row("gradual_stacking", "gradual stacking", color=BLUE)
  midas = row("midas", "MidAS", color=ORANGE)
  return Comparison(
    rows=(dense, equal_flops, raptr, raptr_equal, constant, stacking, midas),
    references=(dense.name, equal_flops.name),
    curves=tuple(
      r.name for r in (dense, equal_flops, raptr, constant, stacking, midas)
    ),
    verdicts=(raptr.name, raptr_equal.name),
  )


UL2_METHODS = Table(
  name="ul2_methods",
  title="UL2: RaPTr and its rivals at 1.2x",
  comparisons=tuple(map(_comparison, EQUAL_STAGES)),
  view=LOSSES,
  notes=(
    """\
What readers should know:

- The paper (arXiv 2402.05913) trained UL2 at 1.2x and reports the same
  perplexity as dense training. Neither its stages nor whether its model was a
  decoder or an encoder-decoder is confirmed. We show both readings of its
  stages: proportional stages start at half of the model, and stage s of 4 lasts
  in proportion to s; equal stages start at two thirds, and all 3 are equally
  long. Both have a factor of 1.2. None of the paper's numbers is shown, since
  none is confirmed.
- The two families read the same text in rows of different lengths and formats.
  Their losses are not comparable, and each has its own learning rate.
- In the encoder-decoder a method's path lengths apply to each stack, and the
  stacks draw independently. Its paths have exact lengths, so that few programs
  are compiled; the decoder's have them only in the mean, as in the paper.
- All rows of a family share the learning rate, its schedule and the batches of
  the dense row. After each growth of a stacked model the rate is warmed up
  again.
- *dense, equal FLOPs* has the number of steps that costs what the methods cost
  including embeddings and head: slightly more than its FLOP factor of blocks
  would give.
- Sizes, steps and text are our choice; at scale `paper` they follow our reading
  of the paper.
- Each interval holds for one comparison: of some twenty, about one is expected
  to miss the true value.\
""",
  ),
)
