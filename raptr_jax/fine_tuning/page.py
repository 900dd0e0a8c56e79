"""The page of a fine-tuning: its grid, and the scores over seeds."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

RESULTS_FILE = "results.json"


def spread(
  scores: Sequence[Mapping[str, float]],
) -> dict[str, dict[str, float | None]]:
  """Mean and standard deviation of each metric over seeds.

  The deviation is that of a sample; None for one seed.
  """
  found = {}
  for metric in scores[0]:
    values = [score[metric] for score in scores]
    sd = statistics.stdev(values) if len(values) > 1 else None
    found[metric] = {"mean": statistics.fmean(values), "sd": sd}
  return found


def fine_tuning_page(results: Mapping[str, Any]) -> str:
  """The page, as Markdown.

  Args:
    results: what results.json holds.
  """
  start = results["pretrained"]
  source = f"`{start}`" if start else "fresh parameters"
  best = results["seeds"][0]
  parts = [
    f"# {results['task']}, fine-tuned from {source}",
    f"{results['train_examples']:,} training examples,"
    f" {results['epochs']:g} epochs. Each trial counts by its best evaluation,"
    " one after each epoch. The grid has one seed; its best choice, learning"
    f" rate {best['learning_rate']:g} and batches of {best['batch_size']}, has"
    f" {len(results['seeds'])}, and among them the seed by which it was chosen."
    " Mean ± standard deviation over seeds; metrics times 100.",
    *_score_tables(results),
    "The grid, by its score on validation:",
    _grid_table(results),
    f"The best model is in `{results['best_model']}`.",
  ]
  if results["submissions"]:
    listed = ", ".join(f"`{name}`" for name in results["submissions"])
    parts.append(f"Predictions on test sets: {listed}.")
  return "\n\n".join(parts) + "\n"


def _score_tables(results: Mapping[str, Any]) -> Iterator[str]:
  """The scores, for each split with labels."""
  baseline = results["baseline"]
  for split, scores in results["scores"].items():
    count = results["validation_examples"][split]
    lines = [
      f"| {split}, {count:,} examples | fine-tuned | commonest label |",
      "|---|---|---|",
    ]
    decides = split == next(iter(results["scores"]))
    for metric in (*results["metrics"], "score"):
      if metric == "score" and len(results["metrics"]) == 1:
        continue
      known = baseline.get(metric) if decides else None
      chance = "–" if known is None else f"{known:.1f}"
      lines.append(f"| {metric} | {_shown(scores[metric])} | {chance} |")
    yield "\n".join(lines)


def _grid_table(results: Mapping[str, Any]) -> str:
  """A line for each batch size, a column for each learning rate."""
  split = next(iter(results["scores"]))
  found = {
    (result["batch_size"], result["learning_rate"]): result["scores"][split]
    for result in results["grid"]
  }
  sizes = dict.fromkeys(size for size, _ in found)
  rates = dict.fromkeys(rate for _, rate in found)
  lines = [
    "| batch | " + " | ".join(f"{rate:g}" for rate in rates) + " |",
    "|---" * (len(rates) + 1) + "|",
  ]
  for size in sizes:
    cells = (f"{found[size, rate]['score']:.1f}" for rate in rates)
    lines.append(f"| {size} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


def _shown(score: Mapping[str, float | None]) -> str:
  sd = score["sd"]
  return f"{score['mean']:.1f}" + ("" if sd is None else f" ± {sd:.1f}")
