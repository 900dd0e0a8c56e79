"""Preparing with Apache Beam, which has an environment of its own."""

import sys
import types

import pytest

from raptr_jax.tasks.prepared.beam import on_beam
from raptr_jax.tasks.prepared.prepare import prepare
from raptr_jax.tasks.text import text_files
from tests.small_task import LENGTHS, make_task, write_corpus


class Step:
  """A step of a pipeline: a function of a list."""

  def __init__(self, function):
    self.function = function

  def __rrshift__(self, name):
    return self


class Pipeline:
  """Stands for Beam's: runs each step as it is added."""

  def __init__(self, options=None, elements=()):
    self.options, self.elements = options, elements

  def __enter__(self):
    return self

  def __exit__(self, *error):
    pass

  def __or__(self, step):
    return Pipeline(self.options, step.function(self.elements))


@pytest.fixture
def beam(monkeypatch):
  """What we use of Beam; elements arrive in another order."""
  module = types.ModuleType("apache_beam")
  module.Pipeline = Pipeline
  module.Create = lambda elements: Step(lambda _: list(elements))
  module.Reshuffle = lambda: Step(lambda elements: elements[::-1])
  module.Map = lambda function: Step(lambda xs: [function(x) for x in xs])
  options = types.ModuleType("apache_beam.options.pipeline_options")
  options.PipelineOptions = list
  monkeypatch.setitem(sys.modules, "apache_beam", module)
  monkeypatch.setitem(sys.modules, "apache_beam.options", module)
  monkeypatch.setitem(sys.modules, options.__name__, options)


def test_a_pipeline_writes_the_same_files(beam, tmp_path, monkeypatch):
  monkeypatch.setattr(text_files, "RANGE_BYTES", 30_000)
  task = make_task(write_corpus(tmp_path / "corpus"))
  assert task.source.num_parts() > 2
  found = []
  for name, run in (("one", None), ("beam", on_beam(["--runner=Flink"]))):
    folder = tmp_path / name
    prepare(task=task, feature_lengths=LENGTHS, data_dir=str(folder), run=run)
    paths = sorted((folder / "small_bert").iterdir())
    found.append({path.name: path.read_bytes() for path in paths})
  assert found[0] == found[1]


def test_without_beam_it_says_where_it_is(monkeypatch):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  with pytest.raises(ModuleNotFoundError, match=r"environment of its own"):
    on_beam()
