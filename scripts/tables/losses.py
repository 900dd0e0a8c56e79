"""Final losses and costs of the rows of a table, as Markdown."""

from collections.abc import Callable, Iterable, Mapping

from . import pages, results
from .results import Result
from .statistics import Estimate, estimate, paired_difference
from .table import Comparison, Row, Table

EXPLANATION = """\
- *solved*: the number that was solved for, so that the row spends the FLOPs of
  its factor.
- *FLOP factor*: FLOPs of the dense row over those of this row; 1.333x means
  that 25.0 % are saved. Of the transformer blocks alone: nominal, from expected
  path lengths, and spent, from the paths that were drawn; then spent FLOPs with
  embeddings and head. Operations of the optimizer are not counted.
- *evaluation loss*: of the full model after the last step, on held-out text, in
  nats per predicted token: mean ± standard deviation over seeds (their number).
- *difference*: of that loss, seed by seed, below zero if this row is better:
  mean, and its 95 % interval by Student's t.
- *speed-up*: training time of the dense row over that of this row, without
  compilation, evaluation and checkpoints; median over seeds. Other programs on
  the machine disturb it.\
"""
PAPER_EXPLANATION = """\
- *paper (BERT-Base)*: the evaluation loss in arXiv 2402.05913, where it is
  confirmed. Model and text are others: compare differences, not numbers.\
"""
KINDS_EXPLANATION = """\
- *loss by denoiser*: the evaluation loss on the held-out rows of each kind,
  with their numbers of predicted tokens as weights: mean over seeds.\
"""


def loss_sections(table: Table, found: Mapping[str, Result]) -> list[str]:
  """Losses and costs of each comparison, and how to read them."""
  has_parts = len(table.comparisons) > 1
  sections = []
  for part in table.comparisons:
    sections += [
      f"## {part.title}" if has_parts else "",
      _loss_table(part, found),
      _sentences(part, found),
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
  """Final losses and costs; dashes where no run has finished."""
  dense = found[part.dense.name]
  columns: dict[str, Callable[[Result], str]] = {
    "method": lambda r: r.row.label,
    "solved": _solved,
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
    columns["paper (BERT-Base)"] = lambda r: r.row.paper or pages.MISSING
  lines = [
    [cell(found[row.name]) for cell in columns.values()] for row in part.rows
  ]
  return pages.table(list(columns), lines)


def _has_paper(rows: Iterable[Row]) -> bool:
  return any(row.paper for row in rows)


def _kind_table(part: Comparison, found: Mapping[str, Result]) -> str:
  """Mean loss by kind of held-out rows; empty if they are of one kind."""
  shown = [found[row.name] for row in part.rows]
  kinds = next(filter(None, map(_kinds, shown)), ())
  if not kinds:
    return ""
  lines = []
  for result in shown:
    means = (result.mean_loss_of(kind) for kind in kinds)
    cells = (pages.number(mean, ".4f") for mean in means)
    lines.append([result.row.label, *cells])
  return pages.table(["loss by denoiser", *kinds], lines)


def _kinds(result: Result) -> tuple[str, ...]:
  return tuple((result.summary or {}).get("loss_by_kind", ()))


def _sentences(part: Comparison, found: Mapping[str, Result]) -> str:
  """What the numbers say of some rows against each reference."""
  sentences = [
    _sentence(
      found[name].row.label,
      found[reference].row.label,
      paired_difference(found[name].losses, found[reference].losses),
    )
    for name in part.verdicts
    for reference in part.references
  ]
  return "\n".join(f"- {sentence}" for sentence in sentences)


def _sentence(method: str, reference: str, difference: Estimate | None) -> str:
  head = f"{method} against {reference}:"
  if difference is None:
    return f"{head} no seed has finished for both."
  if difference.n < 2:
    return (
      f"{head} {difference.mean:+.4f} with one seed, which says nothing about"
      " chance."
    )
  low, high = difference.interval
  if high < 0:
    verdict = "a lower loss"
  elif low > 0:
    verdict = "a higher loss"
  else:
    verdict = "no difference that these seeds could tell from chance"
  return (
    f"{head} {verdict}: {difference.mean:+.4f}, 95 % interval {low:+.4f} to"
    f" {high:+.4f} ({difference.n} seeds)."
  )


def _solved(result: Result) -> str:
  solved = (result.summary or {}).get("solved") or {}
  numbers = (f"{name} = {value:.4g}" for name, value in solved.items())
  return ", ".join(numbers) or pages.MISSING


def _times(factor: float | None, form: str = ".3f") -> str:
  return pages.MISSING if factor is None else f"{factor:{form}}x"


def _loss(loss: Estimate | None) -> str:
  if loss is None:
    return pages.MISSING
  spread = "" if loss.n < 2 else f" ± {loss.sd:.4f}"
  return f"{loss.mean:.4f}{spread} ({loss.n})"


def _difference(reference: Result) -> Callable[[Result], str]:
  def cell(result: Result) -> str:
    if result is reference:
      return pages.MISSING
    difference = paired_difference(result.losses, reference.losses)
    if difference is None:
      return pages.MISSING
    if difference.n < 2:
      return f"{difference.mean:+.4f} ({pages.MISSING})"
    low, high = difference.interval
    return f"{difference.mean:+.4f} ({low:+.4f} to {high:+.4f})"

  return cell
