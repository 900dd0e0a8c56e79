"""The rows of the UL2 table: both model families at a FLOP factor of 1.2."""

from collections.abc import Mapping

from .table import Comparison, Row, Table

# Equally long stages whose mean is 1/1.2 of the model, per stack.
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
    name: str,
    label: str,
    method: str | None = None,
    by_scale: Mapping[str, Mapping[str, str]] | None = None,
  ) -> Row:
    return Row(
      f"{family}_{name}",
      label,
      (f"methods/{method or name}.gin",),
      by_scale=by_scale or {},
      family=family,
    )

  dense = row("dense", "dense, full FLOPs")
  equal_flops = row("dense_equal_flops", "dense, equal FLOPs")
  raptr = row("raptr", "RaPTr, proportional stages")
  raptr_equal = row(
    "raptr_equal_stages",
    "RaPTr, equal stages",
    "raptr",
    {
      scale: {"PATH_LENGTHS": lengths}
      for scale, lengths in EQUAL_STAGES[family].items()
    },
  )
  constant = row("constant", "constant path length")
  stacking = row("gradual_stacking", "gradual stacking")
  midas = row("midas", "MidAS")
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
  notes=(
    """\
What a reader should know:

- The paper (arXiv 2402.05913) trained UL2 at 1.2x and reports the same
  perplexity as dense training; which stages it had is not confirmed, nor whether its
  model was a decoder or an encoder-decoder. Of its stages there are two
  readings, and both are here: proportional ones begin at half of the model,
  and stage s of 4 lasts in proportion to s; equal ones begin at two thirds,
  and all 3 are equally long. Both have a factor of 1.2. No number of it is
  shown, since none is confirmed.
- The two families read the same text in rows of other lengths and other forms,
  so their losses do not compare with each other, and each has a learning rate
  of its own.
- In the encoder-decoder a method's path lengths are those of each stack, which
  draw independently. Its paths have exact lengths, so that few programs are
  compiled; the decoder's have them in the mean alone, as the paper's have.
- All rows of a family have the learning rate, its schedule and the batches of
  its dense row. After each growth of a stacked model the rate is warmed up
  again.
- *dense, equal FLOPs* has as many steps as cost what the methods cost with
  embeddings and head: a few more than its FLOP factor of blocks would give.
- Sizes, steps and text are our choice; at scale `paper` they are our reading.
- The intervals are of one comparison each: of some twenty, one is expected to
  leave out the truth.\
""",
  ),
)
