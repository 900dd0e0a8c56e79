"""Prepares a text with Apache Beam: on a cluster, or with its local runner.

Beam's packages do not agree with those of training, so it has an environment
of its own, in which `raptr_jax.tasks` works without JAX:

  pip install -r constraints-beam.txt
  pip install --no-deps .

A script makes the task, and prepares it:

  from raptr_jax.tasks.prepared.beam import on_beam
  from raptr_jax.tasks.prepared.prepare import prepare

  if __name__ == "__main__":
    prepare(
      task=task,
      feature_lengths={"tokens": 512},
      data_dir="/shared/data",
      run=on_beam(["--runner=SparkRunner", ...]),
    )

Text and `data_dir` are on storage that all workers share. The files are those
of `workers=1`, byte for byte.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

from raptr_jax.tasks import extras
from raptr_jax.tasks.prepared.parts import Run


def on_beam(options: Sequence[str] = ()) -> Run:
  """Writes the parts of a text in a pipeline.

  Args:
    options: flags of Beam's pipeline, such as --runner=FlinkRunner.

  Raises:
    ModuleNotFoundError: Beam is not installed.
  """
  extras.require("apache_beam")
  return functools.partial(_on_beam, list(options))


def _on_beam(
  options: list[str], write: Callable[[int], int], parts: Sequence[int]
) -> Iterator[int]:
  """Runs the pipeline to its end, and then yields all parts."""
  beam = extras.require("apache_beam")
  pipeline_options = extras.require("apache_beam.options.pipeline_options")
  with beam.Pipeline(
    options=pipeline_options.PipelineOptions(options)
  ) as pipeline:
    (
      pipeline
      | "parts" >> beam.Create(parts)
      | "spread" >> beam.Reshuffle()
      | "write" >> beam.Map(write)
    )
  yield from parts
