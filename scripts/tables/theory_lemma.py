"""The lemma of RaPTr's theory, on random networks and on trained ones.

All that `run` measures is in `results.json`, and all that `report` shows is
made from it.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from raptr_jax.theory import lemma
from tasks import records

from . import lemma_figures, lemma_runs, lemma_tables, pages
from .lemma_runs import DEEP, WIDTH, Record

NAME = "theory_lemma"
RESULTS_FILE = "results.json"


def run(folder: Path, model_dirs: dict[int, Path]) -> None:
  """Measures what is not in `folder`'s results.json yet.

  Args:
    folder: made if missing.
    model_dirs: finished runs of BERTs, by number of layers; may be empty. Data
      that they name by a relative path is looked for from here.

  Raises:
    ValueError: if a run has another number of layers, or is not finished.
    raptr_jax.main.ConfigurationError: if a run cannot be put together again.
  """
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / RESULTS_FILE
  results: Record = {"trained": {}}
  if path.exists():
    results = json.loads(path.read_text(encoding="utf-8"))
  if "lemma" not in results:
    results["lemma"] = lemma_runs.measure_networks()
    records.write_json(path, results)
  missing = [d for d in sorted(model_dirs) if str(d) not in results["trained"]]
  for depth in lemma_runs.shown(
    missing, lambda d: d * d, lambda d: f"{d}-layer BERT"
  ):
    results["trained"][str(depth)] = lemma_runs.measure_trained(
      depth, model_dirs[depth]
    )
    records.write_json(path, results)


def report(folder: Path, results: Path, command: str) -> None:
  """Writes theory_lemma.md and .png from `folder`'s results.json.

  Args:
    folder: where `run` has been.
    results: folder of the page and the picture; made if missing.
    command: what makes them again.
  """
  text = (folder / RESULTS_FILE).read_text(encoding="utf-8")
  measured = json.loads(text)
  picture = results / f"{NAME}.png"
  lemma_figures.draw(picture, measured)
  pages.write(results / f"{NAME}.md", _page(measured, picture.name, command))


def _page(measured: Record, picture: str, command: str) -> list[str]:
  """Paragraphs of the page."""
  part = measured["lemma"]
  return [
    "# Leaving out one layer: the lemma, and trained models",
    "How much does a network's output change when one of its L layers is"
    " bypassed? RaPTr's theory (arXiv 2402.05913) says of linear networks at"
    " initialisation: by O(1/sqrt(L)) of its size with residual connections"
    " and layer norm, by Omega(1) if either is missing. We measure the *gap*,"
    " the mean over layers l and random inputs x of psi_l ="
    " \\|F_{-l}(x) - F(x)\\| / \\|F(x)\\|, for layers y + W LN(y) with W from"
    f" N(0, 1/D), of width D = {WIDTH} unless said otherwise,"
    f" {len(part['seeds'])} seeds, {part['inputs']} inputs for each. Width,"
    " inputs and this form of the mean are our choices.",
    f"![Gap by depth and psi by layer]({picture})",
    "## Slopes",
    "Exponents of the gap in L, fitted for each seed on log-log axes: mean over"
    " seeds and 95 % interval (Student's t). The interval tells the scatter"
    " over seeds, not how far the gap is from a power law.",
    lemma_tables.slope_table(measured),
    "Residual + LN comes down to -0.5 from above: to first order and for"
    " D -> infinity psi_l is 1/sqrt(l + 1), so that the gap is 2/sqrt(L) -"
    " 2.46/L + ..., whose own slope over the same depths is in the last column."
    " Where L is not small against D the other forms leave their limits: a"
    " product of that many matrices turns all vectors to nearly one direction."
    " Without a norm F(x) is then short for some networks and inputs, which"
    " lifts the mean of a ratio that has it below, and scatters it over seeds;"
    " with a norm and no residuals more and more outputs are nearly parallel,"
    " which lowers it. The slopes by width below have the least scatter at the"
    " largest width. Omega(1) is a bound from below: growth does not contradict"
    " it.",
    "## Gap by depth",
    lemma_tables.gap_table(measured),
    "Mean and standard deviation over seeds; in brackets the limit D ->"
    " infinity to first order, derived in `raptr_jax/theory/lemma.py`.",
    "## Slopes by width",
    lemma_tables.width_table(measured),
    f"Of the gap over L >= {DEEP}.",
    *_trained_page(measured["trained"], command),
    "## Where and when",
    _provenance(measured, command),
  ]


def _trained_page(trained: Mapping[str, Record], command: str) -> list[str]:
  """The part on BERTs; a line on how to get it if there are none."""
  title = "## Trained models"
  if not trained:
    return [
      title,
      "None were measured: they come with the runs of"
      " `python scripts/reproduce.py --table transitions`, of the same scale,"
      " finished before this page is made.",
    ]
  parts = lemma_runs.by_depth(trained)
  runs = "; ".join(
    f"{depth} layers: {part['method']}, width {part['width']},"
    f" {part['steps']:,} steps, seed {part['seed']},"
    f" {part['rows']:,} held-out rows"
    for depth, part in parts.items()
  )
  paragraphs = [
    title,
    "The same on BERTs of this project, before (the same initialisation) and"
    " after training: psi_l is of the hidden states at the end of the stack"
    " (after its norm), mean over tokens. L_2 is the loss of the full model,"
    " L_1 the mean over l of the loss without layer l, in nats per masked"
    f" token. One run for each depth, so without an interval. {runs}.",
    lemma_tables.depth_table(parts),
  ]
  if len(parts) > 1:
    slopes = {when: _trained_slope(parts, when) for when in ("before", "after")}
    paragraphs.append(
      f"Slope of the gap over depth: {slopes['before']:.2f} before training,"
      f" {slopes['after']:.2f} after. (The paper quotes L^-0.88 as the worst"
      " case for BERT.)"
    )
  return [
    *paragraphs,
    "## Trained models, by layer",
    lemma_tables.layer_table(parts),
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
