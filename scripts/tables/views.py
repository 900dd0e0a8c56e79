"""What pages show of a table: final losses, or losses around stage starts."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

from tables import figures, results
from tables.pages import MISSING, markdown_table, number
from tables.results import Estimate, Result, estimate, paired_difference
from tables.table import Comparison, Row, Table, View

EXPLANATION = """\
- *solved for*: the parameter that was solved for to meet the row's FLOP factor.
- *FLOP factor*: FLOPs of the dense row divided by those of this row; 1.333x
  saves 25.0 %. *Nominal* (from expected path lengths) and *spent* (from the
  paths that were drawn) count the transformer blocks only; the next column
  counts spent FLOPs including embeddings and head. The optimizer is not
  counted.
- *evaluation loss*: of the full model after the last step, on held-out text, in
  nats per predicted token: mean ± standard deviation over seeds (number of
  seeds).
- *difference*: this row's evaluation loss minus the reference's, paired by
  seed; negative if this row is better. Mean and 95 % interval by Student's t.
- *speed-up*: training time of the dense row divided by that of this row,
  without compilation, evaluation and checkpoints; median over seeds. Other load
  on the machine disturbs it.\
"""
PAPER_EXPLANATION = """\
- *paper (BERT-Base)*: the evaluation loss in arXiv 2402.05913, where confirmed.
  Its model and text differ from ours: compare differences, not values.\
"""
KINDS_EXPLANATION = """\
- *loss by denoiser*: the evaluation loss on the held-out examples of each
  denoiser, weighted by their predicted tokens; mean over seeds.\
"""
TRANSITION_EXPLANATION = """\
A stage that begins at step b trains other layers from its first step on.
*Before* is the loss after b steps, *after one step* the loss after b + 1 steps;
for methods that grow the model, *grown* is the loss of the grown model before
its first step. Means over seeds. The difference is *after one step* minus
*before*, with its standard deviation over seeds (number of seeds).\
"""


def loss_sections(table: Table, found: Mapping[str, Result]) -> list[str]:
  """Losses and costs of each comparison, and how to read them."""
  has_parts = len(table.comparisons) > 1
  sections = []
  for part in table.comparisons:
    sections += [
      f"## {part.title}" if has_parts else "",
      _loss_table(part, found),
      _verdicts(part, found),
      _kind_table(part, found),
    ]
  sections.append("## How to read it" if has_parts else "")
  explanations = [EXPLANATION]
  if _has_paper(table.rows):
    explanations.append(PAPER_EXPLANATION)
  if any(_kinds(result) for result in found.values()):
    explanations.append(KINDS_EXPLANATION)
  return [*sections, "\n".join(explanations)]


def _loss_table(part: Comparison, found: Mapping[str, Result]) -> str:
  """Final losses and costs."""
  dense = found[part.dense.name]
  columns: dict[str, Callable[[Result], str]] = {
    "method": lambda r: r.row.label,
    "solved for": _solved_for,
    "FLOP factor, nominal": lambda r: _times(results.nominal_factor(r, dense)),
    "spent": lambda r: _times(results.spent_factor(r, dense)),
    "with embeddings and head": lambda r: _times(
      results.whole_factor(r, dense)
    ),
    "evaluation loss": lambda r: _loss(estimate(list(r.losses.values()))),
  }
  for name in part.references:
    columns[f"difference to {found[name].row.label}"] = _difference(found[name])
  columns["speed-up"] = lambda r: _times(results.speed_up(r, dense), ".2f")
  if _has_paper(part.rows):
    columns["paper (BERT-Base)"] = lambda r: r.row.paper or MISSING
  lines = [
    [cell(found[row.name]) for cell in columns.values()] for row in part.rows
  ]
  return markdown_table(list(columns), lines)


def _has_paper(rows: Iterable[Row]) -> bool:
  return any(row.paper for row in rows)


def _kind_table(part: Comparison, found: Mapping[str, Result]) -> str:
  """Mean loss by kind of held-out example; empty if there is one kind."""
  shown = [found[row.name] for row in part.rows]
  kinds = next(filter(None, map(_kinds, shown)), ())
  if not kinds:
    return ""
  lines = []
  for result in shown:
    means = (result.mean_loss_of(kind) for kind in kinds)
    cells = (number(mean, ".4f") for mean in means)
    lines.append([result.row.label, *cells])
  return markdown_table(["loss by denoiser", *kinds], lines)


def _kinds(result: Result) -> tuple[str, ...]:
  return tuple((result.summary or {}).get("loss_by_example_kind", ()))


def _verdicts(part: Comparison, found: Mapping[str, Result]) -> str:
  """Some rows' differences to each reference, in words."""
  sentences = [
    verdict(
      found[name].row.label,
      found[reference].row.label,
      paired_difference(found[name].losses, found[reference].losses),
    )
    for name in part.verdicts
    for reference in part.references
  ]
  return "\n".join(f"- {sentence}" for sentence in sentences)


def verdict(method: str, reference: str, difference: Estimate | None) -> str:
  """A sentence on whether two rows differ."""
  head = f"{method} against {reference}:"
  if difference is None:
    return f"{head} no seed has finished for both."
  if difference.n < 2:
    return f"{head} {difference.mean:+.4f} with one seed, which may be due to chance."
  low, high = difference.interval
  if high < 0:
    finding = "a lower loss"
  elif low > 0:
    finding = "a higher loss"
  else:
    finding = "no difference that these seeds could tell from chance"
  return (
    f"{head} {finding}: {difference.mean:+.4f}, 95 % interval {low:+.4f} to"
    f" {high:+.4f} ({difference.n} seeds)."
  )


def _solved_for(result: Result) -> str:
  solved_for = (result.summary or {}).get("solved_for") or {}
  numbers = (f"{name} = {value:.4g}" for name, value in solved_for.items())
  return ", ".join(numbers) or MISSING


def _times(factor: float | None, form: str = ".3f") -> str:
  return MISSING if factor is None else f"{factor:{form}}x"


def _loss(loss: Estimate | None) -> str:
  if loss is None:
    return MISSING
  spread = "" if loss.n < 2 else f" ± {loss.sd:.4f}"
  return f"{loss.mean:.4f}{spread} ({loss.n})"


def _difference(reference: Result) -> Callable[[Result], str]:
  def cell(result: Result) -> str:
    if result is reference:
      return MISSING
    difference = paired_difference(result.losses, reference.losses)
    if difference is None:
      return MISSING
    if difference.n < 2:
      return f"{difference.mean:+.4f} ({MISSING})"
    low, high = difference.interval
    return f"{difference.mean:+.4f} ({low:+.4f} to {high:+.4f})"

  return cell


def transition_sections(table: Table, found: Mapping[str, Result]) -> list[str]:
  """Losses around each stage boundary of each row."""
  head = (
    "method",
    "step b",
    "before",
    "grown",
    "after one step",
    "difference",
  )
  lines = [
    [table.label(result.row), *cells]
    for result in found.values()
    for cells in _transition_cells(result)
  ]
  return [markdown_table(head, lines), TRANSITION_EXPLANATION]


def _transition_cells(result: Result) -> Iterator[list[str]]:
  """A line's cells for each boundary, or dashes."""
  if not result.boundaries:
    yield [MISSING] * 5
  by_seed = [
    results.transitions(run, result.boundaries) for run in result.runs.values()
  ]
  for step in result.boundaries:
    around = [run[step] for run in by_seed]
    differences = [
      t.after - t.before
      for t in around
      if t.after is not None and t.before is not None
    ]
    yield [
      f"{step:,}",
      *(
        _mean(getattr(t, field.name) for t in around)
        for field in dataclasses.fields(results.Transition)
      ),
      _change(estimate(differences)),
    ]


def _mean(losses: Iterable[float | None]) -> str:
  mean = estimate([loss for loss in losses if loss is not None])
  return number(mean.mean if mean else None, ".4f")


def _change(difference: Estimate | None) -> str:
  if difference is None:
    return MISSING
  sd = "" if difference.n < 2 else f" ± {difference.sd:.4f}"
  return f"{difference.mean:+.4f}{sd} ({difference.n})"


LOSSES = View(figures.draw_losses, loss_sections)
SWEEP = View(figures.draw_sweep, loss_sections)
TRANSITIONS = View(figures.draw_transitions, transition_sections)
