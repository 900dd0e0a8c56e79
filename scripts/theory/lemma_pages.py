"""The page of `theory_lemma`, made from its results.json."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from raptr_jax.theory import lemma
from tables import pages
from tables.evidence import Evidence, Place, place_of
from tables.results import Estimate
from theory.lemma_figures import draw
from theory.lemma_runs import (
  DEEP,
  RESULTS_FILE,
  WIDTH,
  Record,
  by_depth,
  cells_of,
  gaps_of,
  slope_of,
)

NAME = "theory_lemma"
# The paper's rate of each form's gap, and its exponent. It has none for
# "neither".
RATES: dict[str, tuple[str, float | None]] = {
  "residual + LN": ("O(L^-0.5)", -0.5),
  "residual only": ("Omega(1)", 0.0),
  "LN only": ("Omega(1)", 0.0),
  "neither": (pages.MISSING, None),
}
TOLERANCE = 0.1
WHEN = ("before", "after")  # Training.


def report(
  folder: Path, results: Path, command: str, *, scale: str = "tiny"
) -> Place:
  """Writes theory_lemma.md and .png.

  Args:
    folder: of `lemma_runs.run`.
    results: folder of the page and the picture; made if missing.
    command: the command that makes them, for the page.
    scale: of the trained models.

  Returns:
    Where the page is: in the folder `results`, or in one for trials.
  """
  text = (folder / RESULTS_FILE).read_text(encoding="utf-8")
  measured = json.loads(text)
  rows = {"networks": (0, len(measured["lemma"]["seeds"]))}
  for depth, part in by_depth(measured["trained"]).items():
    rows[f"{depth} layers"] = (part["steps"], 1)
  evidence = Evidence((f"scale={scale}",), rows)
  place = place_of(results, NAME, evidence)
  picture = place.page.with_suffix(".png")
  draw(picture, measured)
  page = [
    *_networks_page(measured, picture.name),
    *_trained_page(measured["trained"]),
    "## Where and when",
    _provenance(measured, command),
    evidence.comment(),
  ]
  pages.write_page(place.page, page)
  return place


def _networks_page(measured: Record, picture: str) -> list[str]:
  """The sections on random networks."""
  part = measured["lemma"]
  return [
    "# Leaving out one layer: the lemma, and trained models",
    "How much does a network's output change when one of its L layers is"
    " bypassed? For linear networks at initialisation, RaPTr's theory (arXiv"
    " 2402.05913) gives a relative change of O(1/sqrt(L)) with residual"
    " connections and layer norm, and of Omega(1) if either is missing. We"
    " measure the *gap*, the mean over layers l and random inputs x of psi_l ="
    " \\|F_{-l}(x) - F(x)\\| / \\|F(x)\\|. Layers are y + W LN(y) with W from"
    f" N(0, 1/D), of width D = {WIDTH} unless stated otherwise, with"
    f" {len(part['seeds'])} seeds and {part['inputs']} inputs each. The width,"
    " the inputs and this form of the mean are our choices.",
    f"![Gap by depth and psi by layer]({picture})",
    "## Slopes",
    "Exponents of the gap in L, fitted on log-log axes for each seed: mean over"
    " seeds and 95 % interval (Student's t). The interval shows the scatter over"
    " seeds, not how far the gap is from a power law.",
    slope_table(measured),
    "The slope of residual + LN approaches -0.5 from above: to first order and"
    " for D -> infinity psi_l is 1/sqrt(l + 1), so the gap is 2/sqrt(L) -"
    " 2.46/L + O(L^-1.5). The last column gives the slope of this limit over the same"
    " depths. Where L is not small compared with D, the other forms leave their"
    " limits, since a product of that many matrices turns all vectors towards"
    " nearly one direction. Without a norm, F(x) is then short for some networks"
    " and inputs; it is the denominator of psi, so this raises the mean and"
    " scatters it over seeds. With a norm and no residuals, more and more"
    " outputs are nearly parallel, which lowers the mean. Slopes scatter least"
    " at the largest width (below). Omega(1) is a lower bound, which growth does"
    " not contradict.",
    "## Gap by depth",
    gap_table(measured),
    "Mean and standard deviation over seeds; in brackets the first-order limit"
    " for D -> infinity, derived in `raptr_jax/theory/lemma.py`.",
    "## Slopes by width",
    width_table(measured),
    f"Slopes of the gap over L >= {DEEP}.",
  ]


def _trained_page(trained: Mapping[str, Record]) -> list[str]:
  """The sections on BERTs, or how to get them."""
  title = "## Trained models"
  if not trained:
    return [
      title,
      "None were measured: they come with the runs of"
      " `python scripts/reproduce.py --table transitions` at the same scale,"
      " which must finish before this page is made.",
    ]
  parts = by_depth(trained)
  runs = "; ".join(
    f"{depth} layers: {part['method']}, width {part['width']},"
    f" {part['steps']:,} steps, seed {part['seed']},"
    f" {part['rows']:,} held-out rows"
    for depth, part in parts.items()
  )
  slopes = ""
  if len(parts) > 1:
    before, after = (_trained_slope(parts, when) for when in WHEN)
    slopes = (
      f"Slope of the gap over depth: {before:.2f} before training,"
      f" {after:.2f} after. (The paper quotes L^-0.88 as the worst case for"
      " BERT.)"
    )
  return [
    title,
    "The same for BERTs of this project, before training (at the same"
    " initialisation) and after: psi_l is measured on the hidden states at the"
    " end of the stack (after its norm), mean over tokens. L_2 is the loss of"
    " the full model, L_1 the mean over l of the loss without layer l, in nats"
    " per masked token. There is one run per depth, so there are no intervals."
    f" {runs}.",
    depth_table(parts),
    slopes,
    "## Trained models, by layer",
    layer_table(parts),
  ]


def _trained_slope(parts: Mapping[int, Record], when: str) -> float:
  gaps = [np.mean(part[when]["psi"]) for part in parts.values()]
  return float(lemma.fit_exponents(list(parts), np.array(gaps)))


def _provenance(measured: Record, command: str) -> str:
  networks, trained = measured["lemma"], measured["trained"].values()
  seconds = sum(part["seconds"] for part in trained)
  note = f"seconds of computing: {networks['seconds'] + seconds:.0f}"
  if trained:
    note += f", {seconds:.0f} of them for the trained models"
  return pages.provenance(
    [part["provenance"] for part in (networks, *trained)],
    networks["seeds"],
    note,
    f"command: `{command}`",
  )


def slope_table(measured: Record) -> str:
  """Exponents of each form next to the paper's."""
  lines = []
  for form, (rate, exponent) in RATES.items():
    deep = cells_of(measured, form, WIDTH, DEEP)
    depths = [cell["depth"] for cell in deep]
    limits = [lemma.FORMS[form].wide_limit(depth) for depth in depths]
    limit = float(lemma.fit_exponents(depths, np.array(limits)))
    slope = slope_of(deep)
    lines.append(
      [
        form,
        rate,
        _interval(slope_of(cells_of(measured, form, WIDTH))),
        _interval(slope),
        _agreement(slope.mean, exponent),
        f"{limit:z.3f}",
      ]
    )
  head = ("form", "paper", "slope, all L", f"slope, L >= {DEEP}", "verdict")
  return pages.markdown_table((*head, "slope of D -> infinity"), lines)


def _agreement(slope: float, exponent: float | None) -> str:
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
    limits = [lemma.FORMS[form].wide_limit(depth) for depth in depths]
    columns.append(
      f"{mean:.3f} ± {sd:.3f} ({limit:.3f})"
      for mean, sd, limit in zip(gaps.mean(1), gaps.std(1, ddof=1), limits)
    )
  return pages.markdown_table(("L", *RATES), zip(map(str, depths), *columns))


def width_table(measured: Record) -> str:
  """Exponents of each form over the deep networks, by width."""
  lines = []
  for width in sorted({cell["width"] for cell in measured["lemma"]["cells"]}):
    cells = (cells_of(measured, form, width, DEEP) for form in RATES)
    lines.append([str(width), *(_interval(slope_of(c)) for c in cells)])
  return pages.markdown_table(("D", *RATES), lines)


def depth_table(parts: Mapping[int, Record]) -> str:
  """Gaps and losses of the trained models, one line per depth."""
  lines = []
  for depth, part in parts.items():
    line = [str(depth)]
    for effect in (part[when] for when in WHEN):
      line += [
        f"{np.mean(effect['psi']):.3f}",
        f"{effect['loss']:.4f}",
        f"{np.mean(effect['loss_change']):+.4f}",
      ]
    lines.append(line)
  names = itertools.product(WHEN, ("gap", "L_2", "L_1 - L_2"))
  head = [f"{name}, {when}" for when, name in names]
  return pages.markdown_table(("layers", *head), lines)


def layer_table(parts: Mapping[int, Record]) -> str:
  """The effects of bypassing each layer of the trained models."""
  head = ["layer"]
  for depth in parts:
    head += [f"{depth}: psi, before", "psi, after", "loss change, after"]
  lines = []
  for layer in range(max(parts)):
    line = [str(layer + 1)]
    for depth, part in parts.items():
      if layer >= depth:
        line += [""] * 3
        continue
      before, after = part["before"], part["after"]
      line += [
        f"{before['psi'][layer]:.3f}",
        f"{after['psi'][layer]:.3f}",
        f"{after['loss_change'][layer]:+.4f}",
      ]
    lines.append(line)
  return pages.markdown_table(head, lines)


def _interval(value: Estimate) -> str:
  low, high = value.interval
  return f"{value.mean:.3f} [{low:.3f}, {high:.3f}]"
