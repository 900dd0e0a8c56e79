"""RaPTr's polynomial experiment: the error of each degree, by method.

What is trained and measured is in `raptr_jax/theory/polynomial.py`; the sizes
here are ours, since the paper's (arXiv 2402.05913) are not known.
"""

import contextlib
import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from raptr_jax.display import Bar, Display, Lines
from raptr_jax.provenance import provenance
from tasks import records

from . import pages, polynomial_figures, polynomial_tables
from .polynomial_runs import PATH_LENGTHS, Record, Runs, Sizes, make_methods

NAME = "theory_polynomial"
RESULTS_FILE = "results.json"
SEEDS = (0, 1, 2, 3, 4)
# Tried for dense training, with the first seed.
LEARNING_RATES = (1e-3, 2e-3, 4e-3, 8e-3)


def run(
  folder: Path, *, sizes: Sizes | None = None, seeds: Sequence[int] = SEEDS
) -> None:
  """Trains all methods with all seeds, and writes results.json.

  Each run leaves a file in `folder`, and is not repeated where there is one.

  Args:
    folder: of this experiment; made if missing.
    sizes: those of `Sizes` if None.
    seeds: each of a target, its network, inputs and draws.

  Raises:
    ValueError: if the folder has a run of other sizes.
  """
  sizes = sizes or Sizes()
  methods = make_methods(sizes)
  total_steps = (len(LEARNING_RATES) - 1) * sizes.total_steps
  total_steps += len(seeds) * sum(m.total_steps for m in methods.values())
  folder.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    display: Display = (
      Bar(stack, total_steps, 0) if sys.stdout.isatty() else Lines(total_steps)
    )
    runs = Runs(folder, sizes, methods, total_steps, display)
    grid = {
      rate: runs.record("dense", rate, seeds[0])["losses"][-1]
      for rate in LEARNING_RATES
    }
    best = min(grid, key=lambda rate: grid[rate])
    # Seed by seed: an unfinished experiment has as many of each method.
    for seed, name in itertools.product(seeds, methods):
      runs.record(name, best, seed)
  rows = {
    name: {
      "total_steps": method.total_steps,
      "solved": dict(method.policy.solved),
      "flop_factor_nominal": method.nominal_factor(sizes),
      "runs": [runs.record(name, best, seed) for seed in seeds],
    }
    for name, method in methods.items()
  }
  results = {
    "provenance": provenance(),
    "sizes": dataclasses.asdict(sizes),
    "seeds": list(seeds),
    "seconds": runs.seconds,
    "learning_rates": {f"{rate:g}": loss for rate, loss in grid.items()},
    "learning_rate": best,
    "path_lengths": list(PATH_LENGTHS),
    "boundaries": list(methods["raptr"].policy.boundaries),
    "methods": rows,
  }
  records.write_json(folder / RESULTS_FILE, results)


def report(folder: Path, results: Path, command: str) -> None:
  """Writes theory_polynomial.md and .png from results.json alone.

  Args:
    folder: what `run` was given.
    results: where the page and the picture go.
    command: that ran the experiment.
  """
  text = (folder / RESULTS_FILE).read_text(encoding="utf-8")
  found = json.loads(text)
  picture = results / f"{NAME}.png"
  polynomial_figures.draw(picture, found)
  pages.write(
    results / f"{NAME}.md",
    [
      "# A polynomial of degrees 1 to"
      f" {found['sizes']['max_degree']}: which are learned?",
      f"```bash\n{command}\n```",
      f"![Error of each degree over training]({picture.name})",
      _explanation(found),
      "## What came out",
      polynomial_tables.sentences(found),
      "## Error of each degree after the last step",
      polynomial_tables.error_table(found),
      polynomial_tables.ERROR_NOTE,
      "## Cost",
      polynomial_tables.cost_table(found),
      polynomial_tables.COST_NOTE,
      "## Learning rate",
      _learning_rates(found),
      "## Where and when",
      pages.provenance(
        [found["provenance"]],
        found["seeds"],
        "seconds of all runs, those for the learning rate included:"
        f" {found['seconds']:.0f}",
      ),
    ],
  )


def _explanation(found: Record) -> str:
  sizes = found["sizes"]
  seen = sizes["total_steps"] * sizes["batch_size"] / 2 ** sizes["num_bits"]
  return f"""\
The toy experiment of RaPTr (arXiv 2402.05913). Inputs are n random bits in
{{-1, 1}}. The target is a sum of parities, products of some of the bits: a few
random ones of each degree, which is their number of bits, all of one size and
with random signs. A residual network learns it by one layer-dropping method or
another, and measured is how much of each degree the *full* network has learned.
The paper reports that dropping more with time (progressive layer dropping) fails
on the terms of high degree, which RaPTr learns.

**All sizes are our choice**, since the paper's are not known to us. They were
chosen by how dense training goes, so that it learns low degrees early and high
ones late, and so that all runs take minutes.

{_size_table(found)}

Inputs are fresh in every step, but there are only 2^n: each is seen about
{seen:.0f} times. So this tells what a method fits, and nothing of unseen inputs.
Every run's learning rate rises over its first {sizes["warmup_steps"]} steps and
then falls linearly to 0 at its end. RaPTr's stages are equally long; neither it
nor the constant path length scales its layers, progressive layer dropping divides
them by their probability. A seed is a target, initial parameters and inputs, which
all methods share."""


def _size_table(found: Record) -> str:
  sizes = found["sizes"]
  rows = {
    "bits, n": f"{sizes['num_bits']}",
    "terms of the target": f"{sizes['terms_per_degree']} of each degree from 1"
    f" to {sizes['max_degree']}",
    "network": f"{sizes['num_layers']} pre-norm residual MLP blocks,"
    f" D = {sizes['width']}, F = {sizes['mlp_dim']}",
    "training": f"{sizes['total_steps']:,} steps of {sizes['batch_size']}"
    " inputs, squared error, AdamW",
    "RaPTr's path lengths": "-".join(map(str, found["path_lengths"])),
  }
  return pages.table(["size", "ours"], map(list, rows.items()))


def _learning_rates(found: Record) -> str:
  cells = [
    f"**{loss:.4f}**"
    if float(rate) == found["learning_rate"]
    else f"{loss:.4f}"
    for rate, loss in found["learning_rates"].items()
  ]
  table = pages.table(
    ["loss at the peak rate of", *found["learning_rates"]], [["dense", *cells]]
  )
  return (
    f"Tuned for dense training, with seed {found['seeds'][0]}, and used for all"
    f" methods and seeds.\n\n{table}"
  )
