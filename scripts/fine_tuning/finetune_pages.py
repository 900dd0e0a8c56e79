"""The page of `bert_finetune`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fine_tuning.finetune_runs import (
  METHODS,
  SCRATCH,
  TASKS,
  FineTuningTable,
  Part,
)
from tables import bert_rows
from tables.evidence import Evidence, Place, place_of
from tables.pages import MISSING, markdown_table, provenance, write_page
from tables.results import Estimate, estimate, paired_difference

NAME = "bert_finetune"
LABELS = {
  "dense": bert_rows.DENSE.label,
  "raptr": bert_rows.RAPTR.label,
  "gradual_stacking": bert_rows.GRADUAL_STACKING.label,
  SCRATCH: "no pretraining",
}
METRICS = {
  "cola": "CoLA, Matthews",
  "sst2": "SST-2, accuracy",
  "rte": "RTE, accuracy",
}


def report(table: FineTuningTable, results: Path, command: str) -> Place:
  """Writes the page; what has not been run shows dashes."""
  found = {
    (part.task, part.row): (part, part.results()) for part in table.parts()
  }
  known = [result for _, result in found.values() if result]
  steps = {
    name: (run.summary() or {}).get("steps", 0)
    for name, run in table.pretraining().items()
  }
  evidence = Evidence(
    table.setting.options,
    {name: (count, table.seeds) for name, count in steps.items() if count},
  )
  name = f"{NAME}_{table.setting.scale}"
  place = place_of(results, name, evidence, trial=table.setting.trial)
  scores = {key: _by_seed(result) for key, (_, result) in found.items()}
  write_page(
    place.page,
    [
      "# BERT: what methods of pretraining are worth after fine-tuning",
      f"Scale `{table.setting.scale}`, made by\n\n```bash\n{command}\n```",
      _score_table(scores, known),
      "Differences to dense pretraining, paired by seed, with 95 % intervals:",
      _difference_table(scores),
      _notes(table, known),
      _losses(table),
      *_pairs(table),
      "## Where and when",
      provenance(known, range(table.seeds))
      if known
      else "No run has finished.",
      "## Commands",
      *_commands(table, [part for part, _ in found.values()]),
      evidence.comment(),
    ],
  )
  return place


def _by_seed(result: dict[str, Any] | None) -> dict[int, float]:
  """The score of each seed on validation."""
  if result is None:
    return {}
  return {
    trial["seed"]: trial["scores"]["validation"]["score"]
    for trial in result["seeds"]
  }


def _score_table(
  scores: dict[tuple[str, str], dict[int, float]], known: list[dict[str, Any]]
) -> str:
  """Mean and deviation over seeds, of each row and task."""
  lines = [
    [LABELS[row], *(_mean(scores[task, row]) for task in TASKS)]
    for row in (*METHODS, SCRATCH)
  ]
  baselines = {result["task"]: result["baseline"]["score"] for result in known}
  chance = (baselines.get(task) for task in TASKS)
  cells = (MISSING if x is None else f"{x:.1f}" for x in chance)
  lines.append(["commonest label", *cells])
  return markdown_table(["pretraining", *METRICS.values()], lines)


def _difference_table(scores: dict[tuple[str, str], dict[int, float]]) -> str:
  lines = [
    [
      LABELS[row],
      *(
        _difference(paired_difference(scores[task, row], scores[task, "dense"]))
        for task in TASKS
      ),
    ]
    for row in (*METHODS[1:], SCRATCH)
  ]
  return markdown_table(["pretraining", *METRICS.values()], lines)


def _notes(table: FineTuningTable, known: list[dict[str, Any]]) -> str:
  sizes = {x["task"]: x["train_examples"] for x in known}
  told = ", ".join(f"{sizes[t]:,} of {t}" for t in TASKS if t in sizes)
  examples = f"\nTraining examples: {told}." if told else ""
  return f"""\
Metrics are times 100, on the validation sets, as mean ± standard deviation over
{table.seeds} seeds of fine-tuning: of the new head, the order of the examples,
and dropout. Each row is pretrained once, with seed 0: what another pretraining
seed would change is not in these intervals. Of each task, the choice of learning
rate and batch size is the row's own, by its first seed on the same validation
set, which makes all scores a little optimistic; so does that each trial counts
by its best epoch. The commonest label is that of the training set.{examples}"""


def _losses(table: FineTuningTable) -> str:
  """What pretraining came to."""
  lines = []
  for name, run in table.pretraining().items():
    summary = run.summary() or {}
    loss = summary.get("final_eval_loss")
    unigram = summary.get("unigram_loss")
    factor = summary.get("flop_factor_spent")
    lines.append(
      [
        LABELS[name],
        MISSING if factor is None else f"{factor:.3f}x",
        MISSING if loss is None else f"{loss:.4f}",
        MISSING if unigram is None else f"{unigram:.4f}",
        f"{summary.get('tokens', 0):,}",
      ]
    )
  head = ["pretraining", "FLOP factor, spent", "loss", "by frequency", "tokens"]
  return "## Pretraining\n\n" + markdown_table(head, lines)


def _pairs(table: FineTuningTable) -> Iterator[str]:
  """Accuracy on minimal pairs, by phenomenon."""
  found = {
    row: scores
    for row in METHODS
    if (scores := table.pair_scores(row)) is not None
  }
  if not found:
    return
  first = next(iter(found.values()))
  yield "## Minimal pairs"
  yield (
    "How often the pretrained model finds the better sentence of a pair of BLiMP"
    " likelier, by pseudo-log-likelihood; in %, with standard errors over"
    f" {first['all']['pairs']:,} pairs. Guessing has 50."
  )
  names = [*first["phenomena"], "all"]
  lines = []
  for name in names:
    cells = []
    for scores in found.values():
      part = scores["all"] if name == "all" else scores["phenomena"][name]
      cells.append(f"{part['accuracy']:.1f} ± {part['standard_error']:.1f}")
    lines.append([name.replace("_", " "), *cells])
  yield markdown_table(["phenomenon", *(LABELS[row] for row in found)], lines)


def _commands(table: FineTuningTable, parts: list[Part]) -> Iterator[str]:
  for name, run in table.pretraining().items():
    yield _folded(f"pretraining, {LABELS[name]}", run.command())
  for part in parts:
    yield _folded(f"{part.task}, {LABELS[part.row]}", part.command())


def _folded(title: str, command: str) -> str:
  return (
    f"<details><summary>{title}</summary>\n\n```bash\n{command}\n```\n\n"
    "</details>"
  )


def _mean(scores: dict[int, float]) -> str:
  found = estimate(list(scores.values()))
  if found is None:
    return MISSING
  spread = "" if found.n < 2 else f" ± {found.sd:.1f}"
  return f"{found.mean:.1f}{spread}"


def _difference(found: Estimate | None) -> str:
  if found is None:
    return MISSING
  if found.n < 2:
    return f"{found.mean:+.1f}"
  low, high = found.interval
  return f"{found.mean:+.1f} ({low:+.1f} to {high:+.1f})"
