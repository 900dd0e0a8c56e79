"""Nothing is measured twice, and the page says what was measured."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from raptr_jax.theory import lemma
from tests.pictures import check_readable
from theory import lemma_figures, lemma_pages, lemma_runs

# Of the gap from depth 16 to 64, and from there to 256, by seed. An interval
# of two values 0.02 apart reaches 12.7062 * 0.01 to both sides.
EXPONENTS = {
  "residual + LN": ((-0.3, -0.3), (-0.51, -0.49)),
  "residual only": ((0.05, 0.07), (0.05, 0.07)),
  "LN only": ((0.0, 0.0), (0.2, 0.22)),
  "neither": ((0.0, 0.0), (-0.2, -0.22)),
}
STEEPER = {256: 1, 8: 2}  # By width.
GAPS = np.array([0.4, 0.6])  # Of depth 64, by seed.


def provenance(day, hardware="2 CPU cores"):
  date = f"2026-01-0{day}"
  return {"date": date, "hardware": hardware, "versions": {"jax": "1.2"}}


def cell(width, form, depth):
  shallow, deep = STEEPER[width] * np.array(EXPONENTS[form])
  gaps = GAPS * (depth / 64) ** (shallow if depth < 64 else deep)
  return {
    "width": width,
    "form": form,
    "depth": depth,
    "gaps": gaps.tolist(),
    "psi": [0.5] * depth,
  }


NETWORKS = {
  "seeds": [3, 4],
  "inputs": 2,
  "cells": [
    cell(width, form, depth)
    for width, depths in ((256, (16, 64, 256)), (8, (64, 256)))
    for depth in depths
    for form in lemma.FORMS
  ],
  "seconds": 100.0,
  "provenance": provenance(2),
}


def trained(depth, *, seconds=20.0, **source):
  """Gaps of 1 / L before training, and 4 / L^2 after it."""

  def effect(gap, loss):
    changes = [0.01 * layer for layer in range(depth)]
    return {"psi": [gap] * depth, "loss_change": changes, "loss": loss}

  return {
    "method": "full",
    "width": 64,
    "steps": 6000,
    "seed": 0,
    "rows": 256,
    "before": effect(1 / depth, 7.0),
    "after": effect(4 / depth**2, 5.0),
    "seconds": seconds,
    "provenance": provenance(**{"day": 2, **source}),
  }


def write_page(folder, parts):
  """The page of made-up measurements, and the size of its picture."""
  results = json.dumps({"lemma": NETWORKS, "trained": parts})
  (folder / lemma_runs.RESULTS_FILE).write_text(results)
  lemma_pages.report(folder, folder / "results", "make it so")
  head = (folder / "results" / "theory_lemma.png").read_bytes()[:24]
  assert not list((folder / "results").glob("*.partial"))
  page = (folder / "results" / "theory_lemma.md").read_text()
  return page, struct.unpack(">II", head[16:])


def test_slopes_are_means_over_seeds_with_their_intervals(tmp_path):
  page, _ = write_page(tmp_path, {})
  both = "-0.400 [-0.464, -0.336] | -0.500 [-0.627, -0.373]"
  assert (
    f"| residual + LN | O(L^-0.5) | {both} | agrees (within 0.1 of -0.5) |"
  ) in page
  one = "0.060 [-0.067, 0.187]"
  assert (
    f"| residual only | Omega(1) | {one} | {one} | agrees (within 0.1 of 0)"
    " | 0.000 |"
  ) in page
  both = "0.105 [0.041, 0.169] | 0.210 [0.083, 0.337]"
  assert (
    f"| LN only | Omega(1) | {both} | off by 0.210 from 0 | 0.000 |"
  ) in page
  steeper = "-1.000 [-1.254, -0.746] | 0.120 [-0.134, 0.374]"
  assert f"| 8 | {steeper} | 0.420 [" in page
  assert "| 64 | 0.500 ± 0.141 (0.214) | 0.500 ± 0.141 (0.707) |" in page


def test_without_trained_models_the_page_tells_how_to_get_them(tmp_path):
  page, size = write_page(tmp_path, {})
  assert "None were measured: they come with the runs of" in page
  assert "by layer\n" not in page
  assert "- seeds: 3, 4\n- seconds of computing: 100\n" in page
  assert size == (11 * 150, 4.4 * 150)


def test_trained_models_are_shown_by_depth(tmp_path):
  later = trained(4, seconds=3.0, day=5, hardware="1 x GPU")
  page, size = write_page(tmp_path, {"4": later, "2": trained(2)})
  assert "None were measured" not in page
  assert "2 layers: full, width 64, 6,000 steps, seed 0, 256 held-out" in page
  assert "-1.00 before training, -2.00 after." in page
  loss = "7.0000 | +0.0050 | 1.000 | 5.0000 | +0.0050"
  assert f"| 2 | 0.500 | {loss} |" in page
  assert "| 2 | 0.500 | 1.000 | +0.0100 | 0.250 | 0.250 | +0.0100 |" in page
  assert "| 3 |  |  |  | 0.250 | 0.250 | +0.0200 |" in page
  assert "- date: 2026-01-02 to 2026-01-05\n- hardware: 1 x GPU; 2 CPU" in page
  assert "computing: 123, 23 of them for the trained models\n" in page
  assert size == (11 * 150, 8.8 * 150)


def test_a_page_without_trained_models_replaces_none_with_them(tmp_path):
  def placed(parts, scale="tiny"):
    results = json.dumps({"lemma": NETWORKS, "trained": parts})
    (tmp_path / lemma_runs.RESULTS_FILE).write_text(results)
    results = tmp_path / "results"
    place = lemma_pages.report(tmp_path, results, "make it so", scale=scale)
    assert place.page.with_suffix(".png").exists()
    return str(place.page.parent.relative_to(tmp_path)), place.reason

  page = tmp_path / "results/theory_lemma.md"
  assert placed({"2": trained(2)}) == ("results", "")
  kept = page.read_text()
  folder, reason = placed({})
  assert folder == "results/trials/scale=tiny"
  assert reason.endswith("which has more seeds of row 2 layers: 1 against 0")
  folder, reason = placed({"2": trained(2)}, scale="small")
  assert folder == "results/trials/scale=small"
  assert reason.endswith("made with scale=tiny")
  assert page.read_text() == kept
  assert placed({"2": trained(2), "4": trained(4)}) == ("results", "")


def test_the_picture_is_readable(tmp_path, monkeypatch):
  from matplotlib.figure import Figure

  drawn = []
  monkeypatch.setattr(
    Figure,
    "savefig",
    lambda figure, path, **_: drawn.append(figure) or path.touch(),
  )
  results = {
    "lemma": NETWORKS,
    "trained": {str(depth): trained(depth) for depth in (6, 12, 24)},
  }
  lemma_figures.draw(tmp_path / "lemma.png", results)
  check_readable(drawn[0])


def test_one_trained_model_has_no_slope(tmp_path):
  page, _ = write_page(tmp_path, {"2": trained(2)})
  assert "Slope of the gap over depth" not in page


@pytest.fixture
def calls(monkeypatch):
  """Replaces what is measured, and collects what was asked for."""
  calls = []

  def measure(key, *, depth, width, inputs):
    calls.append((width, depth))
    return {form: np.full(depth, 0.5, np.float32) for form in lemma.FORMS}

  def measure_trained(depth, model_dir):
    calls.append((depth, model_dir.name))
    return trained(depth)

  monkeypatch.setattr(lemma, "measure", measure)
  monkeypatch.setattr(lemma_runs, "measure_trained", measure_trained)
  monkeypatch.setattr(lemma_runs, "DEPTHS", (4, 64))
  monkeypatch.setattr(lemma_runs, "OTHER_WIDTHS", (16,))
  monkeypatch.setattr(lemma_runs, "SEEDS", range(2))
  return calls


def test_what_was_measured_is_kept(tmp_path, calls, monkeypatch):
  path = tmp_path / lemma_runs.RESULTS_FILE
  lemma_runs.run(tmp_path, {2: Path("two")})
  sizes = [(256, 4), (256, 64), (16, 64)]
  assert calls == [*(size for size in sizes for _ in range(2)), (2, "two")]
  first = json.loads(path.read_text())
  assert len(first["lemma"]["cells"]) == len(sizes) * len(lemma.FORMS)
  assert first["lemma"]["cells"][0]["gaps"] == [0.5, 0.5]

  del calls[:]
  lemma_runs.run(tmp_path, {4: Path("four"), 2: Path("two")})
  assert calls == [(4, "four")]
  second = json.loads(path.read_text())
  assert second["lemma"] == first["lemma"]
  assert second["trained"] == {"2": trained(2), "4": trained(4)}

  def fail(*_, **__):
    raise AssertionError("measured again")

  monkeypatch.setattr(lemma, "measure", fail)
  monkeypatch.setattr(lemma_runs, "measure_trained", fail)
  text = path.read_text()
  lemma_runs.run(tmp_path, {4: Path("four"), 2: Path("two")})
  assert path.read_text() == text
