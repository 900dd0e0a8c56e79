"""What the runs of `theory_polynomial.py` came to, as Markdown."""

from collections.abc import Mapping

import numpy as np

from . import pages
from .figures import METHOD_STYLES
from .polynomial_runs import Record
from .statistics import estimate, paired_difference

ERROR_NOTE = """\
Mean ± standard deviation over seeds. The error of a degree is the squared error
of the network's coefficients of the target's terms of this degree, over the
squared size of the coefficients: 1 for a network that knows nothing of them, 0
for one that has learned them. *Other parities* is the squared size of all that
the network computes besides the target's terms. The loss, the mean squared
error, is the mean of the degrees' errors plus that of the other parities. All
are of the full network, over all inputs, without sampling.\
"""

COST_NOTE = """\
FLOP factor: FLOPs of the dense runs over those of this row, 1.333x means that
25.0 % are saved. Of the residual blocks alone: nominal, from expected path
lengths, and spent, from the paths that were drawn. The linear maps before and
after them, the optimizer and the evaluations are not counted. Seconds are those
of a run with its evaluations, the median over seeds; other programs on the
machine disturb them.\
"""


def error_table(found: Record) -> str:
  """Each degree's error after the last step, a column a method."""
  final = {name: _final(row) for name, row in found["methods"].items()}
  titles = {name: f"mean of {half}" for name, half in _halves(found).items()}
  rows = [
    [
      titles.get(measure, measure),
      *(_cell(values[measure]) for values in final.values()),
    ]
    for measure in next(iter(final.values()))
  ]
  labels = [METHOD_STYLES[name][1] for name in final]
  return pages.table(["degree", *labels], rows)


def sentences(found: Record) -> str:
  """What is left of the high degrees, and RaPTr against each other method."""
  high = _halves(found)["high"]
  errors = {name: _final(row)["high"] for name, row in found["methods"].items()}
  ranked = sorted(errors, key=lambda name: np.mean(list(errors[name].values())))
  left = (f"{METHOD_STYLES[name][1]} {_cell(errors[name])}" for name in ranked)
  lines = [
    f"Mean error of {high} that is left at the end, the lowest first:"
    f" {'; '.join(left)}."
  ]
  lines += [
    f"RaPTr against {METHOD_STYLES[name][1]}, {high}:"
    f" {_verdict(errors['raptr'], errors[name])}"
    for name in errors
    if name != "raptr"
  ]
  return "\n".join(f"- {line}" for line in lines)


def _verdict(
  values: Mapping[int, float], reference: Mapping[int, float]
) -> str:
  difference = paired_difference(values, reference)
  if difference is None or difference.n < 2:
    return "too few seeds to tell."
  low, high = difference.interval
  lower = sum(values[seed] < reference[seed] for seed in values)
  if high < 0:
    verdict = "a lower error"
  elif low > 0:
    verdict = "a higher error"
  else:
    verdict = "no difference that these seeds could tell from chance"
  return (
    f"{verdict}, {difference.mean:+.3f}, 95 % interval {low:+.3f} to"
    f" {high:+.3f}; lower in {lower} of {difference.n} seeds."
  )


def cost_table(found: Record) -> str:
  """FLOP factors and seconds of each method."""
  sizes = found["sizes"]
  dense_layers = sizes["total_steps"] * sizes["num_layers"]
  head = [
    "method",
    "solved",
    "steps",
    "FLOP factor, nominal",
    "spent",
    "seconds",
  ]
  rows = []
  for name, row in found["methods"].items():
    solved = (f"{key} = {value:.4g}" for key, value in row["solved"].items())
    layers_run = np.mean([run["layers_run"][-1] for run in row["runs"]])
    rows.append(
      [
        METHOD_STYLES[name][1],
        ", ".join(solved) or pages.MISSING,
        f"{row['total_steps']:,}",
        f"{row['flop_factor_nominal']:.3f}x",
        f"{dense_layers / layers_run:.3f}x",
        f"{np.median([run['seconds'] for run in row['runs']]):.0f}",
      ]
    )
  return pages.table(head, rows)


def _final(row: Record) -> dict[str, dict[int, float]]:
  """Measures after the last step, by seed: degrees, their halves, the loss."""
  values: dict[str, dict[int, float]] = {}
  for run in row["runs"]:
    errors = run["degree_errors"][-1]
    half = len(errors) // 2
    loss = run["losses"][-1]
    measures = {
      **{str(degree): error for degree, error in enumerate(errors, 1)},
      "low": float(np.mean(errors[:half])),
      "high": float(np.mean(errors[half:])),
      "other parities": loss - float(np.mean(errors)),
      "loss": loss,
    }
    for name, value in measures.items():
      values.setdefault(name, {})[run["seed"]] = value
  return values


def _halves(found: Record) -> dict[str, str]:
  """What the two halves of the degrees are called."""
  last = found["sizes"]["max_degree"]
  half = last // 2
  return {
    "low": f"degrees 1 to {half}",
    "high": f"degrees {half + 1} to {last}",
  }


def _cell(values: Mapping[int, float]) -> str:
  found = estimate(list(values.values()))
  if found is None:
    return pages.MISSING
  spread = f" ± {found.sd:.3f}" if found.n > 1 else ""
  return f"{found.mean:.3f}{spread}"
