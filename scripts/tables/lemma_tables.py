"""What `theory_lemma.py` measured, as Markdown tables."""

from collections.abc import Mapping

import numpy as np

from raptr_jax.theory import lemma

from . import pages
from .lemma_runs import DEEP, WIDTH, Record, cells_of, gaps_of, slope_of
from .statistics import Estimate

# Exponents of the paper's rates; "neither" is not among its cases.
RATES: dict[str, tuple[str, float | None]] = {
  "residual + LN": ("O(L^-0.5)", -0.5),
  "residual only": ("Omega(1)", 0.0),
  "LN only": ("Omega(1)", 0.0),
  "neither": (pages.MISSING, None),
}
TOLERANCE = 0.1


def slope_table(measured: Record) -> str:
  """Exponents of each form next to the paper's rate."""
  rows = []
  for form, (rate, exponent) in RATES.items():
    cells = cells_of(measured, form, WIDTH)
    deep = cells_of(measured, form, WIDTH, DEEP)
    value = slope_of(deep)
    verdict = _verdict(value.mean, exponent)
    depths = [cell["depth"] for cell in deep]
    limits = [lemma.FORMS[form].wide_limit(depth) for depth in depths]
    limit = float(lemma.fit_exponents(depths, np.array(limits)))
    rows.append(
      (
        form,
        rate,
        _interval(slope_of(cells)),
        _interval(value),
        verdict,
        f"{limit:z.3f}",
      )
    )
  head = ("form", "paper", "slope, all L", f"slope, L >= {DEEP}", "verdict")
  return pages.table((*head, "slope of D -> infinity"), rows)


def _verdict(slope: float, exponent: float | None) -> str:
  if exponent is None:
    return pages.MISSING
  off = abs(slope - exponent)
  if off <= TOLERANCE:
    return f"agrees (within {TOLERANCE:g} of {exponent:g})"
  return f"off by {off:.3f} from {exponent:g}"


def gap_table(measured: Record) -> str:
  """The gap of each form by depth, and its limit."""
  columns = []
  for form in RATES:
    depths, gaps = gaps_of(cells_of(measured, form, WIDTH))
    means, spreads = gaps.mean(1), gaps.std(1, ddof=1)
    limits = [lemma.FORMS[form].wide_limit(depth) for depth in depths]
    columns.append(
      [
        f"{m:.3f} ± {s:.3f} ({w:.3f})"
        for m, s, w in zip(means, spreads, limits)
      ]
    )
  return pages.table(("L", *RATES), zip(map(str, depths), *columns))


def width_table(measured: Record) -> str:
  """Exponents over the deep networks of each form, by width."""
  widths = sorted({cell["width"] for cell in measured["lemma"]["cells"]})
  slopes = [
    [
      _interval(slope_of(cells_of(measured, form, width, DEEP)))
      for form in RATES
    ]
    for width in widths
  ]
  rows = [(str(width), *row) for width, row in zip(widths, slopes)]
  return pages.table(("D", *RATES), rows)


def depth_table(parts: Mapping[int, Record]) -> str:
  """Gaps and losses of trained models, a line a depth."""
  rows = []
  for depth, part in parts.items():
    row = [str(depth)]
    for when in ("before", "after"):
      effect = part[when]
      row += [
        f"{np.mean(effect['psi']):.3f}",
        f"{effect['loss']:.4f}",
        f"{np.mean(effect['loss_change']):+.4f}",
      ]
    rows.append(row)
  names = ("gap", "L_2", "L_1 - L_2")
  head = [f"{name}, {when}" for when in ("before", "after") for name in names]
  return pages.table(("layers", *head), rows)


def layer_table(parts: Mapping[int, Record]) -> str:
  """What bypassing each layer of the trained models changes."""
  head = ["layer"]
  for depth in parts:
    head += [f"{depth}: psi, before", "psi, after", "loss change, after"]
  rows = []
  for layer in range(max(parts)):
    row = [str(layer + 1)]
    for depth, part in parts.items():
      if layer >= depth:
        row += [""] * 3
        continue
      before, after = part["before"], part["after"]
      row += [
        f"{before['psi'][layer]:.3f}",
        f"{after['psi'][layer]:.3f}",
        f"{after['loss_change'][layer]:+.4f}",
      ]
    rows.append(row)
  return pages.table(head, rows)


def _interval(value: Estimate) -> str:
  low, high = value.interval
  return f"{value.mean:.3f} [{low:.3f}, {high:.3f}]"
