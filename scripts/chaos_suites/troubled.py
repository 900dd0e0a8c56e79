"""A data set that notes what is read of it, and may spoil a batch."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from raptr_jax.contracts import Batch, Dataset


@dataclasses.dataclass(frozen=True)
class TroubledDataset:
  """Another data set, watched.

  Attributes:
    dataset: the other one.
    log: a file that gets a line for each batch: its number, this process, and a
      digest of each example; None for no file.
    spoilt: numbers of batches whose weights are NaN.
  """

  dataset: Dataset
  log: str | None = None
  spoilt: Sequence[int] = ()

  def __getattr__(self, name: str) -> Any:
    return getattr(self.dataset, name)

  def batches(self, start: int) -> Iterator[Batch]:
    for number, batch in enumerate(self.dataset.batches(start), start):
      if self.log:
        self._note(Path(self.log), number, batch)
      if number in self.spoilt:
        weights = np.full_like(batch["target_weights"], np.nan)
        batch = {**batch, "target_weights": weights}
      yield batch

  def _note(self, log: Path, number: int, batch: Batch) -> None:
    size = len(batch["tokens"])
    found = [
      hashlib.sha256(b"".join(x[row].tobytes() for x in batch.values()))
      for row in range(size)
    ]
    line = [number, jax.process_index(), [x.hexdigest()[:12] for x in found]]
    with log.open("a", encoding="utf-8") as file:
      file.write(json.dumps(line) + "\n")
