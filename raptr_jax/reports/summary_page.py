"""The page of a run, summary.md."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from raptr_jax.reports.run_files import PAGE_FILE, RunSeries, read_run
from raptr_jax.tasks import files


def write_summary_markdown(model_dir: str | os.PathLike[str]) -> None:
  """Writes summary.md: the results of a run, for people to read."""
  run, folder = read_run(model_dir), files.path("MODEL_DIR", model_dir)
  headline = {
    name: form(run.summary[field])
    for field, (name, form) in _HEADLINE.items()
    if field in run.summary
  }
  stages = ("stage", "from step", "path length")
  losses = ("just before its start", "first within it", "at its end")
  lengths = [(layers, _loss(loss)) for layers, loss in run.by_length.items()]
  kinds = run.summary.get("loss_by_example_kind", {})
  shown = {
    *_HEADLINE,
    "boundaries",
    "stage_path_lengths",
    "loss_by_example_kind",
    "seconds",
  }
  others = {
    name: run.summary[name] for name in run.summary if name not in shown
  }
  sections = [
    f"# {files.absolute(folder).name}",
    _table(("result", ""), headline.items()),
    "![Loss over steps, over FLOPs and by path length](curves.png)",
    "## Stages\n\nThe three losses are evaluations of the full model.",
    _table((*stages, *losses), _stage_rows(run)),
  ]
  if lengths:
    sections.append("## Path lengths at the end of the run")
    sections.append(_table(("layers", "evaluation loss"), lengths))
  if kinds:
    sections.append("## Kinds of held-out examples")
    losses_by_kind = [(kind, _loss(loss)) for kind, loss in kinds.items()]
    sections.append(_table(("kind", "evaluation loss"), losses_by_kind))
  if seconds := run.summary.get("seconds"):
    sections.append("## Where the time went")
    sections.append(_table(("activity", "time", "share"), _times(seconds)))
  if others:
    sections.append("## Further fields")
    sections.append(_table(("field", ""), _short(others).items()))
  text = "\n\n".join(sections) + "\n"
  files.write_text(folder / PAGE_FILE, text)


def _stage_rows(run: RunSeries) -> list[Sequence[object]]:
  starts = [0, *run.summary["boundaries"]]
  ends = [*run.summary["boundaries"], run.summary["steps"]]
  rows: list[Sequence[object]] = []
  for i, length in enumerate(run.summary["stage_path_lengths"]):
    start, end = starts[i], ends[i]
    inside = next((step for step in run.full if start < step <= end), None)
    first = _loss(None)
    if inside is not None:
      first = f"{_loss(run.full[inside])} (step {inside:,})"
    before, at_end = _loss(run.full.get(start)), _loss(run.full.get(end))
    rows.append((i + 1, f"{start:,}", f"{length:.3g}", before, first, at_end))
  return rows


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(
    "| " + " | ".join(str(cell) for cell in line) + " |" for line in lines
  )


def _loss(value: float | None) -> str:
  return "n/a" if value is None else f"{value:.4f}"


def _times(seconds: Mapping[str, float]) -> Iterable[Sequence[object]]:
  """Activities, the longest first."""
  total = sum(seconds.values())
  longest_first = sorted(seconds.items(), key=lambda item: -item[1])
  for activity, taken in longest_first:
    yield activity, _duration(taken), f"{taken / total:.1%}"


def _short(fields: dict[str, Any]) -> dict[str, Any]:
  """Fields, written for reading."""

  def short(value: Any) -> Any:
    if isinstance(value, dict):
      parts = (f"{name} = {short(part)}" for name, part in value.items())
      return ", ".join(parts) or "none"
    return f"{value:.5g}" if isinstance(value, float) else value

  return {name: short(value) for name, value in fields.items()}


def _factor(value: float | None) -> str:
  return "n/a" if value is None else f"{value:.3f}"


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours} h {minutes} min {seconds} s"


def _versions(versions: dict[str, str]) -> str:
  return ", ".join(f"{name} {number}" for name, number in versions.items())


_HEADLINE: dict[str, tuple[str, Callable[[Any], str]]] = {
  "final_eval_loss": ("final evaluation loss, full model", _loss),
  "unigram_loss": ("loss of the unigram model", _loss),
  "flop_factor_nominal": ("FLOP factor, nominal", _factor),
  "flop_factor_spent": ("FLOP factor, spent", _factor),
  "train_seconds": ("training time", _duration),
  "goodput": (
    "goodput, share of the time in steps that count",
    "{:.1%}".format,
  ),
  "steps": ("steps", "{:,}".format),
  "parameters": ("parameters", "{:,}".format),
  "num_layers": ("layers", str),
  "hardware": ("hardware", str),
  "versions": ("versions", _versions),
  "date": ("date", str),
}
