"""Where a run is in its data, as a checkpoint says it, and how to go on."""

from collections.abc import Iterator

import numpy as np
from jax.experimental import multihost_utils

from raptr_jax.contracts import Batch, Dataset, StreamedDataset
from raptr_jax.training.state import Progress


def begin(dataset: Dataset, progress: Progress) -> Iterator[Batch]:
  """The batches that follow those of a checkpoint.

  Args:
    dataset: of training.
    progress: of the checkpoint; empty at step 0.
  """
  start = progress.get("examples", 0) // dataset.batch_size
  if isinstance(dataset, StreamedDataset) and "places" in progress:
    return dataset.resume(start, np.array(progress["places"]))
  return dataset.batches(start)


def reached(
  dataset: Dataset, batches: Iterator[Batch], examples: int
) -> Progress:
  """What `begin` needs in order to go on after some examples.

  Every host calls it, since each knows only its own place.

  Args:
    dataset: of training.
    batches: what `begin` returned.
    examples: number of examples taken from them, over all hosts and steps.
  """
  progress: Progress = {"examples": examples}
  if isinstance(dataset, StreamedDataset):
    own = batches.get_state()  # type: ignore[attr-defined]
    places = multihost_utils.process_allgather(own, tiled=False)
    progress["places"] = places.reshape(-1, *own.shape).tolist()
  return progress
