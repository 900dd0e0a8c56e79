"""The page of `theory_polynomial`, made from its results.json."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tables import pages
from tables.evidence import Evidence, Place, place_of
from tables.results import estimate, paired_difference
from theory.polynomial_figures import draw
from theory.polynomial_runs import RESULTS_FILE, Record

NAME = "theory_polynomial"
ERROR_NOTE = """\
Mean ± standard deviation over seeds. The error of a degree is the squared error
of the network's coefficients of the target's terms of that degree, relative to
the squared size of the target's coefficients: 1 if the network knows nothing of
them, 0 if it has learned them. *Other parities* is the squared size of
everything that the network computes besides the target's terms. The loss, the
mean squared error, is the mean of the degrees' errors plus that of the other
parities. All are measured on the full network over all inputs, without
sampling.\
"""
COST_NOTE = """\
FLOP factor: FLOPs of the dense runs divided by those of this row; 1.333x saves
25.0 %. *Nominal* (from expected path lengths) and *spent* (from the paths that
were drawn) count the residual blocks only, without the linear maps around them,
the optimizer and the evaluations. Seconds are those of a run including its
evaluations, median over seeds; other load on the machine disturbs them.\
"""


def report(folder: Path, results: Path, command: str) -> Place:
  """Writes theory_polynomial.md and .png.

  Args:
    folder: of `polynomial_runs.run`.
    results: folder of the page and the picture; made if missing.
    command: the command that makes them, for the page.

  Returns:
    Where the page is: in the folder `results`, or in one for trials.
  """
  text = (folder / RESULTS_FILE).read_text(encoding="utf-8")
  found = json.loads(text)
  evidence = Evidence(
    (),
    {
      name: (method["total_steps"], len(method["runs"]))
      for name, method in found["methods"].items()
    },
  )
  place = place_of(results, NAME, evidence)
  picture = place.page.with_suffix(".png")
  draw(picture, found)
  parts = _page(found, command, picture.name)
  pages.write_page(place.page, [*parts, evidence.comment()])
  return place


def _page(found: Record, command: str, picture: str) -> list[str]:
  """The paragraphs of the page, with the picture of this name."""
  return [
    "# A polynomial of degrees 1 to"
    f" {found['sizes']['max_degree']}: which are learned?",
    f"```bash\n{command}\n```",
    f"![Error of each degree over training]({picture})",
    _explanation(found),
    "## What came out",
    findings(found),
    "## Error of each degree after the last step",
    error_table(found),
    ERROR_NOTE,
    "## Cost",
    cost_table(found),
    COST_NOTE,
    "## Learning rate",
    _learning_rates(found),
    "## Where and when",
    pages.provenance(
      [found["provenance"]],
      found["seeds"],
      "seconds of all runs, including those for the learning rate:"
      f" {found['seconds']:.0f}",
    ),
  ]


def _explanation(found: Record) -> str:
  sizes = found["sizes"]
  seen = sizes["total_steps"] * sizes["batch_size"] / 2 ** sizes["num_bits"]
  return f"""\
The toy experiment of RaPTr (arXiv 2402.05913). Inputs are n random bits in
{{-1, 1}}. The target is a sum of parities, which are products of some of the
bits; a parity's degree is their number. The target has a few random parities of
each degree, all with coefficients of one size and random signs. A residual
network learns it with one layer-dropping method or another, and we measure how
much of each degree the *full* network has learned. The paper reports that
dropping more over time (progressive layer dropping) fails on the terms of high
degree, and that RaPTr learns them.

**All sizes are our choice**, since we do not know the paper's. They were chosen
so that dense training learns low degrees early and high degrees late, and so
that all runs take minutes.

{_size_table(found)}

Inputs are fresh in every step, but there are only 2^n of them, so each is seen
about {seen:.0f} times. The experiment thus shows what a method can fit, and
nothing about unseen inputs. The learning rate of each run rises over its first
{sizes["warmup_steps"]} steps and then falls linearly to 0. RaPTr's stages are
equally long. RaPTr and constant path length do not scale kept layers;
progressive layer dropping divides them by their probability. A seed determines
the target, the initial parameters and the inputs, which all methods share."""


def _size_table(found: Record) -> str:
  sizes = found["sizes"]
  lines = {
    "bits, n": f"{sizes['num_bits']}",
    "terms of the target": f"{sizes['terms_per_degree']} of each degree from 1"
    f" to {sizes['max_degree']}",
    "network": f"{sizes['num_layers']} pre-norm residual MLP blocks,"
    f" D = {sizes['width']}, F = {sizes['mlp_dim']}",
    "training": f"{sizes['total_steps']:,} steps of {sizes['batch_size']}"
    " inputs, squared error, AdamW",
    "RaPTr's path lengths": "-".join(map(str, found["path_lengths"])),
  }
  return pages.markdown_table(["size", "ours"], map(list, lines.items()))


def _learning_rates(found: Record) -> str:
  cells = [
    f"**{loss:.4f}**"
    if float(rate) == found["learning_rate"]
    else f"{loss:.4f}"
    for rate, loss in found["learning_rates"].items()
  ]
  table = pages.markdown_table(
    ["loss at the peak rate of", *found["learning_rates"]], [["dense", *cells]]
  )
  return (
    f"Tuned for dense training with seed {found['seeds'][0]}, and used for all"
    f" methods and seeds.\n\n{table}"
  )


def error_table(found: Record) -> str:
  """Each degree's error after the last step, one column per method."""
  methods = found["methods"].values()
  final = [_final(method) for method in methods]
  titles = {name: f"mean of {half}" for name, half in _halves(found).items()}
  lines = [
    [
      titles.get(measure, measure),
      *(_cell(values[measure]) for values in final),
    ]
    for measure in final[0]
  ]
  labels = [method["label"] for method in methods]
  return pages.markdown_table(["degree", *labels], lines)


def findings(found: Record) -> str:
  """High-degree errors, and RaPTr against each other method."""
  high = _halves(found)["high"]
  methods = found["methods"]
  errors = {name: _final(row)["high"] for name, row in methods.items()}
  ranked = sorted(errors, key=lambda name: np.mean(list(errors[name].values())))
  left = (f"{methods[name]['label']} {_cell(errors[name])}" for name in ranked)
  lines = [
    f"Mean error of {high} at the end, lowest first: {'; '.join(left)}.",
    *(
      f"RaPTr against {methods[name]['label']}, {high}:"
      f" {_verdict(errors['raptr'], errors[name])}"
      for name in errors
      if name != "raptr"
    ),
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
    "solved for",
    "steps",
    "FLOP factor, nominal",
    "spent",
    "seconds",
  ]
  lines = []
  for method in found["methods"].values():
    solved_for = method["solved_for"].items()
    numbers = (f"{name} = {value:.4g}" for name, value in solved_for)
    layers_run = np.mean([run["layers_run"][-1] for run in method["runs"]])
    lines.append(
      [
        method["label"],
        ", ".join(numbers) or pages.MISSING,
        f"{method['total_steps']:,}",
        f"{method['flop_factor_nominal']:.3f}x",
        f"{dense_layers / layers_run:.3f}x",
        f"{np.median([run['seconds'] for run in method['runs']]):.0f}",
      ]
    )
  return pages.markdown_table(head, lines)


def _final(method: Record) -> dict[str, dict[int, float]]:
  """Degree errors, their means and the loss after the last step, by seed."""
  values: dict[str, dict[int, float]] = {}
  for run in method["runs"]:
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
  """Names of the two halves of the degrees."""
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
